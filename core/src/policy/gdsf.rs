//! Greedy dual size frequency.

use std::collections::BTreeSet;

use super::slots::{Place, Slots};
use super::{EntryMeta, EvictionPolicy, Slot};

#[derive(Clone, Copy, Debug)]
struct Entry {
    uses: u64,
    /// The age of the cache when it was last used.
    age: f64,
    /// Cost of recomputing it, a byte.
    value: f64,
    stamp: u64,
    candidate: bool,
}

impl Entry {
    fn rank(&self) -> f64 {
        self.age + self.uses as f64 * self.value
    }

    /// Ranks are not negative: their bits are in their own order.
    fn place(&self, slot: Slot) -> Place<(u64, u64)> {
        ((self.rank().to_bits(), self.stamp), slot)
    }
}

/// Evicts the candidate with the lowest rank: the age of the cache at its last use + uses x cost / bytes; of equals the one whose
/// last use is oldest. The age is the rank of the latest victim (Cherkasova, "Improving WWW proxies performance with
/// greedy-dual-size-frequency caching policy", HP Labs report HPL-98-69R1, 1998). Cost is what recomputing it costs, which rises
/// with the distance from the root; where it is not known (opaque blocks) each byte is worth the same, 1.
///
/// In a prefix tree, where only leaves may go, a node's rank need not be above that of those below it: a long prefix that is cheap
/// to compute outlives its dear continuations all the same. A leaf that gives up its tail keeps its uses.
///
/// Costs O(log n) a call, some 48 bytes an entry and 40 a candidate. No parameters.
#[derive(Debug, Default)]
pub struct Gdsf {
    age: f64,
    clock: u64,
    slots: Slots<Entry>,
    order: BTreeSet<Place<(u64, u64)>>,
}

fn value(meta: EntryMeta) -> f64 {
    if meta.cost > 0.0 {
        f64::from(meta.cost) / meta.bytes.max(1) as f64
    } else {
        1.0
    }
}

impl Gdsf {
    /// Changes an entry, and its place in the order with it.
    fn change(&mut self, slot: Slot, change: impl FnOnce(&mut Entry)) {
        let Some(entry) = self.slots.get_mut(slot) else {
            return;
        };
        let before = entry.place(slot);
        change(entry);
        self.order.remove(&before);
        if entry.candidate {
            self.order.insert(entry.place(slot));
        }
    }
}

impl EvictionPolicy for Gdsf {
    fn insert(&mut self, slot: Slot, _ghost: u64, meta: EntryMeta) {
        self.clock += 1;
        let entry = Entry {
            uses: 1,
            age: self.age,
            value: value(meta),
            stamp: self.clock,
            candidate: false,
        };
        self.slots.insert(slot, entry);
    }

    fn touch(&mut self, slot: Slot) {
        self.clock += 1;
        let (age, stamp) = (self.age, self.clock);
        self.change(slot, |entry| {
            entry.uses += 1;
            entry.age = age;
            entry.stamp = stamp;
        });
    }

    fn renew(&mut self, _slot: Slot) {}

    fn split(
        &mut self,
        head: Slot,
        head_meta: EntryMeta,
        tail: Slot,
        _tail_ghost: u64,
        tail_meta: EntryMeta,
    ) {
        if let Some(&entry) = self.slots.get(tail) {
            let head_entry = Entry {
                value: value(head_meta),
                candidate: false,
                ..entry
            };
            self.slots.insert(head, head_entry);
        }
        self.change(tail, |entry| entry.value = value(tail_meta));
    }

    fn trim(&mut self, slot: Slot, _ghost: u64, meta: EntryMeta) {
        self.change(slot, |entry| entry.value = value(meta));
    }

    fn set_candidate(&mut self, slot: Slot, candidate: bool) {
        self.change(slot, |entry| entry.candidate = candidate);
    }

    fn evicted(&mut self, slot: Slot) {
        if let Some(entry) = self.slots.get(slot) {
            self.age = self.age.max(entry.rank());
        }
        self.remove(slot);
    }

    fn remove(&mut self, slot: Slot) {
        self.set_candidate(slot, false);
        self.slots.remove(slot);
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

    use super::Gdsf;
    use crate::policy::testing::{Row, Rules, agree, first, steps};

    struct Greedy {
        age: f64,
    }

    fn rank(row: &Row) -> f64 {
        let cost = f64::from(row.meta.cost);
        let value = if cost == 0.0 {
            1.0
        } else {
            cost / row.meta.bytes as f64
        };
        row.age + row.uses as f64 * value
    }

    impl Rules for Greedy {
        fn inserted(&mut self, new: &mut Row, _rows: &mut [Row], _now: &mut u64) {
            (new.uses, new.age) = (1, self.age);
        }

        fn touched(&mut self, row: usize, rows: &mut [Row], now: &mut u64) {
            rows[row].uses += 1;
            (rows[row].age, rows[row].stamp) = (self.age, *now);
        }

        fn evicted(&mut self, gone: &Row, whole: bool, _rows: &mut [Row], _now: &mut u64) {
            if whole {
                self.age = self.age.max(rank(gone));
            }
        }

        fn victim(&mut self, rows: &mut [Row], _now: &mut u64) -> Option<usize> {
            first(rows, |row| Some((rank(row), row.stamp)))
        }
    }

    proptest! {
        #[test]
        fn the_victim_is_worth_least(steps in steps()) {
            agree(&mut Gdsf::default(), Greedy { age: 0.0 }, steps)?;
        }
    }
}
