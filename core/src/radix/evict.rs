//! Giving blocks up: leaves first, in the policy's order.

use super::arena::{NONE, Node};
use super::tree::RadixTree;
use crate::key::BlockKey;

/// Consecutive blocks that left the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evicted {
    namespace: BlockKey,
    parent_key: Option<BlockKey>,
    /// Token ids, then block ids.
    data: Box<[u32]>,
    blocks: usize,
    partial: bool,
}

impl Evicted {
    /// The namespace they were in.
    pub fn namespace(&self) -> &BlockKey {
        &self.namespace
    }

    /// Key of the block before the first one, where it was asked for: what the chain of their own keys starts from.
    pub fn parent_key(&self) -> Option<&BlockKey> {
        self.parent_key.as_ref()
    }

    /// Their tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.data[..self.data.len() - self.blocks]
    }

    /// Their ids.
    pub fn blocks(&self) -> &[u32] {
        &self.data[self.data.len() - self.blocks..]
    }

    /// Whether this is one block that is not full: it has no key and goes to no other tier.
    pub fn is_partial(&self) -> bool {
        self.partial
    }
}

/// What became of a namespace that was cleared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleared {
    /// Blocks that the tree gave up.
    pub blocks: Vec<u32>,
    /// Blocks that stay because they are locked.
    pub protected_blocks: usize,
}

impl RadixTree {
    /// Gives up `wanted` blocks, or all that are evictable, and appends them to `evicted` in the order in which they went;
    /// returns how many. A leaf that holds more than is still wanted gives up only its last blocks. Hashes nothing.
    ///
    /// Costs O(log nodes) a leaf, however many nodes there are and however many of them are locked.
    pub fn evict(&mut self, wanted: usize, evicted: &mut Vec<Evicted>) -> usize {
        self.evict_with(wanted, false, evicted)
    }

    /// As [`evict`](Self::evict), for an owner that moves the blocks to a lower tier: fills in
    /// [`parent_key`](Evicted::parent_key) of whole blocks. Hashes only what no node remembers.
    pub fn evict_keyed(&mut self, wanted: usize, evicted: &mut Vec<Evicted>) -> usize {
        self.evict_with(wanted, true, evicted)
    }

    fn evict_with(&mut self, wanted: usize, keyed: bool, evicted: &mut Vec<Evicted>) -> usize {
        let mut left = wanted;
        while left > 0
            && let Some(victim) = self.policy.victim()
        {
            let namespace = self.namespace_of(victim);
            let node = &self.arena[victim];
            let partial = node.is_partial(self.block_tokens);
            let held = node.blocks().len();
            let keep = held.saturating_sub(left);
            let parent = node.parent;
            let parent_key = (keyed && !partial).then(|| match keep {
                0 => self.end_key(parent),
                _ => self.key_inside(victim, keep),
            });
            let (data, blocks) = if keep == 0 {
                self.policy.evicted(victim);
                self.remove_leaf(victim).into_data()
            } else {
                self.arena[victim].last_key = parent_key;
                (self.trim(victim, keep), left)
            };
            left -= blocks;
            evicted.push(Evicted {
                namespace,
                parent_key,
                data,
                blocks,
                partial,
            });
        }
        wanted - left
    }

    /// Cuts a leaf down to its first `keep` blocks; tokens and block ids of the rest.
    pub(super) fn trim(&mut self, leaf: u32, keep: usize) -> Box<[u32]> {
        let node = &mut self.arena[leaf];
        let blocks = node.blocks().len() - keep;
        let cut = node.truncate(keep * self.block_tokens, keep);
        self.stats.total_blocks -= blocks;
        let tokens = &cut[..cut.len() - blocks];
        let name = self.names.as_mut();
        let name = name.map_or(0, |names| names.trim(leaf, tokens, self.block_tokens));
        self.policy.trim(leaf, name, self.meta(leaf));
        cut
    }

    /// Drops all of a namespace that is not locked. What is locked, and the path above it, stays and can still be matched.
    pub fn remove_namespace(&mut self, namespace: &BlockKey) -> Cleared {
        let mut cleared = Cleared::default();
        let Some(&root) = self.roots.get(namespace) else {
            return cleared;
        };
        let nodes = self.subtree(root);
        // Children stand behind their parents: backwards, every unlocked node is a leaf when its turn comes.
        for &index in nodes.iter().skip(1).rev() {
            let node = &self.arena[index];
            if node.locks > 0 {
                cleared.protected_blocks += node.blocks().len();
            } else {
                self.policy.remove(index);
                cleared.blocks.extend(self.remove_leaf(index).blocks());
            }
        }
        cleared
    }

    /// The node and all below it, parents before their children.
    pub(super) fn subtree(&self, top: u32) -> Vec<u32> {
        let mut nodes = vec![top];
        let mut next = 0;
        while let Some(&index) = nodes.get(next) {
            let node = &self.arena[index];
            nodes.extend(self.arena.siblings(node.children));
            nodes.extend(self.arena.siblings(node.tails));
            next += 1;
        }
        nodes
    }

    /// Removes an unlocked leaf; its parent may become a candidate, a root without children goes.
    pub(super) fn remove_leaf(&mut self, index: u32) -> Node {
        let node = self.detach(index);
        let parent = &self.arena[node.parent];
        if !parent.is_root() {
            self.refresh_candidate(node.parent);
        } else if parent.is_leaf() {
            let root = self.arena.remove(node.parent);
            if let Some(namespace) = root.last_key {
                self.roots.remove(&namespace);
            }
        }
        node
    }

    pub(super) fn namespace_of(&self, index: u32) -> BlockKey {
        let mut root = index;
        while self.arena[root].parent != NONE {
            root = self.arena[root].parent;
        }
        self.arena[root].last_key.unwrap_or_default()
    }
}
