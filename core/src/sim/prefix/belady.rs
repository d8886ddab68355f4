//! Belady's MIN: what goes is what is used again last. It knows the trace, so no live cache can have it.

use std::collections::BinaryHeap;

use super::{Cache, Served};
use crate::error::Result;
use crate::sim::trace::{Request, Trace};

/// Never used again.
pub(super) const NEVER: u32 = u32::MAX;

/// When the block of each reference is used next, as the number of that reference.
pub(super) fn next_uses(trace: &Trace) -> Vec<u32> {
    let mut soonest = vec![NEVER; trace.unique_blocks()];
    let mut next = vec![NEVER; trace.blocks().len()];
    for (at, &block) in trace.blocks().iter().enumerate().rev() {
        next[at] = std::mem::replace(&mut soonest[block as usize], at as u32);
    }
    next
}

/// The rank of a block that is not in.
const ABSENT: u64 = u64::MAX;

/// What must be in once it was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// All of a request at once, until it is served.
    Pinned,
    /// Nothing: a request's own block may be the one that goes.
    Bypassing,
    /// Each block by itself, as it is used.
    Flat,
    /// Each block by itself, and it may be the one that goes.
    FlatBypassing,
}

/// Belady's MIN (IBM Systems Journal, 1966) over the blocks of a trace.
///
/// With prefix ids a block's parent is used again no later than the block, and is ranked before it: so leaves go first, what is held
/// is always prefixes, and every block that MIN would hit is reached. Hence `bypassing` is the most block hits that any prefix
/// cache of that size can have, and `pinned` the most of one that takes in every request whole and keeps it until it is served
/// (requests larger than the cache keep their head, which is optimal no more). Both count blocks, not their tokens or cost.
/// The `flat` ones are MIN over single objects: must take in, or may bypass.
///
/// O(log n) a block; 12 bytes a block reference and 24 a block.
#[derive(Debug)]
pub(super) struct Belady {
    /// When the block of each reference is used next, as the number of that reference.
    next: Vec<u32>,
    /// References served.
    at: usize,
    /// By block: when it is used next, [`ABSENT`] if it is not in.
    rank: Vec<u64>,
    /// Rank and block; what no longer has that rank is skipped.
    heap: BinaryHeap<(u64, u32)>,
    held: usize,
    capacity: usize,
    kind: Kind,
}

impl Belady {
    /// For a trace of prefix ids.
    pub(super) fn pinned(trace: &Trace, capacity: usize) -> Self {
        Self::new(trace, capacity, Kind::Pinned)
    }

    /// For a trace of prefix ids.
    pub(super) fn bypassing(trace: &Trace, capacity: usize) -> Self {
        Self::new(trace, capacity, Kind::Bypassing)
    }

    pub(super) fn flat(trace: &Trace, capacity: usize) -> Self {
        Self::new(trace, capacity, Kind::Flat)
    }

    pub(super) fn flat_bypassing(trace: &Trace, capacity: usize) -> Self {
        Self::new(trace, capacity, Kind::FlatBypassing)
    }

    fn new(trace: &Trace, capacity: usize, kind: Kind) -> Self {
        Self {
            next: next_uses(trace),
            at: 0,
            rank: vec![ABSENT; trace.unique_blocks()],
            heap: BinaryHeap::new(),
            held: 0,
            capacity,
            kind,
        }
    }

    fn is_in(&self, block: u32) -> bool {
        self.rank[block as usize] != ABSENT
    }

    /// Takes the block of a reference in, or notes its next use. Of blocks that are never used again the deepest goes first.
    fn used(&mut self, block: u32, reference: usize, depth: usize) {
        let rank = match self.next[reference] {
            NEVER => u64::from(NEVER) + depth as u64,
            next => u64::from(next),
        };
        let before = std::mem::replace(&mut self.rank[block as usize], rank);
        self.held += usize::from(before == ABSENT);
        self.heap.push((rank, block));
        if self.heap.len() > 2 * self.held + 1024 {
            let ranks = &self.rank;
            self.heap
                .retain(|&(rank, block)| ranks[block as usize] == rank);
        }
    }

    /// Takes out what is used last.
    fn evict(&mut self) {
        while let Some((rank, block)) = self.heap.pop() {
            if self.rank[block as usize] == rank {
                self.rank[block as usize] = ABSENT;
                self.held -= 1;
                return;
            }
        }
    }

    fn serve_pinned(&mut self, blocks: &[u32]) -> Served {
        let hits = blocks
            .iter()
            .take_while(|&&block| self.is_in(block))
            .count();
        // Out of the order of victims until the room is made.
        for &block in &blocks[..hits] {
            self.rank[block as usize] = ABSENT;
        }
        self.held -= hits;
        let kept = blocks.len().min(self.capacity);
        let room = self.capacity - kept;
        let evicted = self.held.saturating_sub(room);
        (0..evicted).for_each(|_| self.evict());
        for (depth, &block) in blocks[..kept].iter().enumerate() {
            self.used(block, self.at + depth, depth);
        }
        Served {
            hits,
            evicted,
            refused: blocks.len() - kept,
        }
    }

    fn serve_bypassing(&mut self, blocks: &[u32]) -> Served {
        let hits = blocks
            .iter()
            .take_while(|&&block| self.is_in(block))
            .count();
        for (depth, &block) in blocks.iter().enumerate() {
            self.used(block, self.at + depth, depth);
        }
        let gone = self.held.saturating_sub(self.capacity);
        (0..gone).for_each(|_| self.evict());
        let own = blocks[hits..].iter().filter(|&&block| !self.is_in(block));
        let refused = own.count();
        Served {
            hits,
            evicted: gone - refused,
            refused,
        }
    }

    fn serve_flat(&mut self, blocks: &[u32]) -> Served {
        let mut served = Served::default();
        for (position, &block) in blocks.iter().enumerate() {
            let hit = self.is_in(block);
            served.hits += usize::from(hit);
            if self.kind == Kind::Flat && !hit && self.held == self.capacity {
                self.evict();
                served.evicted += 1;
            }
            self.used(block, self.at + position, 0);
            if self.held > self.capacity {
                self.evict();
                let refused = !self.is_in(block);
                served.refused += usize::from(refused);
                served.evicted += usize::from(!refused);
            }
        }
        served
    }
}

impl Cache for Belady {
    fn serve(&mut self, request: &Request<'_>) -> Result<Served> {
        let blocks = request.blocks;
        let served = match self.kind {
            Kind::Pinned => self.serve_pinned(blocks),
            Kind::Bypassing => self.serve_bypassing(blocks),
            Kind::Flat | Kind::FlatBypassing => self.serve_flat(blocks),
        };
        self.at += blocks.len();
        Ok(served)
    }

    fn held(&self) -> usize {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};
    use std::ops::ControlFlow;

    use proptest::prelude::*;

    use crate::policy::KNOWN;
    use crate::sim::prefix::{Config, Mode, replay};
    use crate::sim::trace::testing::{prefixes, trace};

    fn hits(requests: &[Vec<u64>], mode: Mode, policy: &str, capacity: usize) -> u64 {
        let config = Config {
            mode,
            policy: policy.to_owned(),
            capacity: Some(capacity),
        };
        let outcome = replay(&trace(requests), &config, |_| ControlFlow::Continue(()));
        outcome.unwrap().hits
    }

    /// The most prefix hits over all ways to choose which blocks stay after each request: by trying them all.
    fn most_hits(requests: &[Vec<u64>], capacity: usize) -> u64 {
        let mut states: HashMap<BTreeSet<u64>, u64> = HashMap::from([(BTreeSet::new(), 0)]);
        for blocks in requests {
            let mut after: HashMap<BTreeSet<u64>, u64> = HashMap::new();
            for (held, hits) in states {
                let found = blocks.iter().take_while(|block| held.contains(block));
                let hits = hits + found.count() as u64;
                let all: Vec<u64> = held
                    .iter()
                    .chain(blocks)
                    .copied()
                    .collect::<BTreeSet<_>>()
                    .into_iter()
                    .collect();
                for mask in 0..1_u32 << all.len() {
                    if mask.count_ones() as usize <= capacity {
                        let kept = (0..all.len()).filter(|at| mask >> at & 1 == 1);
                        let kept = kept.map(|at| all[at]).collect();
                        let best = after.entry(kept).or_default();
                        *best = hits.max(*best);
                    }
                }
            }
            states = after;
        }
        states.into_values().max().unwrap_or(0)
    }

    proptest! {
        #[test]
        fn nothing_beats_it_where_every_request_goes_in(requests in prefixes(40), capacity in 7..40_usize) {
            // None of these requests is larger than the cache, where a head that stays need not be the best choice.
            let small = requests.iter().filter(|blocks| blocks.len() <= capacity);
            let requests: Vec<_> = small.cloned().collect();
            let pinned = hits(&requests, Mode::Prefix, "belady", capacity);
            let bypassing = hits(&requests, Mode::Prefix, "belady_bypass", capacity);
            prop_assert!(pinned <= bypassing);
            for policy in KNOWN.iter().map(|known| known.name) {
                let other = hits(&requests, Mode::Prefix, policy, capacity);
                prop_assert!(other <= pinned, "{} has {} hits, belady {}", policy, other, pinned);
                let flat = hits(&requests, Mode::Flat, policy, capacity);
                prop_assert!(flat <= hits(&requests, Mode::Flat, "belady", capacity));
            }
        }

        #[test]
        fn with_bypass_it_is_the_best_of_all_choices(requests in prefixes(6), capacity in 1..4_usize) {
            let requests: Vec<Vec<u64>> = requests.into_iter().map(|blocks| blocks.into_iter().take(4).collect()).collect();
            prop_assume!(requests.iter().flatten().collect::<BTreeSet<_>>().len() <= 9);
            prop_assert_eq!(hits(&requests, Mode::Prefix, "belady_bypass", capacity), most_hits(&requests, capacity));
        }
    }
}
