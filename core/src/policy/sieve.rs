//! SIEVE.

use super::order::Order;
use super::slots::Place;
use super::{EntryMeta, EvictionPolicy, Slot};

/// A queue in order of arrival that no use changes: a use marks the entry. A hand goes from old to new: what is marked loses its
/// mark and stays, the first without one is the victim, and the hand goes on from there; behind the newest it starts again at the
/// oldest (Zhang, Yang, Yue, Vigfusson, Rashmi, "SIEVE is simpler than LRU", NSDI 2024).
///
/// In a prefix tree the hand passes over what is no candidate as if it were not there: it keeps place and mark. A head that is
/// split off an entry takes a copy of both.
///
/// Costs amortised O(log n) a call (a mark that the hand removes was set by a use, which pays for it), some 16 bytes an entry and
/// 24 a candidate. No parameters.
#[derive(Debug, Default)]
pub struct Sieve {
    clock: u64,
    /// The hand stands at the first candidate from here on.
    hand: Place<u64>,
    /// Whether each entry was visited; candidates in order of arrival.
    visited: Order<bool, u64>,
}

impl EvictionPolicy for Sieve {
    fn insert(&mut self, slot: Slot, _ghost: u64, _meta: EntryMeta) {
        self.clock += 1;
        self.visited.insert(slot, false, self.clock);
    }

    fn touch(&mut self, slot: Slot) {
        if let Some(visited) = self.visited.get_mut(slot) {
            *visited = true;
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
        if let (Some(&visited), Some(arrived)) = (self.visited.get(tail), self.visited.rank(tail)) {
            self.visited.insert(head, visited, arrived);
        }
    }

    fn trim(&mut self, _slot: Slot, _ghost: u64, _meta: EntryMeta) {}

    fn set_candidate(&mut self, slot: Slot, candidate: bool) {
        self.visited.set_candidate(slot, candidate);
    }

    fn evicted(&mut self, slot: Slot) {
        if self.visited.rank(slot).map(|arrived| (arrived, slot)) == Some(self.hand) {
            // Behind the newest, the hand is at the oldest again, whatever comes in meanwhile.
            self.hand = self.visited.first_behind(self.hand).unwrap_or_default();
        }
        self.remove(slot);
    }

    fn remove(&mut self, slot: Slot) {
        self.visited.remove(slot);
    }

    fn victim(&mut self) -> Option<Slot> {
        let first = self.visited.first_from(Place::default())?;
        let mut at = self.visited.first_from(self.hand).unwrap_or(first);
        loop {
            self.hand = at;
            let visited = self.visited.get_mut(at.1)?;
            if !std::mem::take(visited) {
                return Some(at.1);
            }
            at = self.visited.first_behind(at).unwrap_or(first);
        }
    }

    fn candidates(&self) -> usize {
        self.visited.candidates()
    }

    fn validate(&self) -> Result<(), String> {
        self.visited.validate()
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
