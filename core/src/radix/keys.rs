//! Block keys of what the tree holds: computed when asked for, remembered at the end of each node.

use super::tree::{Match, RadixTree};
use crate::error::{Error, Result};
use crate::key::{BlockKey, chain_end, chain_keys};

impl RadixTree {
    /// The key of the last matched block; the namespace for a miss. Hashes only what no node remembers, and remembers it where
    /// the match ends with a node (as it does once it is locked).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if blocks of the match were evicted since.
    pub fn path_key(&mut self, found: &Match) -> Result<BlockKey> {
        let Some(node) = self.resolve(found)? else {
            return Ok(*found.namespace());
        };
        let inside = found.blocks() - self.arena[node].start as usize;
        Ok(self.key_inside(node, inside))
    }

    /// The keys of the whole blocks of `beyond`, the tokens that follow a match.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if blocks of the match were evicted since.
    pub fn keys_for(&mut self, found: &Match, beyond: &[u32]) -> Result<Vec<BlockKey>> {
        let parent = self.path_key(found)?;
        let mut keys = Vec::with_capacity(beyond.len() / self.block_tokens);
        chain_keys(parent, beyond, self.block_tokens, &mut keys);
        Ok(keys)
    }

    /// Tells the tree the key of the last block of a path, for a caller that computed it anyway; the chain is its duty. Kept
    /// where the path ends with a node.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the path is empty, or blocks of it were evicted since.
    pub fn remember_key(&mut self, path: &Match, key: BlockKey) -> Result<()> {
        let node = self.resolve(path)?.ok_or_else(|| {
            Error::invalid("an empty path has its namespace for a key; there is none to remember")
        })?;
        let node = &mut self.arena[node];
        if node.end() == path.blocks() {
            node.last_key = Some(key);
        }
        Ok(())
    }

    /// The key at the end of a node, remembered there and in its ancestors.
    pub(super) fn end_key(&mut self, index: u32) -> BlockKey {
        let mut unknown = Vec::new();
        let mut key = BlockKey::default();
        for index in self.arena.path(index) {
            match self.arena[index].last_key {
                Some(known) => {
                    key = known;
                    break;
                }
                None => unknown.push(index),
            }
        }
        for index in unknown.into_iter().rev() {
            let node = &mut self.arena[index];
            key = chain_end(key, node.tokens(), self.block_tokens);
            node.last_key = Some(key);
        }
        key
    }

    /// The key of a node's block number `blocks`, counted from 1.
    pub(super) fn key_inside(&mut self, index: u32, blocks: usize) -> BlockKey {
        let node = &self.arena[index];
        if blocks == node.blocks().len() {
            return self.end_key(index);
        }
        let parent = self.end_key(node.parent);
        let tokens = &self.arena[index].tokens()[..blocks * self.block_tokens];
        chain_end(parent, tokens, self.block_tokens)
    }
}
