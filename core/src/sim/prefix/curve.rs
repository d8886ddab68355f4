//! Hit counts of LRU at every size from one pass: exact stack distances (Mattson and others, 1970).

use super::Mode;
use crate::sim::trace::Trace;

/// Hits of LRU by capacity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Curve {
    /// How many uses found their block behind exactly so many others.
    distances: Vec<u64>,
    /// Uses in all.
    pub block_refs: u64,
}

impl Curve {
    /// Blocks that a cache of `capacity` blocks finds.
    pub fn hits(&self, capacity: usize) -> u64 {
        let within = self.distances.len().min(capacity);
        self.distances[..within].iter().sum()
    }

    /// The hits at each of these capacities, in one pass over them sorted.
    pub fn hits_at(&self, capacities: &[usize]) -> Vec<u64> {
        let mut order: Vec<usize> = (0..capacities.len()).collect();
        order.sort_unstable_by_key(|&at| capacities[at]);
        let mut hits = vec![0; capacities.len()];
        let (mut done, mut sum) = (0, 0);
        for at in order {
            let within = self.distances.len().min(capacities[at]);
            sum += self.distances[done..within].iter().sum::<u64>();
            done = within;
            hits[at] = sum;
        }
        hits
    }
}

/// The exact curve of `lru` in a mode. In prefix mode too: used from its tail, a request's blocks stand in the stack with the root
/// on top, so that the blocks that a cache holds are always the stack's top, a request that is larger than the cache included.
///
/// O(log n) a use, 8 bytes a block reference at most and 16 a block.
pub fn stack_curve(trace: &Trace, mode: Mode) -> Curve {
    let owned;
    let trace = match mode {
        Mode::Flat => trace,
        Mode::Prefix => {
            owned = trace.prefix_ids();
            &*owned
        }
    };
    let mut stack = Stack::new(trace.unique_blocks());
    let mut distances = vec![0; trace.unique_blocks()];
    for request in trace.requests() {
        match mode {
            Mode::Flat => {
                for &block in request.blocks {
                    if let Some(above) = stack.above(block) {
                        distances[above] += 1;
                    }
                    stack.touch(block);
                }
            }
            Mode::Prefix => {
                for &block in request.blocks {
                    match stack.above(block) {
                        Some(above) => distances[above] += 1,
                        None => break,
                    }
                }
                for &block in request.blocks.iter().rev() {
                    stack.touch(block);
                }
            }
        }
    }
    Curve {
        distances,
        block_refs: trace.block_refs(),
    }
}

/// Blocks in the order of their last use: a Fenwick tree over the times of use counts those that are still the last of a block.
#[derive(Debug)]
struct Stack {
    /// By block: the time of its last use, 0 for none.
    last: Vec<u32>,
    /// Fenwick tree, from 1.
    counts: Vec<u32>,
    now: u32,
    held: u32,
}

impl Stack {
    fn new(blocks: usize) -> Self {
        Self {
            last: vec![0; blocks],
            counts: vec![0; 2 * blocks + 1025],
            now: 0,
            held: 0,
        }
    }

    /// How many blocks were used after the last use of this one.
    fn above(&self, block: u32) -> Option<usize> {
        let mut at = self.last[block as usize];
        if at == 0 {
            return None;
        }
        let mut upto = 0;
        while at > 0 {
            upto += self.counts[at as usize];
            at &= at - 1;
        }
        Some((self.held - upto) as usize)
    }

    fn touch(&mut self, block: u32) {
        if self.now as usize == self.counts.len() - 1 {
            self.renumber();
        }
        self.now += 1;
        let before = std::mem::replace(&mut self.last[block as usize], self.now);
        if before == 0 {
            self.held += 1;
        } else {
            self.add(before, u32::MAX);
        }
        self.add(self.now, 1);
    }

    /// Adds to the count of a time; `u32::MAX` is one less.
    fn add(&mut self, time: u32, amount: u32) {
        let mut at = time as usize;
        while at < self.counts.len() {
            self.counts[at] = self.counts[at].wrapping_add(amount);
            at += at & at.wrapping_neg();
        }
    }

    /// Times start from 1 again, in the same order.
    fn renumber(&mut self) {
        let mut order: Vec<u32> = (0..self.last.len() as u32)
            .filter(|&block| self.last[block as usize] != 0)
            .collect();
        order.sort_unstable_by_key(|&block| self.last[block as usize]);
        self.counts.fill(0);
        for (time, block) in (1..).zip(order) {
            self.last[block as usize] = time;
        }
        self.now = self.held;
        for time in 1..=self.held as usize {
            self.counts[time] += 1;
            let above = time + (time & time.wrapping_neg());
            if above < self.counts.len() {
                self.counts[above] += self.counts[time];
            }
        }
        // Above the last time the sums go on.
        for time in self.held as usize + 1..self.counts.len() {
            let above = time + (time & time.wrapping_neg());
            if above < self.counts.len() {
                self.counts[above] += self.counts[time];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use proptest::prelude::*;

    use super::{Stack, stack_curve};
    use crate::sim::prefix::{Config, Mode, replay};
    use crate::sim::trace::testing::{prefixes, trace};

    proptest! {
        #[test]
        fn the_curve_is_what_replays_find(
            requests in prop_oneof![
                prefixes(40),
                prop::collection::vec(prop::collection::vec(0..12_u64, 0..8), 1..30),
            ],
            flat: bool,
        ) {
            let trace = trace(&requests);
            let mode = if flat { Mode::Flat } else { Mode::Prefix };
            let curve = stack_curve(&trace, mode);
            let capacities: Vec<usize> = (1..=trace.unique_blocks() + 40).rev().collect();
            let at_once = curve.hits_at(&capacities);
            for (capacity, at_once) in capacities.into_iter().zip(at_once) {
                let config = Config { mode, policy: "lru".to_owned(), capacity: Some(capacity) };
                let outcome = replay(&trace, &config, |_| ControlFlow::Continue(())).unwrap();
                prop_assert_eq!((curve.hits(capacity), at_once), (outcome.hits, outcome.hits));
            }
        }

        /// Many times more uses than times.
        #[test]
        fn times_are_renumbered(uses in prop::collection::vec(0..5_u32, 3000)) {
            let mut stack = Stack::new(5);
            let mut model: Vec<u32> = Vec::new();
            for block in uses {
                let above = model.iter().rev().position(|&other| other == block);
                prop_assert_eq!(stack.above(block), above);
                model.retain(|&other| other != block);
                model.push(block);
                stack.touch(block);
            }
        }
    }
}
