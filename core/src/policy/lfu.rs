//! Least frequently used, with and without ageing.

use super::order::Order;
use super::{EntryMeta, EvictionPolicy, Slot};

/// The uses of an entry and the age of the cache at the last of them, and when that was.
type Rank = (u64, u64);

/// Evicts the candidate with the lowest rank: its number of uses plus the age of the cache at the last of them; of equals the one
/// whose last use is oldest. The age is the rank of the latest victim, so that what was used much long ago gives way in time
/// ("LFU with dynamic aging": Arlitt, Cherkasova, Dilley, Friedrich, Jin, "Evaluating content management techniques for web
/// proxy caches", Performance Evaluation Review 27(4), 2000). Plain LFU does not age.
///
/// In a prefix tree a node is used at least as often as those below it; it follows that tails go first.
///
/// Costs O(log n) a call, some 32 bytes an entry and 40 a candidate. No parameters.
#[derive(Debug)]
pub struct Lfu {
    ageing: bool,
    age: u64,
    clock: u64,
    /// How often each entry was used.
    uses: Order<u64, Rank>,
}

impl Lfu {
    /// LFU that ages.
    pub fn ageing() -> Self {
        Self {
            ageing: true,
            age: 0,
            clock: 0,
            uses: Order::default(),
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
        self.uses.insert(slot, 1, (self.age + 1, self.clock));
    }

    fn touch(&mut self, slot: Slot) {
        self.clock += 1;
        let (age, stamp) = (self.age, self.clock);
        self.uses.update(slot, |uses| {
            *uses += 1;
            (age + *uses, stamp)
        });
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
        if let (Some(&uses), Some(rank)) = (self.uses.get(tail), self.uses.rank(tail)) {
            self.uses.insert(head, uses, rank);
        }
    }

    fn trim(&mut self, _slot: Slot, _ghost: u64, _meta: EntryMeta) {}

    fn set_candidate(&mut self, slot: Slot, candidate: bool) {
        self.uses.set_candidate(slot, candidate);
    }

    fn evicted(&mut self, slot: Slot) {
        if let Some((rank, _)) = self.uses.rank(slot)
            && self.ageing
        {
            self.age = self.age.max(rank);
        }
        self.remove(slot);
    }

    fn remove(&mut self, slot: Slot) {
        self.uses.remove(slot);
    }

    fn victim(&mut self) -> Option<Slot> {
        self.uses.first()
    }

    fn candidates(&self) -> usize {
        self.uses.candidates()
    }

    fn validate(&self) -> Result<(), String> {
        self.uses.validate()
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
