//! Greedy dual size frequency.

use super::order::Order;
use super::{EntryMeta, EvictionPolicy, Slot};

#[derive(Clone, Copy, Debug)]
struct Entry {
    uses: u64,
    /// The age of the cache when it was last used.
    age: f64,
    /// Cost of recomputing it, a byte.
    value: f64,
    stamp: u64,
}

impl Entry {
    fn priority(&self) -> f64 {
        self.age + self.uses as f64 * self.value
    }

    /// Priorities are not negative: their bits are in their own order.
    fn rank(&self) -> (u64, u64) {
        (self.priority().to_bits(), self.stamp)
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
/// Costs O(log n) a call, some 56 bytes an entry and 40 a candidate. No parameters.
#[derive(Debug, Default)]
pub struct Gdsf {
    age: f64,
    clock: u64,
    entries: Order<Entry, (u64, u64)>,
}

fn value(meta: EntryMeta) -> f64 {
    if meta.cost > 0.0 {
        f64::from(meta.cost) / meta.bytes.max(1) as f64
    } else {
        1.0
    }
}

impl Gdsf {
    /// Changes an entry, and its rank with it.
    fn change(&mut self, slot: Slot, change: impl FnOnce(&mut Entry)) {
        self.entries.update(slot, |entry| {
            change(entry);
            entry.rank()
        });
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
        };
        self.entries.insert(slot, entry, entry.rank());
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
        if let Some(&entry) = self.entries.get(tail) {
            let above = Entry {
                value: value(head_meta),
                ..entry
            };
            self.entries.insert(head, above, above.rank());
        }
        self.change(tail, |entry| entry.value = value(tail_meta));
    }

    fn trim(&mut self, slot: Slot, _ghost: u64, meta: EntryMeta) {
        self.change(slot, |entry| entry.value = value(meta));
    }

    fn set_candidate(&mut self, slot: Slot, candidate: bool) {
        self.entries.set_candidate(slot, candidate);
    }

    fn evicted(&mut self, slot: Slot) {
        if let Some(entry) = self.entries.remove(slot) {
            self.age = self.age.max(entry.priority());
        }
    }

    fn remove(&mut self, slot: Slot) {
        self.entries.remove(slot);
    }

    fn victim(&mut self) -> Option<Slot> {
        self.entries.first()
    }

    fn candidates(&self) -> usize {
        self.entries.candidates()
    }

    fn validate(&self) -> Result<(), String> {
        self.entries.validate()
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
