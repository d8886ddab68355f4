//! Least recently used.

use std::collections::BTreeMap;

use super::{EntryMeta, EvictionPolicy, Slot};

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    stamp: u64,
    live: bool,
    candidate: bool,
}

/// Evicts the candidate whose last use is oldest. Every use takes a fresh stamp, candidates are ordered by it: O(log n).
#[derive(Debug, Default)]
pub struct Lru {
    clock: u64,
    entries: Vec<Entry>,
    candidates: BTreeMap<u64, Slot>,
}

impl Lru {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn entry(&mut self, slot: Slot) -> &mut Entry {
        let index = slot as usize;
        if index >= self.entries.len() {
            self.entries.resize(index + 1, Entry::default());
        }
        &mut self.entries[index]
    }
}

impl EvictionPolicy for Lru {
    fn insert(&mut self, slot: Slot, _ghost: u64, _meta: EntryMeta) {
        let stamp = self.tick();
        *self.entry(slot) = Entry {
            stamp,
            live: true,
            candidate: false,
        };
    }

    fn touch(&mut self, slot: Slot) {
        let stamp = self.tick();
        let entry = self.entry(slot);
        let before = std::mem::replace(&mut entry.stamp, stamp);
        if entry.candidate {
            self.candidates.remove(&before);
            self.candidates.insert(stamp, slot);
        }
    }

    fn split(&mut self, head: Slot, tail: Slot, _ghost: u64) {
        // The tail keeps the rank; the head, nearer the root, takes a stamp just as new so that it outlives the tail.
        let history = *self.entry(head);
        *self.entry(tail) = history;
        if history.candidate {
            self.candidates.insert(history.stamp, tail);
        }
        let stamp = self.tick();
        *self.entry(head) = Entry {
            stamp,
            live: true,
            candidate: false,
        };
    }

    fn set_candidate(&mut self, slot: Slot, candidate: bool) {
        let entry = self.entry(slot);
        if entry.candidate == candidate {
            return;
        }
        entry.candidate = candidate;
        let stamp = entry.stamp;
        if candidate {
            self.candidates.insert(stamp, slot);
        } else {
            self.candidates.remove(&stamp);
        }
    }

    fn remove(&mut self, slot: Slot) {
        self.set_candidate(slot, false);
        *self.entry(slot) = Entry::default();
    }

    fn victim(&mut self) -> Option<Slot> {
        self.candidates.first_key_value().map(|(_, slot)| *slot)
    }

    fn candidates(&self) -> usize {
        self.candidates.len()
    }

    fn validate(&self) -> Result<(), String> {
        let marked = self.entries.iter().filter(|entry| entry.candidate).count();
        if marked != self.candidates.len() {
            return Err(format!(
                "{marked} entries are marked as candidates, {} are listed",
                self.candidates.len()
            ));
        }
        for (stamp, slot) in &self.candidates {
            let entry = self
                .entries
                .get(*slot as usize)
                .copied()
                .unwrap_or_default();
            if !(entry.live && entry.candidate && entry.stamp == *stamp) {
                return Err(format!(
                    "slot {slot} is listed at {stamp}, but its entry is {entry:?}"
                ));
            }
        }
        Ok(())
    }
}
