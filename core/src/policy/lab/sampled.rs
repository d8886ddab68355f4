//! Candidates without an order, of which any can be drawn.

use super::ranks::Held;
use crate::policy::Slot;
use crate::policy::slots::Slots;

#[derive(Debug)]
struct Place<H> {
    held: Held<H>,
    /// Where it stands among the candidates.
    index: Option<usize>,
}

/// Entries by slot, and a list of the candidates. O(1) a call.
#[derive(Debug)]
pub(super) struct Sampled<H> {
    places: Slots<Place<H>>,
    candidates: Vec<Slot>,
    entries: usize,
}

impl<H> Default for Sampled<H> {
    fn default() -> Self {
        Self {
            places: Slots::default(),
            candidates: Vec::new(),
            entries: 0,
        }
    }
}

impl<H> Sampled<H> {
    pub(super) fn insert(&mut self, slot: Slot, held: Held<H>) {
        self.places.insert(slot, Place { held, index: None });
        self.entries += 1;
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Held<H>> {
        self.places.get(slot).map(|place| &place.held)
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut Held<H>> {
        self.places.get_mut(slot).map(|place| &mut place.held)
    }

    pub(super) fn set_candidate(&mut self, slot: Slot, candidate: bool) {
        let Some(place) = self.places.get_mut(slot) else {
            return;
        };
        match (candidate, place.index) {
            (true, None) => {
                place.index = Some(self.candidates.len());
                self.candidates.push(slot);
            }
            (false, Some(index)) => {
                place.index = None;
                self.candidates.swap_remove(index);
                if let Some(moved) = self.candidates.get(index)
                    && let Some(place) = self.places.get_mut(*moved)
                {
                    place.index = Some(index);
                }
            }
            (true, Some(_)) | (false, None) => {}
        }
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Option<Held<H>> {
        self.set_candidate(slot, false);
        let place = self.places.remove(slot)?;
        self.entries -= 1;
        Some(place.held)
    }

    pub(super) fn candidates(&self) -> &[Slot] {
        &self.candidates
    }

    /// How many entries there are, candidates or not.
    pub(super) fn entries(&self) -> usize {
        self.entries
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        let entries = self.places.iter().count();
        let marked = self.places.iter();
        let marked = marked.filter(|(_, place)| place.index.is_some()).count();
        if entries != self.entries || marked != self.candidates.len() {
            return Err(format!(
                "{entries} entries, {marked} marked as candidates; counted are {} and {}",
                self.entries,
                self.candidates.len()
            ));
        }
        for (index, slot) in self.candidates.iter().enumerate() {
            let place = self.places.get(*slot);
            if place.and_then(|place| place.index) != Some(index) {
                return Err(format!("slot {slot} does not know its place, {index}"));
            }
        }
        Ok(())
    }
}
