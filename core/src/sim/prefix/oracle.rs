//! An oracle that weighs what a block costs against how soon it is used again.

use super::belady::{NEVER, next_uses};
use super::{Cache, Served};
use crate::error::Result;
use crate::policy::recompute_cost;
use crate::sim::trace::{Request, Trace};

/// Not among the leaves.
const NOWHERE: u32 = u32::MAX;
/// Before the first block of a request.
const ROOT: u32 = u32::MAX;

/// Evicts the leaf with the least cost to recompute per reference until it is used again. The request that is served is pinned;
/// one that is larger than the cache keeps its head. Takes prefix ids.
///
/// A greedy choice that knows the future: where all blocks cost the same it is Belady's MIN (pinned), and of blocks that are never
/// used again it always takes one first; beyond that it guarantees nothing. (The best schedule is a min-cost flow, which is out of
/// reach for traces of this length.) Costs O(leaves) an eviction.
#[derive(Debug)]
pub(super) struct CostOracle {
    next: Vec<u32>,
    /// References served.
    at: usize,
    /// By block: what it costs, when it is used next, what it hangs from, how many hang from it here.
    costs: Vec<f32>,
    following: Vec<u32>,
    parents: Vec<u32>,
    children: Vec<u32>,
    resident: Vec<bool>,
    /// By block: its place in `leaves`.
    places: Vec<u32>,
    leaves: Vec<u32>,
    depths: Vec<u32>,
    held: usize,
    capacity: usize,
}

impl CostOracle {
    pub(super) fn new(trace: &Trace, capacity: usize) -> Self {
        let unique = trace.unique_blocks();
        let mut oracle = Self {
            next: next_uses(trace),
            at: 0,
            costs: vec![0.0; unique],
            following: vec![NEVER; unique],
            parents: vec![ROOT; unique],
            children: vec![0; unique],
            resident: vec![false; unique],
            places: vec![NOWHERE; unique],
            leaves: Vec::new(),
            depths: vec![0; unique],
            held: 0,
            capacity,
        };
        for request in trace.requests() {
            let mut parent = ROOT;
            let mut before = 0;
            for (depth, &block) in request.blocks.iter().enumerate() {
                let tokens = trace.tokens_of(&request, depth + 1);
                let cost = recompute_cost((tokens - before) as u32, before);
                let at = block as usize;
                oracle.costs[at] = oracle.costs[at].max(cost);
                oracle.parents[at] = std::mem::replace(&mut parent, block);
                oracle.depths[at] = depth as u32;
                before = tokens;
            }
        }
        oracle
    }

    fn add_leaf(&mut self, block: u32) {
        self.places[block as usize] = self.leaves.len() as u32;
        self.leaves.push(block);
    }

    fn drop_leaf(&mut self, block: u32) {
        let place = std::mem::replace(&mut self.places[block as usize], NOWHERE);
        if place != NOWHERE {
            self.leaves.swap_remove(place as usize);
            if let Some(&moved) = self.leaves.get(place as usize) {
                self.places[moved as usize] = place;
            }
        }
    }

    fn insert(&mut self, block: u32) {
        self.resident[block as usize] = true;
        self.held += 1;
        let parent = self.parents[block as usize];
        if parent != ROOT {
            self.children[parent as usize] += 1;
            self.drop_leaf(parent);
        }
    }

    /// What a leaf is worth: its cost by the number of references until it is used, then the other way round how deep it is.
    fn worth(&self, block: u32) -> (f64, std::cmp::Reverse<u32>) {
        let worth = match self.following[block as usize] {
            NEVER => 0.0,
            next => f64::from(self.costs[block as usize]) / (next as usize - self.at + 1) as f64,
        };
        (worth, std::cmp::Reverse(self.depths[block as usize]))
    }

    fn evict(&mut self) -> bool {
        let least = self.leaves.iter().copied().min_by(|&one, &other| {
            let (one, other) = (self.worth(one), self.worth(other));
            one.0.total_cmp(&other.0).then(one.1.cmp(&other.1))
        });
        let Some(victim) = least else { return false };
        self.drop_leaf(victim);
        self.resident[victim as usize] = false;
        self.held -= 1;
        let parent = self.parents[victim as usize];
        if parent != ROOT {
            self.children[parent as usize] -= 1;
            if self.children[parent as usize] == 0 {
                self.add_leaf(parent);
            }
        }
        true
    }
}

impl Cache for CostOracle {
    fn serve(&mut self, request: &Request<'_>) -> Result<Served> {
        let blocks = request.blocks;
        let here = |block: &&u32| self.resident[**block as usize];
        let hits = blocks.iter().take_while(here).count();
        let kept = blocks.len().min(self.capacity);
        // Pinned: of a path only the end can be a leaf. What comes in is no leaf before all of it is in.
        if let Some(&last) = hits.checked_sub(1).and_then(|last| blocks.get(last)) {
            self.drop_leaf(last);
        }
        let mut evicted = 0;
        while self.held + kept - hits > self.capacity && self.evict() {
            evicted += 1;
        }
        for &block in &blocks[hits..kept] {
            self.insert(block);
        }
        for (position, &block) in blocks.iter().enumerate() {
            self.following[block as usize] = self.next[self.at + position];
        }
        self.at += blocks.len();
        if let Some(&last) = kept
            .max(hits)
            .checked_sub(1)
            .and_then(|last| blocks.get(last))
            && self.children[last as usize] == 0
        {
            self.add_leaf(last);
        }
        Ok(Served {
            hits,
            evicted,
            refused: blocks.len() - kept,
        })
    }

    fn held(&self) -> usize {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use proptest::prelude::*;

    use crate::sim::prefix::{Config, Mode, Outcome, replay};
    use crate::sim::trace::testing::{prefixes, trace};
    use crate::sim::trace::{BlockTokens, Requests, Trace, TraceBuilder};

    fn run(trace: &Trace, policy: &str, capacity: usize) -> Outcome {
        let config = Config {
            mode: Mode::Prefix,
            policy: policy.to_owned(),
            capacity: Some(capacity),
        };
        replay(trace, &config, |_| ControlFlow::Continue(())).unwrap()
    }

    proptest! {
        /// Blocks of one token: the first 30 of a prompt cost the same to a thousandth.
        #[test]
        fn where_all_costs_the_same_it_is_belady(requests in prefixes(40), capacity in 1..30_usize) {
            let mut builder = TraceBuilder::new();
            for blocks in &requests {
                let column = &[blocks.len() as u32];
                builder.push(&Requests {
                    at_ms: &[0.0],
                    counts: column,
                    ids: blocks,
                    tokens: column,
                    output_tokens: &[0],
                    sessions: &[0],
                    categories: &[0],
                }).unwrap();
            }
            let trace = builder.finish(BlockTokens::Fixed(1)).unwrap();
            prop_assume!(trace.block_refs() < 500);
            prop_assert_eq!(run(&trace, "oracle_cost", capacity).hits, run(&trace, "belady", capacity).hits);
        }

        #[test]
        fn it_never_holds_more_than_fits(requests in prefixes(40), capacity in 1..30_usize) {
            let trace = trace(&requests);
            let outcome = run(&trace, "oracle_cost", capacity);
            prop_assert!(outcome.peak_blocks <= capacity);
            prop_assert!(outcome.hits <= run(&trace, "belady_bypass", capacity).hits);
        }
    }

    /// Two prompts take turns with a third; what is dear and what is cheap are used equally soon.
    #[test]
    fn what_is_dear_stays() {
        let long: Vec<u64> = (0..3000).collect();
        let deep = &long[..];
        let short: Vec<u64> = (9000..9600).collect();
        let other: Vec<u64> = (20_000..20_600).collect();
        let mut requests = vec![deep.to_vec(), short.clone()];
        for _ in 0..5 {
            requests.extend([other.clone(), deep.to_vec(), short.clone()]);
        }
        let trace = trace(&requests);
        let (dear, plain) = (
            run(&trace, "oracle_cost", 3700),
            run(&trace, "belady", 3700),
        );
        assert!(
            dear.recomputed_cost <= plain.recomputed_cost,
            "{} {}",
            dear.recomputed_cost,
            plain.recomputed_cost
        );
    }
}
