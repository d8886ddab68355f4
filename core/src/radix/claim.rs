//! A request in two steps, as a replay makes it: what is there is claimed, and what was missing goes in behind it.

use super::arena::{List, NONE};
use super::lock::LockId;
use super::tree::RadixTree;
use crate::error::{Error, Result};
use crate::key::BlockKey;

impl RadixTree {
    /// Finds the longest prefix of `tokens` in whole blocks and locks exactly that; gives back how many blocks it has. A node that
    /// reaches beyond it is split. Counts as no use: [`use_locked`](Self::use_locked) and [`extend`](Self::extend) do.
    pub fn claim(&mut self, namespace: &BlockKey, tokens: &[u32]) -> (LockId, usize) {
        let (node, matched) = self.find(namespace, tokens);
        if matched == 0 {
            return (self.lock_path(NONE), 0);
        }
        let blocks = matched / self.block_tokens;
        let lowest = self.split(node, blocks);
        (self.lock_path(lowest), blocks)
    }

    /// Counts a use of a locked path, the root's side last, and of nothing that hangs below it.
    ///
    /// # Errors
    /// [`Error::NotLocked`] if it was given back.
    pub fn use_locked(&mut self, lock: LockId) -> Result<()> {
        let lowest = self.locks.get(lock).ok_or(Error::NotLocked)?;
        self.touch(lowest);
        Ok(())
    }

    /// Puts in what follows a locked path: `blocks` hold `tokens`, whole blocks. Counts as one use of the path and of what is
    /// new, the root's side last. The lock stays on the path as it was. Gives back the
    /// partial block that the new ones made superfluous, if there was one.
    ///
    /// # Errors
    /// [`Error::NotLocked`]; [`Error::InvalidArgument`] for a number of tokens other than that of the blocks, or if the tree has
    /// the first of them already. Nothing is changed then.
    pub fn extend(
        &mut self,
        lock: LockId,
        namespace: &BlockKey,
        tokens: &[u32],
        blocks: &[u32],
    ) -> Result<Option<u32>> {
        let lowest = self.locks.get(lock).ok_or(Error::NotLocked)?;
        if tokens.len() != blocks.len() * self.block_tokens {
            return Err(Error::invalid(format!(
                "{} tokens do not fill {} blocks of {}",
                tokens.len(),
                blocks.len(),
                self.block_tokens
            )));
        }
        if blocks.is_empty() {
            self.touch(lowest);
            return Ok(None);
        }
        let parent = match lowest {
            NONE => self.root(namespace),
            lowest => lowest,
        };
        if self.child(parent, &tokens[..self.block_tokens]).is_some() {
            return Err(Error::invalid(
                "the tree has blocks behind this path that begin alike; claim the prefix again",
            ));
        }
        let displaced = self.displace_tail(parent, tokens);
        let leaf = self.attach(parent, tokens, blocks, List::Children);
        self.announce(leaf);
        self.touch(parent);
        self.refresh_candidate(leaf);
        Ok(displaced)
    }

    /// Gives up `wanted` blocks, or all that are evictable, as [`evict`](Self::evict) does, and tells `gone` the ids of each piece
    /// that went, in order; returns how many. For an owner that keeps no bytes: nothing is hashed.
    pub fn discard(&mut self, wanted: usize, mut gone: impl FnMut(&[u32])) -> usize {
        let mut left = wanted;
        while left > 0
            && let Some(victim) = self.policy.victim()
        {
            let node = &self.arena[victim];
            let held = node.blocks().len();
            let keep = held.saturating_sub(left);
            gone(&node.blocks()[keep..]);
            if keep == 0 {
                self.policy.evicted(victim);
                self.remove_leaf(victim);
            } else {
                self.arena[victim].last_key = None;
                self.trim(victim, keep);
            }
            left -= held - keep;
        }
        wanted - left
    }

    /// Gives up the blocks whose time the policy says is over, and tells `gone` the ids of each piece; returns how many. For an owner as that of
    /// [`discard`](Self::discard).
    pub fn discard_expired(&mut self, mut gone: impl FnMut(&[u32])) -> usize {
        let before = self.stats.total_blocks;
        while let Some(index) = self.policy.expired() {
            self.policy.remove(index);
            gone(self.remove_leaf(index).blocks());
        }
        before - self.stats.total_blocks
    }
}
