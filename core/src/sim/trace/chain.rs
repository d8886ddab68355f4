//! Ids that stand for a block and all that comes before it.

use std::borrow::Cow;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{BlockTokens, Trace};

/// Before the first block of a request.
const ROOT: u32 = u32::MAX;

impl Trace {
    /// The trace with an id for each node of its prefix tree: two blocks have the same id if they and all before them are equal.
    /// A source whose ids already are like that (Mooncake, Claude Code sessions) is borrowed as it is.
    ///
    /// Costs O(block references), and a hash of each where ids are not like that.
    pub fn prefix_ids(&self) -> Cow<'_, Self> {
        if self.has_prefix_ids() {
            return Cow::Borrowed(self);
        }
        let mut nodes: HashMap<(u32, u32), u32, FixedState> = HashMap::default();
        let mut content = Vec::new();
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for request in self.requests() {
            let mut parent = ROOT;
            for &block in request.blocks {
                let next = content.len() as u32;
                parent = *nodes.entry((parent, block)).or_insert_with(|| {
                    content.push(block);
                    next
                });
                blocks.push(parent);
            }
        }
        let block_tokens = match &self.block_tokens {
            BlockTokens::Each(lengths) => {
                BlockTokens::Each(content.iter().map(|&id| lengths[id as usize]).collect())
            }
            other => other.clone(),
        };
        Cow::Owned(Self {
            block_tokens,
            blocks,
            unique_blocks: content.len(),
            ..self.columns()
        })
    }

    /// Whether every block comes behind the same block wherever it appears.
    pub fn has_prefix_ids(&self) -> bool {
        let mut parents: Vec<u32> = Vec::with_capacity(self.unique_blocks);
        self.requests().all(|request| {
            let mut before = ROOT;
            request.blocks.iter().all(|&block| {
                let parent = std::mem::replace(&mut before, block);
                if let Some(&known) = parents.get(block as usize) {
                    return known == parent;
                }
                // Ids are numbered in the order of their appearance: it is the next one.
                parents.push(parent);
                true
            })
        })
    }

    /// All but the blocks.
    pub(super) fn columns(&self) -> Self {
        Self {
            block_tokens: BlockTokens::Even,
            blocks: Vec::new(),
            ends: self.ends.clone(),
            at_ms: self.at_ms.clone(),
            tokens: self.tokens.clone(),
            output_tokens: self.output_tokens.clone(),
            sessions: self.sessions.clone(),
            categories: self.categories.clone(),
            unique_blocks: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::collections::HashMap;

    use proptest::prelude::*;

    use crate::sim::trace::testing::{prefixes, trace};

    #[test]
    fn a_piece_in_two_places_is_two_nodes() {
        let pieces = trace(&[vec![1, 2, 3], vec![2, 3], vec![1, 2, 3, 3]]);
        assert!(!pieces.has_prefix_ids());
        let nodes = pieces.prefix_ids();
        assert_eq!(nodes.blocks(), [0, 1, 2, 3, 4, 0, 1, 2, 5]);
        assert_eq!(nodes.unique_blocks(), 6);
        assert_eq!(nodes.validate(), Ok(()));
    }

    proptest! {
        #[test]
        fn prefix_ids_are_kept(requests in prefixes(20)) {
            let trace = trace(&requests);
            prop_assert!(matches!(trace.prefix_ids(), Cow::Borrowed(_)));
        }

        /// Against a table of whole prefixes.
        #[test]
        fn a_node_is_a_prefix(requests in prop::collection::vec(prop::collection::vec(0..4_u64, 0..6), 1..12)) {
            let trace = trace(&requests);
            let nodes = trace.prefix_ids();
            prop_assert_eq!(nodes.validate(), Ok(()));
            prop_assert!(nodes.has_prefix_ids());
            let mut known = HashMap::new();
            for (request, blocks) in nodes.requests().zip(&requests) {
                prop_assert_eq!(request.blocks.len(), blocks.len());
                for (end, &node) in request.blocks.iter().enumerate() {
                    prop_assert_eq!(*known.entry(&blocks[..=end]).or_insert(node), node);
                }
            }
            prop_assert_eq!(known.len(), nodes.unique_blocks());
        }
    }
}
