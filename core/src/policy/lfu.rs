//! Least frequently used, with and without ageing.

use std::collections::BTreeSet;

use super::slots::{Place, Slots};
use super::{EntryMeta, EvictionPolicy, Slot};

#[derive(Clone, Copy, Debug)]
struct Entry {
    uses: u64,
    /// Its uses, and the age of the cache when it was last used.
    rank: u64,
    stamp: u64,
    candidate: bool,
}

impl Entry {
    fn place(&self, slot: Slot) -> Place<(u64, u64)> {
        ((self.rank, self.stamp), slot)
    }
}

/// Evicts the candidate with the lowest rank: its number of uses plus the age of the cache at the last of them; of equals the one
/// whose last use is oldest. The age is the rank of the latest victim, so that what was used much long ago gives way in time
/// ("LFU with dynamic aging": Arlitt, Cherkasova, Dilley, Friedrich, Jin, "Evaluating content management techniques for web
/// proxy caches", Performance Evaluation Review 27(4), 2000). Plain LFU does not age.
///
/// In a prefix tree a node is used at least as often as those below it; it follows that tails go first.
///
/// Costs O(log n) a call, some 40 bytes an entry and 40 a candidate. No parameters.
#[derive(Debug)]
pub struct Lfu {
    ageing: bool,
    age: u64,
    clock: u64,
    slots: Slots<Entry>,
    order: BTreeSet<Place<(u64, u64)>>,
}

impl Lfu {
    /// LFU that ages.
    pub fn ageing() -> Self {
        Self {
            ageing: true,
            age: 0,
            clock: 0,
            slots: Slots::default(),
            order: BTreeSet::new(),
        }
    }

    /// LFU that does not.
    pub fn plain() -> Self {
        Self {
            ageing: false,
            ..Self::ageing()
        }
    }
}

impl EvictionPolicy for Lfu {
    fn insert(&mut self, slot: Slot, _ghost: u64, _meta: EntryMeta) {
        self.clock += 1;
        let entry = Entry {
            uses: 1,
            rank: self.age + 1,
            stamp: self.clock,
            candidate: false,
        };
        self.slots.insert(slot, entry);
    }

    fn touch(&mut self, slot: Slot) {
        self.clock += 1;
        let Some(entry) = self.slots.get_mut(slot) else {
            return;
        };
        let before = entry.place(slot);
        entry.uses += 1;
        entry.rank = self.age + entry.uses;
        entry.stamp = self.clock;
        if entry.candidate {
            self.order.remove(&before);
            self.order.insert(entry.place(slot));
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
        let place = entry.place(slot);
        if candidate {
            self.order.insert(place);
        } else {
            self.order.remove(&place);
        }
    }

    fn evicted(&mut self, slot: Slot) {
        if let Some(entry) = self.slots.get(slot)
            && self.ageing
        {
            self.age = self.age.max(entry.rank);
        }
        self.remove(slot);
    }

    fn remove(&mut self, slot: Slot) {
        if let Some(entry) = self.slots.remove(slot) {
            self.order.remove(&entry.place(slot));
        }
    }

    fn victim(&mut self) -> Option<Slot> {
        self.order.first().map(|(_, slot)| *slot)
    }

    fn candidates(&self) -> usize {
        self.order.len()
    }

    fn validate(&self) -> Result<(), String> {
        let candidates = self.slots.iter().filter(|(_, entry)| entry.candidate);
        let expected = candidates.map(|(slot, entry)| entry.place(slot));
        let expected = expected.collect::<BTreeSet<_>>();
        (expected == self.order).then_some(()).ok_or_else(|| {
            format!(
                "the order is {:?}, its entries make {expected:?}",
                self.order
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Lfu;
    use crate::policy::testing::{Row, Rules, agree, first, steps};

    struct Frequency {
        ageing: bool,
        age: f64,
    }

    impl Rules for Frequency {
        fn inserted(&mut self, new: &mut Row, _rows: &mut [Row], _now: &mut u64) {
            (new.uses, new.age) = (1, self.age);
        }

        fn touched(&mut self, row: usize, rows: &mut [Row], now: &mut u64) {
            rows[row].uses += 1;
            (rows[row].age, rows[row].stamp) = (self.age, *now);
        }

        fn evicted(&mut self, gone: &Row, whole: bool, _rows: &mut [Row], _now: &mut u64) {
            if whole && self.ageing {
                self.age = self.age.max(gone.age + gone.uses as f64);
            }
        }

        fn victim(&mut self, rows: &mut [Row], _now: &mut u64) -> Option<usize> {
            first(rows, |row| Some((row.age + row.uses as f64, row.stamp)))
        }
    }

    proptest! {
        #[test]
        fn it_counts_and_ages(ageing in any::<bool>(), steps in steps()) {
            let mut lfu = if ageing { Lfu::ageing() } else { Lfu::plain() };
            agree(&mut lfu, Frequency { ageing, age: 0.0 }, steps)?;
        }
    }
}
