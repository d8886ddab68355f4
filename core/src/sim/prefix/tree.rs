//! The live tree as a cache of blocks without bytes.

use super::{Cache, Served};
use crate::error::Result;
use crate::key::BlockKey;
use crate::policy::EvictionPolicy;
use crate::radix::RadixTree;
use crate::sim::trace::Request;

/// All of a trace is in one namespace.
pub(super) const NAMESPACE: BlockKey = BlockKey([0; 32]);

/// A radix tree whose tokens are the trace's block ids, one a block; it evicts as L1 does.
#[derive(Debug)]
pub(super) struct Tree {
    tree: RadixTree,
    capacity: usize,
}

impl Tree {
    pub(super) fn new(policy: Box<dyn EvictionPolicy>, capacity: usize) -> Result<Self> {
        let tree = RadixTree::of_ids(policy)?;
        Ok(Self { tree, capacity })
    }
}

impl Cache for Tree {
    fn serve(&mut self, request: &Request<'_>) -> Result<Served> {
        let blocks = request.blocks;
        self.tree.request(request.at_ms as u64, request.category);
        let mut evicted = self.tree.discard_expired(|_| {});
        let (lock, hits) = self.tree.claim(&NAMESPACE, blocks);
        let missing = &blocks[hits..];
        let mut free = self.capacity - self.held();
        if missing.len() > free {
            let discarded = self.tree.discard(missing.len() - free, |_| {});
            evicted += discarded;
            free += discarded;
        }
        let taken = &missing[..missing.len().min(free)];
        self.tree.extend(lock, &NAMESPACE, taken, taken)?;
        self.tree.unlock(lock)?;
        Ok(Served {
            hits,
            evicted,
            refused: missing.len() - taken.len(),
        })
    }

    fn held(&self) -> usize {
        self.tree.stats().total_blocks
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::Tree;
    use crate::policy::Lru;
    use crate::sim::prefix::{Cache, Served};
    use crate::sim::trace::testing::{prefixes, trace};

    /// Tail-first LRU, block by block: each block of a prefix tree with its parent and when it was last used, searched in full.
    #[derive(Default)]
    struct Model {
        blocks: HashMap<u32, u64>,
        now: u64,
    }

    impl Model {
        fn serve(&mut self, blocks: &[u32], capacity: usize) -> Served {
            let known = |block: &&u32| self.blocks.contains_key(block);
            let hits = blocks.iter().take_while(known).count();
            let kept = blocks.len().min(capacity);
            let mut evicted = 0;
            while self.blocks.len() + kept - hits > capacity {
                // A parent was used after its children, so that the oldest block has none.
                let others = self
                    .blocks
                    .iter()
                    .filter(|(id, _)| !blocks[..hits].contains(id));
                let oldest = *others.min_by_key(|(_, used)| **used).unwrap().0;
                self.blocks.remove(&oldest);
                evicted += 1;
            }
            for &block in blocks[..kept].iter().rev() {
                self.now += 1;
                self.blocks.insert(block, self.now);
            }
            Served {
                hits,
                evicted,
                refused: blocks.len() - kept,
            }
        }
    }

    proptest! {
        #[test]
        fn lru_is_tail_first_lru_of_blocks(requests in prefixes(60), capacity in 1..40_usize) {
            let trace = trace(&requests);
            let mut tree = Tree::new(Box::new(Lru::default()), capacity).unwrap();
            let mut model = Model::default();
            for request in trace.requests() {
                let served = tree.serve(&request).unwrap();
                prop_assert_eq!(served, model.serve(request.blocks, capacity));
                prop_assert_eq!(tree.tree.validate(), Ok(()));
                let mut held: Vec<u32> = tree.tree.all_blocks().collect();
                held.sort_unstable();
                let mut expected: Vec<u32> = model.blocks.keys().copied().collect();
                expected.sort_unstable();
                prop_assert_eq!(held, expected);
            }
        }
    }

    #[test]
    fn a_request_that_is_larger_than_the_cache_keeps_its_head() {
        let trace = trace(&[vec![7, 8], vec![0, 1, 2, 3, 4], vec![0, 1, 2, 9], vec![]]);
        let mut tree = Tree::new(Box::new(Lru::default()), 3).unwrap();
        let served: Vec<_> = trace
            .requests()
            .map(|request| tree.serve(&request).unwrap())
            .collect();
        let large = Served {
            hits: 0,
            evicted: 2,
            refused: 2,
        };
        assert_eq!((served[1], served[2].hits), (large, 3));
        assert_eq!(served[3], Served::default());
    }
}
