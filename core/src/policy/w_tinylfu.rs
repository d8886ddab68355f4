//! W-TinyLFU.

use super::queue::Queues;
use super::sketch::Sketch;
use super::slru::{self, PROBATION, PROTECTED, protected_share};
use super::{EntryMeta, EvictionPolicy, Slot};

const WINDOW: usize = 2;
/// The window's share of the bytes: one in so many.
const WINDOW_SHARE: u64 = 100;

/// What is new stands in a window, an LRU list of a hundredth of the bytes; the rest is a segmented LRU. When there is no room, the
/// window's oldest contends with the victim of the rest: whichever was used less often lately (by a count-min sketch that knows
/// evicted entries too) goes; of equals, the one from the window. If the window's wins it moves to the rest (Einziger, Friedman,
/// Manes, "`TinyLFU`: a highly efficient cache admission policy", ACM Transactions on Storage 13(4), 2017).
///
/// In a prefix tree the window's oldest *candidate* contends, and it stays in the window until there is no room: nodes are of many
/// sizes, and one that is larger than the window must contend as well. Where only one side has candidates, that side gives. A tail
/// that is split off an entry is counted as often used as the entry was.
///
/// Costs amortised O(log n) a call (what is demoted was promoted by a use; all counts are halved every ten uses an entry), some 80
/// bytes an entry, 24 more as a candidate and up to 32 of sketch. Parameters: the shares 1/100 and, of the rest, 4/5 protected.
#[derive(Debug)]
pub struct WTinyLfu {
    window_bytes: u64,
    rest_bytes: u64,
    protected_bytes: u64,
    entries: usize,
    /// The entries' names.
    queues: Queues<u64, 3>,
    sketch: Sketch,
}

impl WTinyLfu {
    /// For a tier of `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        let window_bytes = capacity.div_ceil(WINDOW_SHARE);
        let rest_bytes = capacity - window_bytes;
        Self {
            window_bytes,
            rest_bytes,
            protected_bytes: protected_share(rest_bytes),
            entries: 0,
            queues: Queues::default(),
            sketch: Sketch::default(),
        }
    }

    fn count(&mut self, name: u64) {
        self.sketch.fit(self.entries);
        self.sketch.count(name, self.entries);
    }

    fn estimate(&self, slot: Slot) -> u8 {
        let entry = self.queues.get(slot);
        entry.map_or(0, |entry| self.sketch.estimate(entry.own))
    }

    fn rest(&self) -> u64 {
        self.queues.bytes(PROBATION) + self.queues.bytes(PROTECTED)
    }

    /// Moves what the window has too much to the rest, as long as that has room.
    fn drain_window(&mut self) {
        while self.queues.bytes(WINDOW) > self.window_bytes
            && let Some(oldest) = self.queues.oldest(WINDOW)
            && let Some(entry) = self.queues.get(oldest)
            && self.rest() + entry.bytes <= self.rest_bytes
        {
            self.queues.send(oldest, PROBATION);
        }
    }
}

impl EvictionPolicy for WTinyLfu {
    fn wants_ghosts(&self) -> bool {
        true
    }

    fn insert(&mut self, slot: Slot, ghost: u64, meta: EntryMeta) {
        self.entries += 1;
        self.count(ghost);
        self.queues.insert(slot, WINDOW, meta.bytes, ghost);
        self.drain_window();
    }

    fn touch(&mut self, slot: Slot) {
        let Some(&entry) = self.queues.get(slot) else {
            return;
        };
        self.count(entry.own);
        if entry.queue == WINDOW {
            return self.queues.send(slot, WINDOW);
        }
        slru::protect(&mut self.queues, slot, self.protected_bytes);
    }

    fn renew(&mut self, slot: Slot) {
        self.queues.renew(slot);
    }

    fn split(
        &mut self,
        head: Slot,
        head_meta: EntryMeta,
        tail: Slot,
        tail_ghost: u64,
        tail_meta: EntryMeta,
    ) {
        self.entries += 1;
        let used = self.estimate(tail);
        self.sketch.raise(tail_ghost, used);
        self.queues
            .split(head, head_meta.bytes, tail, tail_meta.bytes);
        if let Some(name) = self.queues.own(tail) {
            *name = tail_ghost;
        }
    }

    fn trim(&mut self, slot: Slot, ghost: u64, meta: EntryMeta) {
        let used = self.estimate(slot);
        self.sketch.raise(ghost, used);
        self.queues.resize(slot, meta.bytes);
    }

    fn set_candidate(&mut self, slot: Slot, candidate: bool) {
        self.queues.set_candidate(slot, candidate);
    }

    fn evicted(&mut self, slot: Slot) {
        let Some(entry) = self.queues.get(slot) else {
            return;
        };
        // It lost to the window's candidate, which takes its place.
        let winner = match entry.queue {
            WINDOW => None,
            _ if self.queues.bytes(WINDOW) < self.window_bytes => None,
            _ => self.queues.oldest_candidate(WINDOW),
        };
        self.remove(slot);
        if let Some(winner) = winner {
            self.queues.send(winner, PROBATION);
        }
    }

    fn remove(&mut self, slot: Slot) {
        if self.queues.remove(slot).is_some() {
            self.entries -= 1;
        }
    }

    fn victim(&mut self) -> Option<Slot> {
        let window = self.queues.oldest_candidate(WINDOW);
        let rest = slru::victim(&self.queues);
        match (window, rest) {
            (Some(window), Some(rest)) => {
                let contends = self.queues.bytes(WINDOW) >= self.window_bytes;
                let loses = contends && self.estimate(window) <= self.estimate(rest);
                Some(if loses { window } else { rest })
            }
            (window, rest) => window.or(rest),
        }
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

    use std::collections::HashMap;

    use super::WTinyLfu;
    use crate::policy::testing::{CAPACITY, Row, Rules, agree, first, steps};

    const WINDOW: u64 = 1;
    const REST: u64 = CAPACITY - WINDOW;

    /// Queue 0 is the window, queue 1 on probation, queue 2 protected. Counts are exact.
    #[derive(Default)]
    struct Admission {
        counts: HashMap<u64, u8>,
        counted: u64,
    }

    fn bytes(rows: &[Row], queues: &[usize]) -> u64 {
        let rows = rows.iter().filter(|row| queues.contains(&row.queue));
        rows.map(|row| row.meta.bytes).sum()
    }

    fn oldest(rows: &mut [Row], queue: usize) -> Option<&mut Row> {
        let rows = rows.iter_mut().filter(|row| row.queue == queue);
        rows.min_by_key(|row| (row.stamp, row.slot))
    }

    impl Admission {
        fn count(&mut self, name: u64) {
            let count = self.counts.entry(name).or_default();
            *count = 15.min(*count + 1);
            self.counted += 1;
            // The sketch is for 256 entries at least.
            if self.counted >= 2560 {
                self.counted /= 2;
                self.counts.values_mut().for_each(|count| *count /= 2);
            }
        }

        fn of(&self, name: u64) -> u8 {
            self.counts.get(&name).copied().unwrap_or(0)
        }

        fn raise(&mut self, name: u64, to: u64) {
            let to = self.of(to);
            let count = self.counts.entry(name).or_default();
            *count = to.max(*count);
        }
    }

    impl Rules for Admission {
        fn inserted(&mut self, new: &mut Row, rows: &mut [Row], now: &mut u64) {
            self.count(new.ghost);
            loop {
                let over = bytes(rows, &[0]) + new.meta.bytes > WINDOW;
                let room = REST.saturating_sub(bytes(rows, &[1, 2]));
                let oldest = oldest(rows, 0).unwrap_or(&mut *new);
                if !over || oldest.queue != 0 || oldest.meta.bytes > room {
                    return;
                }
                *now += 1;
                (oldest.queue, oldest.stamp) = (1, *now);
                if new.queue != 0 {
                    return;
                }
            }
        }

        fn touched(&mut self, row: usize, rows: &mut [Row], now: &mut u64) {
            self.count(rows[row].ghost);
            rows[row].stamp = *now;
            if rows[row].queue == 0 {
                return;
            }
            rows[row].queue = 2;
            while bytes(rows, &[2]) * 5 > (REST * 4).div_ceil(5) * 5
                && let Some(oldest) = oldest(rows, 2)
            {
                *now += 1;
                (oldest.queue, oldest.stamp) = (1, *now);
            }
        }

        fn renewed(&mut self, row: usize, rows: &mut [Row], now: &mut u64) {
            rows[row].stamp = *now;
        }

        fn split(&mut self, head: &Row, tail: &Row) {
            self.raise(tail.ghost, head.ghost);
        }

        fn evicted(&mut self, gone: &Row, whole: bool, rows: &mut [Row], now: &mut u64) {
            if whole && gone.queue != 0 && bytes(rows, &[0]) >= WINDOW {
                let winner = first(rows, |row| (row.queue == 0).then_some(row.stamp));
                if let Some(winner) = winner {
                    *now += 1;
                    (rows[winner].queue, rows[winner].stamp) = (1, *now);
                }
            }
            if !whole {
                let holder = rows.iter().find(|row| row.slot == gone.slot);
                if let Some(name) = holder.map(|row| row.ghost) {
                    self.raise(gone.ghost, name);
                }
            }
        }

        fn victim(&mut self, rows: &mut [Row], _now: &mut u64) -> Option<usize> {
            let window = first(rows, |row| (row.queue == 0).then_some(row.stamp));
            let rest = first(rows, |row| {
                (row.queue > 0).then_some((row.queue, row.stamp))
            });
            let (Some(new), Some(old)) = (window, rest) else {
                return window.or(rest);
            };
            let rejected = self.of(rows[new].ghost) <= self.of(rows[old].ghost);
            if bytes(rows, &[0]) >= WINDOW && rejected {
                window
            } else {
                rest
            }
        }
    }

    proptest! {
        #[test]
        fn it_admits_what_is_used_more(steps in steps()) {
            agree(&mut WTinyLfu::new(CAPACITY), Admission::default(), steps)?;
        }
    }
}
