//! First in, first out.

use super::ranked::Ranking;
use super::ranks::{Held, Stamps};
use crate::policy::EntryMeta;

/// The textbook's queue: evicts what came first, used since or not, the baseline that takes no notice of uses. O(log n) a call.
///
/// An entry's age is when it came; both parts of one that is split came when it did, and the lower part goes first.
#[derive(Debug, Default)]
pub(super) struct Fifo {
    stamps: Stamps,
}

impl Ranking for Fifo {
    type History = u64;
    type Rank = u64;

    fn inserted(&mut self, _ghost: u64, _meta: &EntryMeta) -> u64 {
        self.stamps.next()
    }

    fn used(&mut self, _entry: &mut Held<u64>) {}

    fn rank(&self, entry: &Held<u64>) -> u64 {
        entry.history
    }
}
