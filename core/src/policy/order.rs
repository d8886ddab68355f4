//! Entries by slot, and the candidates among them in the order of a rank.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Bound;

use super::Slot;
use super::slots::{Place, Slots};

#[derive(Debug)]
struct Placed<E, R> {
    entry: E,
    rank: R,
    candidate: bool,
}

/// Entries, and the candidates in the order of their ranks; slots settle ties. Every call costs O(log candidates).
#[derive(Debug)]
pub(super) struct Order<E, R> {
    entries: Slots<Placed<E, R>>,
    candidates: BTreeSet<Place<R>>,
}

impl<E, R> Default for Order<E, R> {
    fn default() -> Self {
        Self {
            entries: Slots::default(),
            candidates: BTreeSet::new(),
        }
    }
}

impl<E, R: Copy + Ord + fmt::Debug> Order<E, R> {
    /// A new entry, no candidate yet.
    pub(super) fn insert(&mut self, slot: Slot, entry: E, rank: R) {
        let placed = Placed {
            entry,
            rank,
            candidate: false,
        };
        self.entries.insert(slot, placed);
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&E> {
        self.entries.get(slot).map(|placed| &placed.entry)
    }

    /// An entry to be changed in what its rank does not depend on.
    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut E> {
        self.entries.get_mut(slot).map(|placed| &mut placed.entry)
    }

    pub(super) fn rank(&self, slot: Slot) -> Option<R> {
        self.entries.get(slot).map(|placed| placed.rank)
    }

    /// Changes an entry and gives it the rank that `change` returns.
    pub(super) fn update(&mut self, slot: Slot, change: impl FnOnce(&mut E) -> R) {
        let Some(placed) = self.entries.get_mut(slot) else {
            return;
        };
        let rank = change(&mut placed.entry);
        if placed.candidate && rank != placed.rank {
            self.candidates.remove(&(placed.rank, slot));
            self.candidates.insert((rank, slot));
        }
        placed.rank = rank;
    }

    pub(super) fn set_candidate(&mut self, slot: Slot, candidate: bool) {
        let Some(placed) = self.entries.get_mut(slot) else {
            return;
        };
        placed.candidate = candidate;
        if candidate {
            self.candidates.insert((placed.rank, slot));
        } else {
            self.candidates.remove(&(placed.rank, slot));
        }
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Option<E> {
        let placed = self.entries.remove(slot)?;
        if placed.candidate {
            self.candidates.remove(&(placed.rank, slot));
        }
        Some(placed.entry)
    }

    /// The candidate of the lowest rank.
    pub(super) fn first(&self) -> Option<Slot> {
        self.candidates.first().map(|(_, slot)| *slot)
    }

    /// The candidate at a place, or else the first behind it.
    pub(super) fn first_from(&self, place: Place<R>) -> Option<Place<R>> {
        self.candidates.range(place..).next().copied()
    }

    /// The first candidate behind a place.
    pub(super) fn first_behind(&self, place: Place<R>) -> Option<Place<R>> {
        let behind = (Bound::Excluded(place), Bound::Unbounded);
        self.candidates.range(behind).next().copied()
    }

    /// The last candidate up to a place.
    pub(super) fn last_upto(&self, place: Place<R>) -> Option<Place<R>> {
        self.candidates.range(..=place).next_back().copied()
    }

    /// How many candidates there are.
    pub(super) fn candidates(&self) -> usize {
        self.candidates.len()
    }

    /// All entries, candidates or not.
    pub(super) fn entries(&self) -> impl Iterator<Item = &E> {
        self.entries.iter().map(|(_, placed)| &placed.entry)
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        let marked = self.entries.iter().filter(|(_, placed)| placed.candidate);
        let marked = marked.count();
        if marked != self.candidates.len() {
            return Err(format!(
                "{marked} entries are marked as candidates, {} are listed",
                self.candidates.len()
            ));
        }
        for (rank, slot) in &self.candidates {
            let placed = self.entries.get(*slot);
            if !placed.is_some_and(|placed| placed.candidate && placed.rank == *rank) {
                return Err(format!("slot {slot} is listed at a wrong rank, {rank:?}"));
            }
        }
        Ok(())
    }
}
