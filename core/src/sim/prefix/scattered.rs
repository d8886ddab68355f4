//! Caches that do not keep to leaves: the bad examples.

use std::collections::VecDeque;

use super::{Cache, Served};
use crate::error::Result;
use crate::sim::trace::Request;

/// Blocks in one list, by their last use (`lru_root_first`) or by when they came in (`fifo_root_first`, which is what
/// kvcache-simulator calls fifo). A request's first block is its oldest: so heads go before tails, and what hangs from a head that
/// went takes room and can no longer be reached. A request that is larger than the cache pushes its own head out. Takes
/// prefix ids.
///
/// O(1) a block, amortised: a use appends to the list, and what it was before is skipped when its turn comes.
#[derive(Debug)]
pub(super) struct Scattered {
    /// Uses, the oldest first: a block and when.
    uses: VecDeque<(u32, u64)>,
    /// When each block was last used; 0 if it is not in.
    last: Vec<u64>,
    now: u64,
    held: usize,
    capacity: usize,
    /// Whether a use counts, or only coming in.
    recency: bool,
}

impl Scattered {
    pub(super) fn lru(capacity: usize) -> Self {
        Self::new(capacity, true)
    }

    pub(super) fn fifo(capacity: usize) -> Self {
        Self::new(capacity, false)
    }

    fn new(capacity: usize, recency: bool) -> Self {
        Self {
            recency,
            uses: VecDeque::new(),
            last: Vec::new(),
            now: 0,
            held: 0,
            capacity,
        }
    }

    fn used(&mut self, block: u32) {
        self.now += 1;
        self.last[block as usize] = self.now;
        self.uses.push_back((block, self.now));
        if self.uses.len() > 2 * self.held + 1024 {
            let last = &self.last;
            self.uses
                .retain(|&(block, when)| last[block as usize] == when);
        }
    }

    fn evict(&mut self) {
        while let Some((block, when)) = self.uses.pop_front() {
            if self.last[block as usize] == when {
                self.last[block as usize] = 0;
                self.held -= 1;
                return;
            }
        }
    }
}

impl Cache for Scattered {
    fn serve(&mut self, request: &Request<'_>) -> Result<Served> {
        let blocks = request.blocks;
        let most = blocks.iter().max().map_or(0, |&block| block as usize + 1);
        if most > self.last.len() {
            self.last.resize(most, 0);
        }
        let resident = |block: &&u32| self.last[**block as usize] != 0;
        let hits = blocks.iter().take_while(resident).count();
        let mut evicted = 0;
        for &block in blocks {
            let new = self.last[block as usize] == 0;
            if new {
                if self.held == self.capacity {
                    self.evict();
                    evicted += 1;
                }
                self.held += 1;
            }
            if new || self.recency {
                self.used(block);
            }
        }
        Ok(Served {
            hits,
            evicted,
            refused: 0,
        })
    }

    fn held(&self) -> usize {
        self.held
    }
}
