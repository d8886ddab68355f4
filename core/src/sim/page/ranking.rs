//! Orders of a tier's pages by score, for scores that only change when something happens to a page.

use std::cmp::Ordering;

use super::workload::{PageId, TierIndex};

/// Children of one heap entry.
const ARITY: usize = 4;
/// The place of a page that is not in the tier.
const ABSENT: u32 = u32::MAX;

/// Pages of several tiers, the one of the lowest score first in each; of equals, the one that entered the tier first.
pub(super) trait Order: Default + Send + std::fmt::Debug {
    /// What a score is made from.
    type Key: Copy;

    /// Makes room for so many pages and tiers; keeps what is in.
    fn reserve(&mut self, pages: usize, tiers: usize);
    /// The page is in the tier from now on.
    fn enter(&mut self, step: u64, tier: TierIndex, page: PageId, key: Self::Key);
    /// The page is in the tier no more.
    fn leave(&mut self, step: u64, tier: TierIndex, page: PageId);
    /// The page's key changed, wherever it is.
    fn update(&mut self, step: u64, page: PageId, key: Self::Key);
    /// The first page of the tier. `step` never goes back between calls.
    fn first(&mut self, step: u64, tier: TierIndex) -> Option<PageId>;
    /// The score at a step.
    fn score(key: Self::Key, step: u64) -> f64;
}

/// Where the pages of each tier stand in the tier's order; next to each other for one page.
#[derive(Debug, Default)]
pub(super) struct Places {
    tiers: usize,
    places: Vec<u32>,
}

impl Places {
    pub(super) fn reserve(&mut self, pages: usize, tiers: usize) {
        debug_assert!(self.places.is_empty() || self.tiers == tiers);
        self.tiers = tiers;
        self.places.resize(pages * tiers, ABSENT);
    }

    pub(super) fn get(&self, tier: TierIndex, page: PageId) -> Option<u32> {
        let place = self.places[page as usize * self.tiers + tier];
        (place != ABSENT).then_some(place)
    }

    pub(super) fn set(&mut self, tier: TierIndex, page: PageId, place: u32) {
        self.places[page as usize * self.tiers + tier] = place;
    }

    pub(super) fn clear(&mut self, tier: TierIndex, page: PageId) {
        self.set(tier, page, ABSENT);
    }

    pub(super) fn tiers(&self) -> usize {
        self.tiers
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    score: f64,
    /// Counts up with each page that enters a tier.
    entered: u64,
    page: PageId,
}

impl Entry {
    fn goes_before(&self, other: &Self) -> bool {
        match self.score.partial_cmp(&other.score) {
            Some(Ordering::Less) => true,
            Some(Ordering::Greater) => false,
            _ => self.entered < other.entered,
        }
    }
}

/// A heap a tier: every change is O(log n), the first page O(1).
#[derive(Debug, Default)]
pub(super) struct Ranking {
    heaps: Vec<Vec<Entry>>,
    places: Places,
    entries: u64,
}

impl Ranking {
    fn put(&mut self, tier: TierIndex, place: usize, entry: Entry) {
        self.heaps[tier][place] = entry;
        self.places.set(tier, entry.page, place as u32);
    }

    fn rise(&mut self, tier: TierIndex, mut place: usize, entry: Entry) {
        while place > 0 {
            let above = (place - 1) / ARITY;
            let other = self.heaps[tier][above];
            if !entry.goes_before(&other) {
                break;
            }
            self.put(tier, place, other);
            place = above;
        }
        self.put(tier, place, entry);
    }

    fn sink(&mut self, tier: TierIndex, mut place: usize, entry: Entry) {
        loop {
            let heap = &self.heaps[tier];
            let children = place * ARITY + 1;
            let mut least = place;
            let mut best = entry;
            let end = heap.len().min(children + ARITY);
            for (child, other) in (children..end).zip(&heap[children.min(end)..end]) {
                if other.goes_before(&best) {
                    (least, best) = (child, *other);
                }
            }
            if least == place {
                break;
            }
            self.put(tier, place, best);
            place = least;
        }
        self.put(tier, place, entry);
    }

    /// Puts the entry where it belongs, with a hole at `place`.
    fn settle(&mut self, tier: TierIndex, place: usize, entry: Entry) {
        if place > 0 && entry.goes_before(&self.heaps[tier][(place - 1) / ARITY]) {
            self.rise(tier, place, entry);
        } else {
            self.sink(tier, place, entry);
        }
    }
}

impl Order for Ranking {
    type Key = f64;

    fn reserve(&mut self, pages: usize, tiers: usize) {
        self.places.reserve(pages, tiers);
        self.heaps.resize_with(tiers, Vec::new);
    }

    fn enter(&mut self, _step: u64, tier: TierIndex, page: PageId, score: f64) {
        self.entries += 1;
        let entry = Entry {
            score,
            entered: self.entries,
            page,
        };
        self.heaps[tier].push(entry);
        let place = self.heaps[tier].len() - 1;
        self.rise(tier, place, entry);
    }

    fn leave(&mut self, _step: u64, tier: TierIndex, page: PageId) {
        let Some(place) = self.places.get(tier, page) else {
            return;
        };
        self.places.clear(tier, page);
        let Some(last) = self.heaps[tier].pop() else {
            return;
        };
        if last.page != page {
            self.settle(tier, place as usize, last);
        }
    }

    fn update(&mut self, _step: u64, page: PageId, score: f64) {
        for tier in 0..self.places.tiers() {
            if let Some(place) = self.places.get(tier, page) {
                let place = place as usize;
                let entry = self.heaps[tier][place];
                if entry.score.to_bits() != score.to_bits() {
                    self.settle(tier, place, Entry { score, ..entry });
                }
            }
        }
    }

    fn first(&mut self, _step: u64, tier: TierIndex) -> Option<PageId> {
        self.heaps[tier].first().map(|entry| entry.page)
    }

    fn score(score: f64, _step: u64) -> f64 {
        score
    }
}
