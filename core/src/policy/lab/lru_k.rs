//! LRU-K, with K = 2.

use super::ranked::Ranking;
use super::ranks::{Held, Stamps};
use crate::policy::EntryMeta;
use crate::policy::ghosts::Ghosts;

#[derive(Clone, Copy, Debug)]
pub(super) struct Uses {
    last: u64,
    /// The use before the last one that counts as another; 0 if there was none.
    before: u64,
    /// The request of the last use.
    request: u64,
}

/// LRU-2 (O'Neil, O'Neil and Weikum, SIGMOD'93): evicts the candidate whose use before the last is oldest; those used once go
/// first, in the order of that use. O(log n) a call.
///
/// Uses in one request are correlated and count as one (the paper's correlated reference period, by requests instead of
/// seconds; where nobody tells of requests, every use counts). The uses of evicted entries are remembered until names of as much
/// as the cache holds were added since (the paper's retained information period, by volume instead of seconds).
#[derive(Debug)]
pub(super) struct LruK {
    capacity: u64,
    stamps: Stamps,
    requests: u64,
    ghosts: Ghosts<Uses>,
}

impl LruK {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            capacity,
            stamps: Stamps::default(),
            requests: 0,
            ghosts: Ghosts::default(),
        }
    }

    fn use_again(&mut self, uses: Uses) -> Uses {
        let last = self.stamps.next();
        let correlated = self.requests > 0 && uses.request == self.requests;
        Uses {
            last,
            before: if correlated { uses.before } else { uses.last },
            request: self.requests,
        }
    }
}

impl Ranking for LruK {
    type History = Uses;
    type Rank = (u64, u64);
    const WANTS_GHOSTS: bool = true;

    fn request(&mut self, _now_ms: u64, _category: u32) {
        self.requests += 1;
    }

    fn inserted(&mut self, ghost: u64, _meta: &EntryMeta) -> Uses {
        // Only now, so that what makes room for an entry does not push out its own name.
        let remembered = self.ghosts.take(ghost);
        self.ghosts.shrink(self.capacity);
        match remembered {
            Some(uses) => self.use_again(uses),
            None => Uses {
                last: self.stamps.next(),
                before: 0,
                request: self.requests,
            },
        }
    }

    fn used(&mut self, entry: &mut Held<Uses>) {
        entry.history = self.use_again(entry.history);
    }

    fn renewed(&mut self, entry: &mut Held<Uses>) {
        entry.history.last = self.stamps.next();
    }

    fn evicted(&mut self, history: &Uses, ghost: u64, weight: u64) {
        self.ghosts.add(ghost, weight, *history);
    }

    fn rank(&self, entry: &Held<Uses>) -> (u64, u64) {
        (entry.history.before, entry.history.last)
    }

    fn validate(&self, _ranks: &super::ranks::Ranks<Uses, (u64, u64)>) -> Result<(), String> {
        self.ghosts.validate()
    }
}
