//! Least recently used.

use super::{EntryMeta, EvictionPolicy, Slot};

/// Children of one heap entry: a flat heap touches fewer cache lines than a binary one.
const ARITY: usize = 4;
/// The place of an entry that is no candidate.
const ABSENT: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// When it was last used; 0 for a slot that is not in use.
    stamp: u64,
    /// Where it stands in the heap.
    place: u32,
}

impl Entry {
    const VACANT: Self = Self {
        stamp: 0,
        place: ABSENT,
    };
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    stamp: u64,
    slot: Slot,
}

/// Evicts the candidate whose last use is oldest. Every use takes a fresh stamp; the candidates stand in a heap ordered by it,
/// and each entry knows its place there, so that any of them can enter, leave and age in O(log n) however old it is.
///
/// The textbook's policy. Costs O(log n) a call, 16 bytes an entry and 16 a candidate. No parameters.
#[derive(Debug, Default)]
pub struct Lru {
    clock: u64,
    entries: Vec<Entry>,
    heap: Vec<Candidate>,
}

impl Lru {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn entry(&mut self, slot: Slot) -> &mut Entry {
        let index = slot as usize;
        if index >= self.entries.len() {
            self.entries.resize(index + 1, Entry::VACANT);
        }
        &mut self.entries[index]
    }

    fn set(&mut self, place: usize, candidate: Candidate) {
        self.heap[place] = candidate;
        self.entries[candidate.slot as usize].place = place as u32;
    }

    fn enter(&mut self, slot: Slot, stamp: u64) {
        let candidate = Candidate { stamp, slot };
        self.heap.push(candidate);
        self.rise(self.heap.len() - 1, candidate);
    }

    fn leave(&mut self, place: usize) {
        let Some(last) = self.heap.pop() else { return };
        if place < self.heap.len() {
            if place > 0 && last.stamp < self.heap[(place - 1) / ARITY].stamp {
                self.rise(place, last);
            } else {
                self.sink(place, last);
            }
        }
    }

    /// Puts `candidate` where it belongs between `place` and the top.
    fn rise(&mut self, mut place: usize, candidate: Candidate) {
        while place > 0 {
            let above = (place - 1) / ARITY;
            if self.heap[above].stamp <= candidate.stamp {
                break;
            }
            self.set(place, self.heap[above]);
            place = above;
        }
        self.set(place, candidate);
    }

    /// Puts `candidate` where it belongs between `place` and the bottom.
    fn sink(&mut self, mut place: usize, candidate: Candidate) {
        loop {
            let first = place * ARITY + 1;
            let below = (first..self.heap.len().min(first + ARITY))
                .min_by_key(|&child| self.heap[child].stamp);
            match below {
                Some(child) if self.heap[child].stamp < candidate.stamp => {
                    self.set(place, self.heap[child]);
                    place = child;
                }
                _ => break,
            }
        }
        self.set(place, candidate);
    }
}

impl EvictionPolicy for Lru {
    fn insert(&mut self, slot: Slot, _ghost: u64, _meta: EntryMeta) {
        let stamp = self.tick();
        *self.entry(slot) = Entry {
            stamp,
            place: ABSENT,
        };
    }

    fn touch(&mut self, slot: Slot) {
        let stamp = self.tick();
        let entry = self.entry(slot);
        entry.stamp = stamp;
        let place = entry.place;
        if place != ABSENT {
            self.sink(place as usize, Candidate { stamp, slot });
        }
    }

    fn split(
        &mut self,
        head: Slot,
        _head_meta: EntryMeta,
        tail: Slot,
        _tail_ghost: u64,
        _tail_meta: EntryMeta,
    ) {
        // Equal stamps are no tie: of two entries on one path only the lower one can be a candidate.
        let stamp = self.entry(tail).stamp;
        *self.entry(head) = Entry {
            stamp,
            place: ABSENT,
        };
    }

    fn trim(&mut self, _slot: Slot, _ghost: u64, _meta: EntryMeta) {}

    fn set_candidate(&mut self, slot: Slot, candidate: bool) {
        let Entry { stamp, place } = *self.entry(slot);
        match (candidate, place) {
            (true, ABSENT) => self.enter(slot, stamp),
            (true, _) | (false, ABSENT) => {}
            (false, _) => {
                self.entries[slot as usize].place = ABSENT;
                self.leave(place as usize);
            }
        }
    }

    fn remove(&mut self, slot: Slot) {
        self.set_candidate(slot, false);
        *self.entry(slot) = Entry::VACANT;
    }

    fn victim(&mut self) -> Option<Slot> {
        self.heap.first().map(|candidate| candidate.slot)
    }

    fn candidates(&self) -> usize {
        self.heap.len()
    }

    fn validate(&self) -> Result<(), String> {
        let marked = self.entries.iter().filter(|entry| entry.place != ABSENT);
        let marked = marked.count();
        if marked != self.heap.len() {
            return Err(format!(
                "{marked} entries are marked as candidates, {} are listed",
                self.heap.len()
            ));
        }
        for (place, candidate) in self.heap.iter().enumerate() {
            let entry = self.entries.get(candidate.slot as usize);
            let entry = entry.copied().unwrap_or(Entry::VACANT);
            if entry.stamp != candidate.stamp || entry.place as usize != place || entry.stamp == 0 {
                return Err(format!(
                    "{candidate:?} at {place}, but its entry is {entry:?}"
                ));
            }
            if place > 0 && self.heap[(place - 1) / ARITY].stamp > candidate.stamp {
                return Err(format!(
                    "{candidate:?} at {place} is older than the one above"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Lru;
    use crate::policy::testing::{Row, Rules, agree, first, steps};

    struct Oldest;

    impl Rules for Oldest {
        fn touched(&mut self, row: usize, rows: &mut [Row], now: &mut u64) {
            rows[row].stamp = *now;
        }

        fn renewed(&mut self, row: usize, rows: &mut [Row], now: &mut u64) {
            rows[row].stamp = *now;
        }

        fn victim(&mut self, rows: &mut [Row], _now: &mut u64) -> Option<usize> {
            first(rows, |row| Some(row.stamp))
        }
    }

    proptest! {
        #[test]
        fn the_victim_is_the_oldest_candidate(steps in steps()) {
            agree(&mut Lru::default(), Oldest, steps)?;
        }
    }
}
