//! Checks of everything that must hold between the tree's structures.

use std::collections::HashMap;

use super::arena::NONE;
use super::tree::{RadixStats, RadixTree};
use crate::key::{BlockKey, chain_end};

impl RadixTree {
    /// Checks nodes, links, hash table, locks, counters, remembered keys and the policy. Costs O(all tokens), hashed: for tests
    /// and `kvlab verify`.
    ///
    /// # Errors
    /// A description of the first thing that is wrong.
    pub fn validate(&self) -> Result<(), String> {
        let mut held: HashMap<u32, u32> = HashMap::new();
        for node in self.locks.held() {
            *held.entry(node).or_default() += 1;
        }
        let mut counted = RadixStats::default();
        let (mut live, mut whole, mut candidates) = (0, 0, 0);
        for (namespace, &root) in &self.roots {
            if self.arena[root].last_key != Some(*namespace) || self.arena[root].is_leaf() {
                return Err(format!("root {root} is empty or not that of {namespace}"));
            }
            let nodes = self.subtree(root);
            if let Some(names) = &self.names {
                names.validate(&self.arena, namespace, &nodes, self.block_tokens)?;
            }
            let mut ends: HashMap<u32, BlockKey> = HashMap::new();
            for index in nodes {
                live += 1;
                let node = &self.arena[index];
                self.check_links(index)?;
                let below = self.arena.siblings(node.children);
                let below = below.chain(self.arena.siblings(node.tails));
                let locks = below.map(|child| self.arena[child].locks).sum::<u32>();
                if node.locks != locks + held.remove(&index).unwrap_or(0) {
                    return Err(format!("node {index} counts {} locks", node.locks));
                }
                if index == root {
                    ends.insert(root, *namespace);
                    continue;
                }
                let before = ends.get(&node.parent).copied().unwrap_or_default();
                let end = chain_end(before, node.tokens(), self.block_tokens);
                if node.last_key.is_some_and(|key| key != end) {
                    return Err(format!("node {index} remembers a wrong key"));
                }
                ends.insert(index, end);
                let partial = node.is_partial(self.block_tokens);
                self.check_node(index, partial)?;
                whole += usize::from(!partial);
                candidates += usize::from(node.is_leaf() && node.locks == 0);
                counted.nodes += 1;
                counted.leaves += usize::from(node.is_leaf());
                counted.total_blocks += node.blocks().len();
                if node.locks > 0 {
                    counted.protected_blocks += node.blocks().len();
                }
            }
        }
        let found = [live, whole, candidates, held.len()];
        let listed = [
            self.arena.live(),
            self.table.len(),
            self.policy.candidates(),
            0,
        ];
        if found != listed {
            return Err(format!(
                "live nodes, whole nodes, candidates and stray locks are {found:?}, listed are {listed:?}"
            ));
        }
        if counted != self.stats {
            return Err(format!("counted {counted:?}, kept {:?}", self.stats));
        }
        self.policy.validate()
    }

    fn check_links(&self, index: u32) -> Result<(), String> {
        let node = &self.arena[index];
        for (first, partial) in [(node.children, false), (node.tails, true)] {
            let mut previous = NONE;
            for child in self.arena.siblings(first) {
                let below = &self.arena[child];
                if below.parent != index || below.previous != previous {
                    return Err(format!("node {child} is not linked below {index}"));
                }
                if below.is_partial(self.block_tokens) != partial {
                    return Err(format!("node {child} is in the wrong list of {index}"));
                }
                if below.start as usize != node.end() {
                    return Err(format!("node {child} does not start where {index} ends"));
                }
                previous = child;
            }
        }
        Ok(())
    }

    fn check_node(&self, index: u32, partial: bool) -> Result<(), String> {
        let node = &self.arena[index];
        let (tokens, blocks) = (node.tokens().len(), node.blocks().len());
        if partial {
            if blocks != 1 || tokens == 0 || !node.is_leaf() {
                return Err(format!("partial node {index} is no leaf of one block"));
            }
            return Ok(());
        }
        if blocks == 0 || tokens != blocks * self.block_tokens {
            return Err(format!("node {index}: {tokens} tokens in {blocks} blocks"));
        }
        let first = &node.tokens()[..self.block_tokens];
        if node.hash != self.hash(node.parent, first)
            || self.child(node.parent, first) != Some(index)
        {
            return Err(format!("node {index} is not found by its first block"));
        }
        Ok(())
    }
}
