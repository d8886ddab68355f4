//! What policies are built of: entries by slot, the order of candidates, names of evicted entries.

use std::collections::BTreeMap;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::Slot;

/// An entry's place in an order: what it is ordered by, and its slot, which settles ties.
pub(super) type Place<K> = (K, Slot);

/// Entries by slot.
#[derive(Clone, Debug)]
pub(super) struct Slots<E>(Vec<Option<E>>);

impl<E> Default for Slots<E> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<E> Slots<E> {
    pub(super) fn insert(&mut self, slot: Slot, entry: E) {
        let index = slot as usize;
        if index >= self.0.len() {
            self.0.resize_with(index + 1, || None);
        }
        self.0[index] = Some(entry);
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Option<E> {
        self.0.get_mut(slot as usize)?.take()
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&E> {
        self.0.get(slot as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut E> {
        self.0.get_mut(slot as usize)?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, &E)> {
        let entries = (0..).zip(&self.0);
        entries.filter_map(|(slot, entry)| Some((slot, entry.as_ref()?)))
    }
}

/// The names of evicted entries, oldest first, of so many bytes in all.
#[derive(Clone, Debug, Default)]
pub(super) struct Ghosts {
    limit: u64,
    bytes: u64,
    clock: u64,
    /// When each was evicted.
    times: HashMap<u64, u64, FixedState>,
    order: BTreeMap<u64, (u64, u64)>,
}

impl Ghosts {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }

    /// Remembers an entry of so many bytes; the oldest names beyond the limit are forgotten.
    pub(super) fn remember(&mut self, name: u64, bytes: u64) {
        self.recall(name);
        if bytes > self.limit {
            return;
        }
        self.clock += 1;
        self.bytes += bytes;
        self.times.insert(name, self.clock);
        self.order.insert(self.clock, (name, bytes));
        while self.bytes > self.limit
            && let Some((_, (name, bytes))) = self.order.pop_first()
        {
            self.bytes -= bytes;
            self.times.remove(&name);
        }
    }

    /// Whether the name is remembered; it is forgotten.
    pub(super) fn recall(&mut self, name: u64) -> bool {
        let Some(time) = self.times.remove(&name) else {
            return false;
        };
        if let Some((_, bytes)) = self.order.remove(&time) {
            self.bytes -= bytes;
        }
        true
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        let bytes = self.order.values().map(|(_, bytes)| bytes).sum::<u64>();
        if bytes != self.bytes || bytes > self.limit {
            return Err(format!(
                "{bytes} bytes are remembered, {} are counted, {} are allowed",
                self.bytes, self.limit
            ));
        }
        let named = |(time, (name, _)): (&u64, &(u64, u64))| self.times.get(name) == Some(time);
        if self.times.len() != self.order.len() || !self.order.iter().all(named) {
            return Err("remembered names and their order differ".to_owned());
        }
        Ok(())
    }
}
