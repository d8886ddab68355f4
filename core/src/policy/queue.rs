//! Queues that entries move between: each in order of stamps, oldest first, and which of its entries are candidates.

use std::collections::BTreeSet;

use super::Slot;
use super::slots::{Place, Slots};

/// An entry in a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<X> {
    /// When it came to the new end of its queue.
    pub(super) stamp: u64,
    pub(super) bytes: u64,
    /// Which queue it is in.
    pub(super) queue: usize,
    candidate: bool,
    /// What the policy keeps of it.
    pub(super) own: X,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Queue {
    all: BTreeSet<Place<u64>>,
    candidates: BTreeSet<Place<u64>>,
    bytes: u64,
}

impl Queue {
    fn insert<X>(&mut self, slot: Slot, entry: &Entry<X>) {
        let place = (entry.stamp, slot);
        self.all.insert(place);
        self.bytes += entry.bytes;
        if entry.candidate {
            self.candidates.insert(place);
        }
    }

    fn remove<X>(&mut self, slot: Slot, entry: &Entry<X>) {
        let place = (entry.stamp, slot);
        self.all.remove(&place);
        self.candidates.remove(&place);
        self.bytes -= entry.bytes;
    }
}

/// `N` queues. Every call costs O(log n).
#[derive(Clone, Debug)]
pub(super) struct Queues<X, const N: usize> {
    clock: u64,
    slots: Slots<Entry<X>>,
    each: [Queue; N],
}

impl<X, const N: usize> Default for Queues<X, N> {
    fn default() -> Self {
        Self {
            clock: 0,
            slots: Slots::default(),
            each: std::array::from_fn(|_| Queue::default()),
        }
    }
}

impl<X: Copy, const N: usize> Queues<X, N> {
    fn put(&mut self, slot: Slot, entry: Entry<X>) {
        self.each[entry.queue].insert(slot, &entry);
        self.slots.insert(slot, entry);
    }

    /// A new entry, at the new end of a queue.
    pub(super) fn insert(&mut self, slot: Slot, queue: usize, bytes: u64, own: X) {
        self.clock += 1;
        let entry = Entry {
            stamp: self.clock,
            bytes,
            queue,
            candidate: false,
            own,
        };
        self.put(slot, entry);
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Option<Entry<X>> {
        let entry = self.slots.remove(slot)?;
        self.each[entry.queue].remove(slot, &entry);
        Some(entry)
    }

    /// Moves an entry to the new end of a queue.
    pub(super) fn send(&mut self, slot: Slot, queue: usize) {
        self.clock += 1;
        if let Some(entry) = self.remove(slot) {
            let stamp = self.clock;
            self.put(
                slot,
                Entry {
                    stamp,
                    queue,
                    ..entry
                },
            );
        }
    }

    /// Moves an entry to the new end of the queue that it is in.
    pub(super) fn renew(&mut self, slot: Slot) {
        if let Some(queue) = self.get(slot).map(|entry| entry.queue) {
            self.send(slot, queue);
        }
    }

    /// `head` takes a copy of what is known of `tail`, but is no candidate.
    pub(super) fn split(&mut self, head: Slot, head_bytes: u64, tail: Slot, tail_bytes: u64) {
        self.resize(tail, tail_bytes);
        if let Some(&entry) = self.slots.get(tail) {
            let above = Entry {
                bytes: head_bytes,
                candidate: false,
                ..entry
            };
            self.put(head, above);
        }
    }

    /// An entry has so many bytes from now on.
    pub(super) fn resize(&mut self, slot: Slot, bytes: u64) {
        if let Some(entry) = self.slots.get_mut(slot) {
            let queue = &mut self.each[entry.queue];
            queue.bytes = queue.bytes - entry.bytes + bytes;
            entry.bytes = bytes;
        }
    }

    pub(super) fn set_candidate(&mut self, slot: Slot, candidate: bool) {
        if let Some(entry) = self.slots.get_mut(slot) {
            entry.candidate = candidate;
            let candidates = &mut self.each[entry.queue].candidates;
            if candidate {
                candidates.insert((entry.stamp, slot));
            } else {
                candidates.remove(&(entry.stamp, slot));
            }
        }
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Entry<X>> {
        self.slots.get(slot)
    }

    pub(super) fn own(&mut self, slot: Slot) -> Option<&mut X> {
        self.slots.get_mut(slot).map(|entry| &mut entry.own)
    }

    pub(super) fn oldest(&self, queue: usize) -> Option<Slot> {
        self.each[queue].all.first().map(|(_, slot)| *slot)
    }

    pub(super) fn oldest_candidate(&self, queue: usize) -> Option<Slot> {
        self.each[queue].candidates.first().map(|(_, slot)| *slot)
    }

    pub(super) fn bytes(&self, queue: usize) -> u64 {
        self.each[queue].bytes
    }

    pub(super) fn candidates(&self) -> usize {
        let queues = self.each.iter();
        queues.map(|queue| queue.candidates.len()).sum()
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        for (index, queue) in self.each.iter().enumerate() {
            let mut expected = Queue::default();
            for (slot, entry) in self.slots.iter() {
                if entry.queue == index {
                    expected.insert(slot, entry);
                }
            }
            if expected != *queue {
                return Err(format!(
                    "queue {index} is {queue:?}, its entries make {expected:?}"
                ));
            }
        }
        Ok(())
    }
}
