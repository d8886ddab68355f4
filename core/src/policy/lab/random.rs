//! Random replacement.

use super::draw::Draw;
use super::ranks::Held;
use super::sampled::Sampled;
use crate::policy::{EntryMeta, EvictionPolicy, Slot};

/// Evicts any candidate, each with the same probability: what a policy must beat. O(1) a call.
///
/// The draws are the same in every run (`draw.rs`).
#[derive(Debug)]
pub(super) struct Random {
    draw: Draw,
    entries: Sampled<()>,
    /// The draw that the owner has not followed yet.
    drawn: Option<Slot>,
}

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            draw: Draw::new(seed),
            entries: Sampled::default(),
            drawn: None,
        }
    }
}

impl EvictionPolicy for Random {
    fn insert(&mut self, slot: Slot, ghost: u64, meta: EntryMeta) {
        let history = ();
        let held = Held {
            ghost,
            meta,
            history,
        };
        self.entries.insert(slot, held);
    }

    fn touch(&mut self, _slot: Slot) {}

    fn renew(&mut self, _slot: Slot) {}

    fn split(
        &mut self,
        head: Slot,
        head_meta: EntryMeta,
        _tail: Slot,
        _tail_ghost: u64,
        _tail_meta: EntryMeta,
    ) {
        self.insert(head, 0, head_meta);
    }

    fn trim(&mut self, _slot: Slot, _ghost: u64, _meta: EntryMeta) {
        self.drawn = None;
    }

    fn set_candidate(&mut self, slot: Slot, candidate: bool) {
        self.entries.set_candidate(slot, candidate);
        self.drawn = None;
    }

    fn remove(&mut self, slot: Slot) {
        self.entries.remove(slot);
        self.drawn = None;
    }

    fn victim(&mut self) -> Option<Slot> {
        if self.drawn.is_none() {
            let candidates = self.entries.candidates();
            let count = candidates.len();
            self.drawn = (count > 0).then(|| candidates[self.draw.below(count)]);
        }
        self.drawn
    }

    fn candidates(&self) -> usize {
        self.entries.candidates().len()
    }

    fn validate(&self) -> Result<(), String> {
        self.entries.validate()
    }
}
