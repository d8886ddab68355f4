//! The length-aware policy of Mooncake.

use std::cmp::Reverse;

use super::ranked::Ranking;
use super::ranks::{Held, Stamps};
use crate::policy::EntryMeta;

#[derive(Clone, Copy, Debug)]
pub(super) struct Uses {
    count: u64,
    last: u64,
}

/// `LengthAwareCache` (Qin et al., "Mooncake", arXiv 2407.00079, Table 1): least frequently used, and of those the blocks that
/// stand late in a request first, then the one that was used longest ago. O(log n) a call.
///
/// The paper says no more than "similar to LFU but prioritising evicting cache blocks occurring later in requests"; that
/// frequency comes before position is our reading. How late an entry stands is where it begins. Uses are not aged, and those of
/// evicted entries are forgotten.
#[derive(Debug, Default)]
pub(super) struct LengthAware {
    stamps: Stamps,
}

impl Ranking for LengthAware {
    type History = Uses;
    type Rank = (u64, Reverse<u32>, u64);

    fn inserted(&mut self, _ghost: u64, _meta: &EntryMeta) -> Uses {
        Uses {
            count: 1,
            last: self.stamps.next(),
        }
    }

    fn used(&mut self, entry: &mut Held<Uses>) {
        entry.history = Uses {
            count: entry.history.count + 1,
            last: self.stamps.next(),
        };
    }

    fn renewed(&mut self, entry: &mut Held<Uses>) {
        entry.history.last = self.stamps.next();
    }

    fn rank(&self, entry: &Held<Uses>) -> Self::Rank {
        let Uses { count, last } = entry.history;
        (count, Reverse(entry.meta.depth), last)
    }
}
