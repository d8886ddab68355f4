//! Entries by slot.

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
