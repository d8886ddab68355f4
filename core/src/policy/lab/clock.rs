//! CLOCK: FIFO with a second chance.

use super::ranked::Ranking;
use super::ranks::{Held, Ranks, Stamps};
use crate::policy::{EntryMeta, Slot};

#[derive(Clone, Copy, Debug)]
pub(super) struct Chance {
    /// When it came, or was last passed over.
    stamp: u64,
    /// Whether it was used since.
    used: bool,
}

/// CLOCK (Corbató, "A paging experiment with the Multics system", 1968): entries stand in a ring; a hand goes round, spares those
/// that were used since it last came by, and evicts the first that was not. One bit an entry, as in the paper.
///
/// The ring is a queue here, in which what is spared goes to the end. O(log n) a call, amortised: every use pays for one step of
/// the hand. The hand passes candidates only; an entry that becomes one stands where it stood before, so if the hand has gone
/// past it meanwhile it comes next.
#[derive(Debug, Default)]
pub(super) struct Clock {
    stamps: Stamps,
}

impl Ranking for Clock {
    type History = Chance;
    type Rank = u64;

    fn inserted(&mut self, _ghost: u64, _meta: &EntryMeta) -> Chance {
        Chance {
            stamp: self.stamps.next(),
            used: false,
        }
    }

    fn used(&mut self, entry: &mut Held<Chance>) {
        entry.history.used = true;
    }

    fn renewed(&mut self, _entry: &mut Held<Chance>) {}

    fn rank(&self, entry: &Held<Chance>) -> u64 {
        entry.history.stamp
    }

    fn choose(&mut self, ranks: &mut Ranks<Chance, u64>) -> Option<Slot> {
        loop {
            let slot = ranks.first()?;
            if !ranks.get(slot)?.history.used {
                return Some(slot);
            }
            let stamp = self.stamps.next();
            ranks.update(slot, |held| {
                held.history = Chance { stamp, used: false };
                stamp
            });
        }
    }
}
