//! SIEVE.

use std::collections::BTreeSet;

use super::slots::{Place, Slots};
use super::{EntryMeta, EvictionPolicy, Slot};

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// When it came in.
    stamp: u64,
    visited: bool,
    candidate: bool,
}

/// A queue in order of arrival that no use changes: a use marks the entry. A hand goes from old to new: what is marked loses its
/// mark and stays, the first without one is the victim, and the hand goes on from there; behind the newest it starts again at the
/// oldest (Zhang, Yang, Yue, Vigfusson, Rashmi, "SIEVE is simpler than LRU", NSDI 2024).
///
/// In a prefix tree the hand passes over what is no candidate as if it were not there: it keeps place and mark. A head that is
/// split off an entry takes a copy of both.
///
/// Costs amortised O(log n) a call (a mark that the hand removes was set by a use, which pays for it), some 24 bytes an entry and
/// 24 a candidate. No parameters.
#[derive(Debug, Default)]
pub struct Sieve {
    clock: u64,
    /// The hand stands at the first candidate from here on.
    hand: Place<u64>,
    slots: Slots<Entry>,
    /// Candidates in order of arrival.
    queue: BTreeSet<Place<u64>>,
}

impl EvictionPolicy for Sieve {
    fn insert(&mut self, slot: Slot, _ghost: u64, _meta: EntryMeta) {
        self.clock += 1;
        let entry = Entry {
            stamp: self.clock,
            visited: false,
            candidate: false,
        };
        self.slots.insert(slot, entry);
    }

    fn touch(&mut self, slot: Slot) {
        if let Some(entry) = self.slots.get_mut(slot) {
            entry.visited = true;
        }
    }

    fn renew(&mut self, _slot: Slot) {}

    fn split(
        &mut self,
        head: Slot,
        _head_meta: EntryMeta,
        tail: Slot,
        _tail_ghost: u64,
        _tail_meta: EntryMeta,
    ) {
        if let Some(&entry) = self.slots.get(tail) {
            let candidate = false;
            self.slots.insert(head, Entry { candidate, ..entry });
        }
    }

    fn trim(&mut self, _slot: Slot, _ghost: u64, _meta: EntryMeta) {}

    fn set_candidate(&mut self, slot: Slot, candidate: bool) {
        let Some(entry) = self.slots.get_mut(slot) else {
            return;
        };
        entry.candidate = candidate;
        if candidate {
            self.queue.insert((entry.stamp, slot));
        } else {
            self.queue.remove(&(entry.stamp, slot));
        }
    }

    fn evicted(&mut self, slot: Slot) {
        if let Some(entry) = self.slots.get(slot)
            && (entry.stamp, slot) == self.hand
        {
            // Behind the newest, the hand is at the oldest again, whatever comes in meanwhile.
            let next = self.queue.range((entry.stamp, slot)..).nth(1);
            self.hand = next.copied().unwrap_or_default();
        }
        self.remove(slot);
    }

    fn remove(&mut self, slot: Slot) {
        self.set_candidate(slot, false);
        self.slots.remove(slot);
    }

    fn victim(&mut self) -> Option<Slot> {
        let first = *self.queue.first()?;
        let mut at = self
            .queue
            .range(self.hand..)
            .next()
            .copied()
            .unwrap_or(first);
        loop {
            self.hand = at;
            let entry = self.slots.get_mut(at.1)?;
            if !std::mem::take(&mut entry.visited) {
                return Some(at.1);
            }
            at = self.queue.range(at..).nth(1).copied().unwrap_or(first);
        }
    }

    fn candidates(&self) -> usize {
        self.queue.len()
    }

    fn validate(&self) -> Result<(), String> {
        let candidates = self.slots.iter().filter(|(_, entry)| entry.candidate);
        let expected = candidates.map(|(slot, entry)| (entry.stamp, slot));
        let expected = expected.collect::<BTreeSet<_>>();
        (expected == self.queue).then_some(()).ok_or_else(|| {
            format!(
                "the queue is {:?}, its entries make {expected:?}",
                self.queue
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Sieve;
    use crate::policy::Slot;
    use crate::policy::testing::{Row, Rules, agree, first, steps};

    /// A use is a mark.
    #[derive(Default)]
    struct Hand {
        at: (u64, Slot),
    }

    /// The candidate from a place on, in order of arrival.
    fn from(rows: &[Row], place: (u64, Slot)) -> Option<usize> {
        first(rows, |row| {
            let own = (row.stamp, row.slot);
            (own >= place).then_some(own)
        })
    }

    impl Rules for Hand {
        fn touched(&mut self, row: usize, rows: &mut [Row], _now: &mut u64) {
            rows[row].uses = 1;
        }

        fn evicted(&mut self, gone: &Row, whole: bool, rows: &mut [Row], _now: &mut u64) {
            if whole && (gone.stamp, gone.slot) == self.at {
                let next = from(rows, self.at);
                self.at = next.map_or((0, 0), |next| (rows[next].stamp, rows[next].slot));
            }
        }

        fn victim(&mut self, rows: &mut [Row], _now: &mut u64) -> Option<usize> {
            loop {
                let found = from(rows, self.at).or_else(|| from(rows, (0, 0)))?;
                self.at = (rows[found].stamp, rows[found].slot);
                if rows[found].uses == 0 {
                    return Some(found);
                }
                rows[found].uses = 0;
                self.at.1 += 1;
            }
        }
    }

    proptest! {
        #[test]
        fn the_hand_takes_the_first_without_a_mark(steps in steps()) {
            agree(&mut Sieve::default(), Hand::default(), steps)?;
        }
    }
}
