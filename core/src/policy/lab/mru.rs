//! Most recently used.

use std::cmp::Reverse;

use super::ranked::Ranking;
use super::ranks::{Held, Stamps};
use crate::policy::EntryMeta;

/// Evicts the candidate that was used last: best for loops that are larger than the cache (Chou and `DeWitt`, VLDB'85), bad for
/// nearly all else. O(log n) a call.
///
/// Among leaves this takes the end of the prompt that has just come, and then the next piece above it.
#[derive(Debug, Default)]
pub(super) struct Mru {
    stamps: Stamps,
}

impl Ranking for Mru {
    type History = u64;
    type Rank = Reverse<u64>;

    fn inserted(&mut self, _ghost: u64, _meta: &EntryMeta) -> u64 {
        self.stamps.next()
    }

    fn used(&mut self, entry: &mut Held<u64>) {
        entry.history = self.stamps.next();
    }

    fn rank(&self, entry: &Held<u64>) -> Reverse<u64> {
        Reverse(entry.history)
    }
}
