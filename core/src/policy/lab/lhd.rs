//! LHD: least hit density.

use super::density::{AGES, Density};
use super::draw::Draw;
use super::ranks::{Held, weight};
use super::sampled::Sampled;
use crate::policy::{EntryMeta, EvictionPolicy, Slot};

/// Candidates that are compared for a victim; the authors' value.
const SAMPLE: usize = 32;
/// Uses between two computations of the densities. The authors take 1,048,576, for caches of millions of objects.
const PERIOD: u64 = 16_384;

#[derive(Clone, Copy, Debug)]
struct Uses {
    last: u64,
    /// The ages at which the last two hits came.
    ages: [u32; 2],
}

impl Uses {
    fn class(&self) -> u32 {
        self.ages[0] + self.ages[1]
    }
}

/// LHD (Beckmann, Chen and Cidon, NSDI'18): evicts what is expected to bring the fewest hits for the room and the time that it
/// will take: hits over time to the next hit or eviction, as learned online for entries of its age and class, over its size.
/// Of 32 candidates drawn at random the least goes. O(1) a use, O(32) a victim, and every 16,384 uses 16 x 1,024 steps.
///
/// - Ages count uses, in steps that are fitted to the number of entries; the class is by the ages of the last two hits.
/// - Sample, decay and error tolerance are the authors'; they know 20,000 ages, computed anew every 1,048,576 uses. Ours are
///   smaller, for traces of some 100,000 uses.
/// - Left out of the authors' code: explorers (entries that are never evicted, to learn of old ages), the last eight newcomers as
///   extra candidates, and classes by application.
/// - Blocks cut off a leaf count as an eviction; the parts of a split entry both keep its uses. Nothing is remembered of
///   evicted entries.
/// - The draws are the same in every run (`draw.rs`).
#[derive(Debug)]
pub(super) struct Lhd {
    draw: Draw,
    now: u64,
    density: Density,
    entries: Sampled<Uses>,
    /// The draw that the owner has not followed yet.
    drawn: Option<Slot>,
}

impl Lhd {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            draw: Draw::new(seed),
            now: 0,
            density: Density::new(),
            entries: Sampled::default(),
            drawn: None,
        }
    }

    fn tick(&mut self) {
        self.drawn = None;
        self.now += 1;
        if self.now.is_multiple_of(PERIOD) {
            self.density.learn();
        }
    }

    fn worth(&self, slot: Slot) -> f64 {
        let Some(held) = self.entries.get(slot) else {
            return f64::INFINITY;
        };
        let age = self.density.age(self.now - held.history.last);
        self.density.of(held.history.class(), age) / held.weight() as f64
    }

    fn lost(&mut self, uses: &Uses) {
        let age = self.density.age(self.now - uses.last);
        self.density.evicted(uses.class(), age);
    }
}

impl EvictionPolicy for Lhd {
    fn insert(&mut self, slot: Slot, ghost: u64, meta: EntryMeta) {
        self.tick();
        let history = Uses {
            last: self.now,
            ages: [0, AGES as u32],
        };
        let held = Held {
            ghost,
            meta,
            history,
        };
        self.entries.insert(slot, held);
        self.density.fit(self.entries.entries());
    }

    fn touch(&mut self, slot: Slot) {
        self.tick();
        let Some(held) = self.entries.get_mut(slot) else {
            return;
        };
        let uses = &mut held.history;
        let (class, age) = (uses.class(), self.density.age(self.now - uses.last));
        *uses = Uses {
            last: self.now,
            ages: [age, uses.ages[0]],
        };
        self.density.hit(class, age);
    }

    fn renew(&mut self, _slot: Slot) {}

    fn split(
        &mut self,
        head: Slot,
        head_meta: EntryMeta,
        tail: Slot,
        _tail_ghost: u64,
        tail_meta: EntryMeta,
    ) {
        let Some(held) = self.entries.get_mut(tail) else {
            return;
        };
        held.meta = tail_meta;
        let head_held = Held {
            meta: head_meta,
            ..*held
        };
        self.drawn = None;
        self.entries.insert(head, head_held);
    }

    fn trim(&mut self, slot: Slot, _ghost: u64, meta: EntryMeta) {
        let Some(held) = self.entries.get_mut(slot) else {
            return;
        };
        debug_assert!(weight(&meta) <= held.weight(), "a trim makes smaller");
        held.meta = meta;
        let uses = held.history;
        self.drawn = None;
        self.lost(&uses);
    }

    fn set_candidate(&mut self, slot: Slot, candidate: bool) {
        self.drawn = None;
        self.entries.set_candidate(slot, candidate);
    }

    fn evicted(&mut self, slot: Slot) {
        self.drawn = None;
        if let Some(held) = self.entries.remove(slot) {
            self.lost(&held.history);
        }
    }

    fn remove(&mut self, slot: Slot) {
        self.drawn = None;
        self.entries.remove(slot);
    }

    fn victim(&mut self) -> Option<Slot> {
        if self.drawn.is_some() {
            return self.drawn;
        }
        let count = self.entries.candidates().len();
        let mut least: Option<(f64, Slot)> = None;
        for at in 0..SAMPLE.min(count) {
            // Few candidates are all compared.
            let at = if count <= SAMPLE {
                at
            } else {
                self.draw.below(count)
            };
            let slot = self.entries.candidates()[at];
            let worth = self.worth(slot);
            if least.is_none_or(|(least, _)| worth < least) {
                least = Some((worth, slot));
            }
        }
        self.drawn = least.map(|(_, slot)| slot);
        self.drawn
    }

    fn candidates(&self) -> usize {
        self.entries.candidates().len()
    }

    fn validate(&self) -> Result<(), String> {
        self.entries.validate()
    }
}
