//! What the policies of the lab are made of: entries by slot, the candidates among them in the order of a rank.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Bound;

use crate::policy::slots::Slots;
use crate::policy::{EntryMeta, Slot};

/// What an entry counts for in lists and ghosts: its bytes, so that a list of entries of several blocks is as long as it is large.
pub(super) fn weight(meta: &EntryMeta) -> u64 {
    meta.bytes.max(1)
}

/// Numbers for uses in their order. None is 0.
#[derive(Debug, Default)]
pub(super) struct Stamps(u64);

impl Stamps {
    pub(super) fn next(&mut self) -> u64 {
        self.0 += 1;
        self.0
    }
}

/// An entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held<H> {
    pub(super) ghost: u64,
    pub(super) meta: EntryMeta,
    /// What its policy keeps of it.
    pub(super) history: H,
}

impl<H> Held<H> {
    pub(super) fn weight(&self) -> u64 {
        weight(&self.meta)
    }
}

#[derive(Debug)]
struct Place<H, R> {
    held: Held<H>,
    rank: R,
    candidate: bool,
}

/// Entries by slot, and the candidates among them ordered by rank. Every call costs O(log candidates).
#[derive(Debug)]
pub(super) struct Ranks<H, R> {
    places: Slots<Place<H, R>>,
    order: BTreeSet<(R, Slot)>,
}

impl<H, R> Default for Ranks<H, R> {
    fn default() -> Self {
        Self {
            places: Slots::default(),
            order: BTreeSet::new(),
        }
    }
}

impl<H, R: Copy + Ord + fmt::Debug> Ranks<H, R> {
    pub(super) fn insert(&mut self, slot: Slot, held: Held<H>, rank: R) {
        let place = Place {
            held,
            rank,
            candidate: false,
        };
        self.places.insert(slot, place);
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Held<H>> {
        self.places.get(slot).map(|place| &place.held)
    }

    /// Changes an entry and gives it the rank that `change` returns.
    pub(super) fn update(&mut self, slot: Slot, change: impl FnOnce(&mut Held<H>) -> R) {
        let Some(place) = self.places.get_mut(slot) else {
            return;
        };
        let rank = change(&mut place.held);
        if place.candidate && rank != place.rank {
            self.order.remove(&(place.rank, slot));
            self.order.insert((rank, slot));
        }
        place.rank = rank;
    }

    pub(super) fn set_candidate(&mut self, slot: Slot, candidate: bool) {
        let Some(place) = self.places.get_mut(slot) else {
            return;
        };
        place.candidate = candidate;
        if candidate {
            self.order.insert((place.rank, slot));
        } else {
            self.order.remove(&(place.rank, slot));
        }
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Option<Held<H>> {
        let place = self.places.remove(slot)?;
        if place.candidate {
            self.order.remove(&(place.rank, slot));
        }
        Some(place.held)
    }

    /// The candidate of the lowest rank.
    pub(super) fn first(&self) -> Option<Slot> {
        self.order.first().map(|(_, slot)| *slot)
    }

    pub(super) fn candidates(&self) -> usize {
        self.order.len()
    }

    /// All entries, candidates or not.
    pub(super) fn held(&self) -> impl Iterator<Item = &Held<H>> {
        self.places.iter().map(|(_, place)| &place.held)
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        let marked = self.places.iter().filter(|(_, place)| place.candidate);
        let marked = marked.count();
        if marked != self.order.len() {
            return Err(format!(
                "{marked} entries are marked as candidates, {} are listed",
                self.order.len()
            ));
        }
        for (rank, slot) in &self.order {
            let place = self.places.get(*slot);
            if !place.is_some_and(|place| place.candidate && place.rank == *rank) {
                return Err(format!("slot {slot} is listed at a wrong rank, {rank:?}"));
            }
        }
        Ok(())
    }
}

/// Where a rank is a class and an order within it, every class is a list.
impl<H, C: Copy + Ord + fmt::Debug, const N: usize> Ranks<H, (C, [u64; N])> {
    /// The first candidate of a class.
    pub(super) fn first_of(&self, class: C) -> Option<Slot> {
        let ((found, _), slot) = self.order.range(((class, [0; N]), 0)..).next()?;
        (*found == class).then_some(*slot)
    }

    /// The first candidate of each class, and its order. Costs O(log candidates) a class.
    pub(super) fn heads(&self) -> impl Iterator<Item = ((C, [u64; N]), Slot)> {
        std::iter::successors(self.order.first().copied(), |((class, _), _)| {
            let last = ((*class, [u64::MAX; N]), Slot::MAX);
            let mut rest = self.order.range((Bound::Excluded(last), Bound::Unbounded));
            rest.next().copied()
        })
    }

    /// The order of the last candidate of a class.
    pub(super) fn last_of(&self, class: C) -> Option<[u64; N]> {
        let upto = ((class, [u64::MAX; N]), Slot::MAX);
        let ((found, order), _) = self.order.range(..=upto).next_back()?;
        (*found == class).then_some(*order)
    }
}
