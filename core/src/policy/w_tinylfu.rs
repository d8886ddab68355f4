//! W-TinyLFU.

use super::queue::Queues;
use super::sketch::Sketch;
use super::slru::{PROBATION, PROTECTED, protected_share};
use super::{EntryMeta, EvictionPolicy, Slot};

const WINDOW: usize = 2;
/// The window's share of the bytes: one in so many.
const WINDOW_SHARE: u64 = 100;

/// What is new stands in a window, an LRU list of a hundredth of the bytes; the rest is a segmented LRU. When there is no room, the
/// window's oldest contends with the victim of the rest: whichever was used less often lately (by a count-min sketch that knows
/// evicted entries too) goes; of equals, the one from the window. If the window's wins it moves to the rest (Einziger, Friedman,
/// Manes, "TinyLFU: a highly efficient cache admission policy", ACM Transactions on Storage 13(4), 2017).
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
        self.queues.send(slot, PROTECTED);
        while self.queues.bytes(PROTECTED) > self.protected_bytes
            && let Some(oldest) = self.queues.oldest(PROTECTED)
        {
            self.queues.send(oldest, PROBATION);
        }
    }

    fn renew(&mut self, slot: Slot) {
        if let Some(queue) = self.queues.get(slot).map(|entry| entry.queue) {
            self.queues.send(slot, queue);
        }
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
        let on_probation = self.queues.oldest_candidate(PROBATION);
        let rest = on_probation.or_else(|| self.queues.oldest_candidate(PROTECTED));
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
