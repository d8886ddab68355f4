//! Path locks: what is locked, and all above it, is never evicted.

use super::arena::NONE;
use super::tree::{Match, RadixTree};
use crate::error::{Error, Result};

/// A lock that is held until [`RadixTree::unlock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LockId {
    slot: u32,
    generation: u32,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    /// The lowest locked node, [`NONE`] for a lock on a miss.
    node: u32,
    generation: u32,
    live: bool,
}

/// Locks that are held, in places that are reused.
#[derive(Debug, Default)]
pub(super) struct LockTable {
    slots: Vec<Held>,
    vacant: Vec<u32>,
}

impl LockTable {
    fn insert(&mut self, node: u32) -> LockId {
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(Held {
                node,
                generation: 0,
                live: false,
            });
            (self.slots.len() - 1) as u32
        });
        let place = &mut self.slots[slot as usize];
        place.node = node;
        place.live = true;
        LockId {
            slot,
            generation: place.generation,
        }
    }

    fn remove(&mut self, id: LockId) -> Option<u32> {
        let place = self.slots.get_mut(id.slot as usize)?;
        if !place.live || place.generation != id.generation {
            return None;
        }
        place.live = false;
        place.generation = place.generation.wrapping_add(1);
        self.vacant.push(id.slot);
        Some(place.node)
    }

    pub(super) fn get(&self, id: LockId) -> Option<u32> {
        let place = self.slots.get(id.slot as usize)?;
        (place.live && place.generation == id.generation).then_some(place.node)
    }

    /// The lowest node of every lock that is held.
    pub(super) fn held(&self) -> impl Iterator<Item = u32> {
        let held = self.slots.iter().filter(|place| place.live);
        held.map(|place| place.node).filter(|&node| node != NONE)
    }
}

impl RadixTree {
    /// Locks the path of a match, so that none of its blocks is evicted; a node that reaches beyond it is split. Locks count:
    /// each wants its own [`unlock`](Self::unlock). A miss can be locked too, which protects nothing. Costs O(depth).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if blocks of the match were evicted since; nothing is changed then.
    pub fn lock(&mut self, found: &Match) -> Result<LockId> {
        let lowest = match self.resolve(found)? {
            Some(node) => self.split(node, found.blocks()),
            None => NONE,
        };
        Ok(self.lock_path(lowest))
    }

    /// Locks a node and all above it; [`NONE`] is a miss.
    pub(super) fn lock_path(&mut self, lowest: u32) -> LockId {
        let mut index = lowest;
        while index != NONE {
            let node = &mut self.arena[index];
            if node.locks == 0 {
                self.stats.protected_blocks += node.blocks().len();
            }
            node.locks += 1;
            index = node.parent;
        }
        if lowest != NONE {
            self.refresh_candidate(lowest);
        }
        self.locks.insert(lowest)
    }

    /// What a lock protects, as a match that stays right for as long as it is locked: a match from before the lock may name a
    /// node below, which can still be evicted. Costs O(depth).
    ///
    /// # Errors
    /// [`Error::NotLocked`] if it was given back.
    pub fn locked(&self, lock: LockId) -> Result<Match> {
        match self.locks.get(lock).ok_or(Error::NotLocked)? {
            NONE => Ok(Match::default()),
            lowest => {
                let tokens = self.arena[lowest].end() * self.block_tokens;
                Ok(self.match_at(self.namespace_of(lowest), lowest, tokens))
            }
        }
    }

    /// Gives a lock back. Does not count as a use. Costs O(depth).
    ///
    /// # Errors
    /// [`Error::NotLocked`] if it was given back already; nothing is changed then.
    pub fn unlock(&mut self, lock: LockId) -> Result<()> {
        let lowest = self.locks.remove(lock).ok_or(Error::NotLocked)?;
        let mut index = lowest;
        while index != NONE {
            let node = &mut self.arena[index];
            node.locks -= 1;
            if node.locks == 0 {
                self.stats.protected_blocks -= node.blocks().len();
            }
            index = node.parent;
        }
        if lowest != NONE {
            self.refresh_candidate(lowest);
        }
        Ok(())
    }
}
