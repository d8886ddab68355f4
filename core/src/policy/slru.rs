//! Segmented LRU.

use super::queue::Queues;
use super::{EntryMeta, EvictionPolicy, Slot};

pub(super) const PROBATION: usize = 0;
pub(super) const PROTECTED: usize = 1;

/// The most bytes of `capacity` that are protected: 4/5.
pub(super) const fn protected_share(capacity: u64) -> u64 {
    capacity - capacity / 5
}

/// An entry that was used becomes protected. The oldest beyond `limit` bytes are on probation again, as if used just now.
pub(super) fn protect<X: Copy, const N: usize>(queues: &mut Queues<X, N>, slot: Slot, limit: u64) {
    queues.send(slot, PROTECTED);
    while queues.bytes(PROTECTED) > limit
        && let Some(oldest) = queues.oldest(PROTECTED)
    {
        queues.send(oldest, PROBATION);
    }
}

/// The candidate of both segments that goes first.
pub(super) fn victim<X: Copy, const N: usize>(queues: &Queues<X, N>) -> Option<Slot> {
    let on_probation = queues.oldest_candidate(PROBATION);
    on_probation.or_else(|| queues.oldest_candidate(PROTECTED))
}

/// Two LRU lists. What is new is on probation; what is used there becomes protected. When what is protected exceeds its share of the
/// bytes, the least recently used of it is on probation again, as if used just now. The victim is the least recently used candidate
/// on probation, or, if there is none, of what is protected (Karedla, Love, Wherry, "Caching strategies to improve disk system
/// performance", IEEE Computer 27(3), 1994).
///
/// In a prefix tree all entries age as they do flat; only the choice of the victim is among candidates. A head that is split off an
/// entry is in its list, with its stamp.
///
/// Costs amortised O(log n) a call (what is demoted was promoted by a use), some 70 bytes an entry and 24 more as a candidate. Its
/// parameter is the protected share of the bytes, 4/5.
#[derive(Debug)]
pub struct Slru {
    protected_bytes: u64,
    queues: Queues<(), 2>,
}

impl Slru {
    /// For a tier of `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        Self {
            protected_bytes: protected_share(capacity),
            queues: Queues::default(),
        }
    }
}

impl EvictionPolicy for Slru {
    fn insert(&mut self, slot: Slot, _ghost: u64, meta: EntryMeta) {
        self.queues.insert(slot, PROBATION, meta.bytes, ());
    }

    fn touch(&mut self, slot: Slot) {
        protect(&mut self.queues, slot, self.protected_bytes);
    }

    fn renew(&mut self, slot: Slot) {
        self.queues.renew(slot);
    }

    fn split(
        &mut self,
        head: Slot,
        head_meta: EntryMeta,
        tail: Slot,
        _tail_ghost: u64,
        tail_meta: EntryMeta,
    ) {
        self.queues
            .split(head, head_meta.bytes, tail, tail_meta.bytes);
    }

    fn trim(&mut self, slot: Slot, _ghost: u64, meta: EntryMeta) {
        self.queues.resize(slot, meta.bytes);
    }

    fn set_candidate(&mut self, slot: Slot, candidate: bool) {
        self.queues.set_candidate(slot, candidate);
    }

    fn remove(&mut self, slot: Slot) {
        self.queues.remove(slot);
    }

    fn victim(&mut self) -> Option<Slot> {
        victim(&self.queues)
    }

    fn candidates(&self) -> usize {
        self.queues.candidates()
    }

    fn validate(&self) -> Result<(), String> {
        self.queues.validate()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Slru;
    use crate::policy::testing::{CAPACITY, Row, Rules, agree, first, steps};

    /// Queue 0 is on probation, queue 1 is protected.
    struct Segments;

    impl Rules for Segments {
        fn touched(&mut self, row: usize, rows: &mut [Row], now: &mut u64) {
            (rows[row].queue, rows[row].stamp) = (1, *now);
            loop {
                let mut protected = rows
                    .iter_mut()
                    .filter(|row| row.queue == 1)
                    .collect::<Vec<_>>();
                let bytes = protected.iter().map(|row| row.meta.bytes).sum::<u64>();
                if bytes <= CAPACITY - CAPACITY / 5 {
                    return;
                }
                protected.sort_by_key(|row| (row.stamp, row.slot));
                *now += 1;
                (protected[0].queue, protected[0].stamp) = (0, *now);
            }
        }

        fn renewed(&mut self, row: usize, rows: &mut [Row], now: &mut u64) {
            rows[row].stamp = *now;
        }

        fn victim(&mut self, rows: &mut [Row], _now: &mut u64) -> Option<usize> {
            first(rows, |row| Some((row.queue, row.stamp)))
        }
    }

    proptest! {
        #[test]
        fn it_is_two_lists(steps in steps()) {
            agree(&mut Slru::new(CAPACITY), Segments, steps)?;
        }
    }
}
