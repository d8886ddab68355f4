//! Page-mode policies in prefix mode.

use std::collections::HashMap;

use super::policy::{Context, Departure, PagePolicy};
use super::residency::Residency;
use super::workload::{Page, PageId, TierIndex};
use crate::policy::{EntryMeta, EvictionPolicy, Slot};

/// A policy of page mode that ranks the candidates of one tier; for the simulator only.
///
/// An entry is a page that is called by its ghost, so that it has its past back when it comes back, whatever its slot. A step is
/// a use or an insertion. The past of what is gone is kept for good; calls are O(log n).
#[derive(Debug)]
pub struct PageScored {
    policy: Box<dyn PagePolicy>,
    step: u64,
    names: HashMap<u64, PageId, foldhash::fast::FixedState>,
    pages: Vec<Page>,
    /// The slot of each page that has one.
    slots: Vec<Slot>,
    entries: Vec<Option<Entry>>,
    candidates: usize,
    /// Nothing: where entries lie is their owner's business.
    residency: Residency,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    page: PageId,
    ghost: u64,
    candidate: bool,
}

/// The one tier that the policy is told of.
const TIER: TierIndex = 0;
const VACANT: Slot = Slot::MAX;

macro_rules! context {
    ($scored:expr) => {
        Context {
            step: $scored.step,
            pages: &$scored.pages,
            residency: &$scored.residency,
        }
    };
}

impl PageScored {
    /// A fresh policy of page mode, in place of one of prefix mode.
    pub fn new(policy: Box<dyn PagePolicy>) -> Self {
        Self {
            policy,
            step: 0,
            names: HashMap::default(),
            pages: Vec::new(),
            slots: Vec::new(),
            entries: Vec::new(),
            candidates: 0,
            residency: Residency::new(&[], 0),
        }
    }

    fn entry(&self, slot: Slot) -> Option<Entry> {
        self.entries.get(slot as usize).copied().flatten()
    }

    /// The page of that name, a new one if there is none, of so many bytes from now on.
    fn page(&mut self, ghost: u64, bytes: u64) -> PageId {
        let next = self.pages.len();
        let page = *self.names.entry(ghost).or_insert(next as PageId);
        let at = page as usize;
        if at == next {
            self.pages.push(Page {
                bytes,
                decode_ms: 0.0,
                tier: None,
            });
            self.slots.push(VACANT);
            if next.is_power_of_two() || next == 0 {
                self.policy.reserve((next * 2).max(16), 1);
            }
        }
        self.pages[at].bytes = bytes;
        page
    }

    /// Gives the slot to a page; it is no candidate yet.
    fn place(&mut self, slot: Slot, page: PageId, ghost: u64) {
        let at = slot as usize;
        if at >= self.entries.len() {
            self.entries.resize(at + 1, None);
        }
        self.entries[at] = Some(Entry {
            page,
            ghost,
            candidate: false,
        });
        self.slots[page as usize] = slot;
    }

    fn withdraw(&mut self, slot: Slot, why: Departure) {
        if let Some(entry) = self.entries[slot as usize]
            .as_mut()
            .filter(|entry| entry.candidate)
        {
            entry.candidate = false;
            self.candidates -= 1;
            let page = entry.page;
            self.policy.left(&context!(self), page, TIER, why);
        }
    }

    fn vacate(&mut self, slot: Slot, why: Departure) -> Option<Entry> {
        let entry = self.entry(slot)?;
        self.withdraw(slot, why);
        self.slots[entry.page as usize] = VACANT;
        self.entries[slot as usize] = None;
        Some(entry)
    }
}

impl EvictionPolicy for PageScored {
    fn wants_ghosts(&self) -> bool {
        true
    }

    fn insert(&mut self, slot: Slot, ghost: u64, meta: EntryMeta) {
        self.step += 1;
        let page = self.page(ghost, meta.bytes);
        self.place(slot, page, ghost);
        self.policy.on_access(&context!(self), page, None);
        self.policy.on_miss(&context!(self), page);
        self.policy.on_insert(&context!(self), page, TIER);
    }

    fn touch(&mut self, slot: Slot) {
        self.step += 1;
        if let Some(entry) = self.entry(slot) {
            self.policy
                .on_access(&context!(self), entry.page, Some(TIER));
        }
    }

    /// Inserted anew, not used.
    fn renew(&mut self, slot: Slot) {
        self.step += 1;
        if let Some(entry) = self.entry(slot) {
            self.policy.on_insert(&context!(self), entry.page, TIER);
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
        let Some(whole) = self.entry(tail) else {
            return;
        };
        self.withdraw(tail, Departure::Promoted);
        let rest = self.page(tail_ghost, tail_meta.bytes);
        self.policy.on_split(whole.page, rest);
        self.pages[whole.page as usize].bytes = head_meta.bytes;
        self.place(head, whole.page, whole.ghost);
        self.place(tail, rest, tail_ghost);
        self.set_candidate(tail, whole.candidate);
    }

    fn trim(&mut self, slot: Slot, ghost: u64, meta: EntryMeta) {
        let Some(entry) = self.entry(slot) else {
            return;
        };
        let before = self.pages[entry.page as usize].bytes;
        let cut = self.page(ghost, before.saturating_sub(meta.bytes));
        self.policy.on_split(entry.page, cut);
        self.policy.on_evict(&context!(self), cut, TIER);
        // Its score may depend on its size.
        self.withdraw(slot, Departure::Promoted);
        self.pages[entry.page as usize].bytes = meta.bytes;
        self.set_candidate(slot, entry.candidate);
    }

    fn set_candidate(&mut self, slot: Slot, candidate: bool) {
        if !candidate {
            self.withdraw(slot, Departure::Promoted);
        } else if let Some(entry) = self.entries[slot as usize]
            .as_mut()
            .filter(|entry| !entry.candidate)
        {
            entry.candidate = true;
            self.candidates += 1;
            let page = entry.page;
            self.policy.entered(&context!(self), page, TIER);
        }
    }

    fn evicted(&mut self, slot: Slot) {
        if let Some(entry) = self.vacate(slot, Departure::Evicted) {
            self.policy.on_evict(&context!(self), entry.page, TIER);
        }
    }

    fn remove(&mut self, slot: Slot) {
        if let Some(entry) = self.vacate(slot, Departure::Promoted) {
            self.names.remove(&entry.ghost);
        }
    }

    fn victim(&mut self) -> Option<Slot> {
        if self.candidates == 0 {
            return None;
        }
        let chosen = self
            .policy
            .select_eviction_candidate(&context!(self), TIER, 0);
        chosen.ok().map(|page| self.slots[page as usize])
    }

    fn candidates(&self) -> usize {
        self.candidates
    }

    fn validate(&self) -> Result<(), String> {
        let mut candidates = 0;
        for (slot, entry) in self.entries.iter().enumerate() {
            let Some(entry) = entry else { continue };
            candidates += usize::from(entry.candidate);
            if self.slots[entry.page as usize] != slot as Slot {
                return Err(format!("page {} does not know its slot {slot}", entry.page));
            }
            if self.names.get(&entry.ghost) != Some(&entry.page) {
                return Err(format!(
                    "page {} is not called {:x}",
                    entry.page, entry.ghost
                ));
            }
        }
        if candidates != self.candidates {
            return Err(format!(
                "{candidates} candidates, {} counted",
                self.candidates
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::simulated;

    const META: EntryMeta = EntryMeta {
        bytes: 4,
        tokens: 0,
        depth: 0,
        cost: 1.0,
        category: 0,
    };

    fn heavy_hitter(entries: &[(Slot, u64)]) -> Box<dyn EvictionPolicy> {
        let mut policy = simulated("heavy_hitter", 100).unwrap();
        for &(slot, ghost) in entries {
            policy.insert(slot, ghost, META);
            policy.set_candidate(slot, true);
            policy.validate().unwrap();
        }
        policy
    }

    #[test]
    fn what_comes_back_has_its_past_back_whatever_its_slot() {
        let mut policy = heavy_hitter(&[(0, 10), (1, 11)]);
        for _ in 0..3 {
            policy.touch(0);
        }
        assert_eq!(policy.victim(), Some(1));
        policy.evicted(0);
        policy.evicted(1);
        assert_eq!((policy.candidates(), policy.victim()), (0, None));
        for (slot, ghost) in [(1, 10), (0, 12)] {
            policy.insert(slot, ghost, META);
            policy.set_candidate(slot, true);
        }
        assert_eq!(policy.victim(), Some(0));
        policy.validate().unwrap();
        // What was removed is forgotten.
        policy.remove(1);
        policy.insert(1, 10, META);
        policy.set_candidate(1, true);
        policy.touch(0);
        assert_eq!(policy.victim(), Some(1));
        policy.validate().unwrap();
    }

    #[test]
    fn both_parts_of_a_split_have_its_uses_and_the_later_one_stays_a_candidate() {
        let mut policy = heavy_hitter(&[(0, 10), (1, 11)]);
        policy.touch(0);
        policy.split(2, META, 0, 20, META);
        policy.validate().unwrap();
        assert_eq!(policy.candidates(), 2);
        assert_eq!(policy.victim(), Some(1));
        policy.set_candidate(2, true);
        policy.touch(1);
        policy.touch(1);
        // The head entered last; it and the tail were used twice.
        assert_eq!(policy.victim(), Some(0));
        policy.evicted(0);
        assert_eq!(policy.victim(), Some(2));
        policy.validate().unwrap();
    }

    #[test]
    fn a_trim_evicts_the_piece_that_was_cut() {
        let mut policy = simulated("cost_aware", 100).unwrap();
        for (slot, bytes) in [(0, 8_192), (1, 6_000)] {
            policy.insert(slot, u64::from(slot), EntryMeta { bytes, ..META });
            policy.set_candidate(slot, true);
        }
        assert_eq!(policy.victim(), Some(0));
        policy.trim(
            0,
            50,
            EntryMeta {
                bytes: 4_096,
                ..META
            },
        );
        assert_eq!((policy.victim(), policy.candidates()), (Some(1), 2));
        policy.validate().unwrap();
    }
}
