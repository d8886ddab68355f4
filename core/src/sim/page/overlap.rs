//! When transfers begin and end, if they overlap with compute.

use super::tier::TierSpec;
use super::workload::{PageId, TierIndex};

/// Transfers go on while the model computes.
///
/// Each access is followed by `compute_ms` of compute. An access waits for the transfer that promotes its page, and for nothing
/// else: demotions go on behind its back (what they move stands in a write buffer), prefetches as well. A page that was
/// prefetched but has not arrived is waited for. A transfer takes a place in its source and in its target tier from its begin to
/// its end; tiers with a [`concurrency`](TierSpec::concurrency) have so many places, and transfers get them in the order in which
/// they were asked for. So demotions and prefetches delay a promotion once places are short.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overlap {
    /// Milliseconds of compute behind each access.
    pub compute_ms: f64,
}

/// The clock of a run.
#[derive(Debug)]
pub(super) struct Schedule {
    compute_ms: f64,
    /// When each place of each tier is free again; no places are any number.
    places: Vec<Vec<f64>>,
    /// When each page that was prefetched is there.
    arrives: Vec<f64>,
    now: f64,
    last_end: f64,
    pub(super) waited_ms: f64,
    pub(super) queued_ms: f64,
    pub(super) late_prefetches: u64,
}

impl Schedule {
    pub(super) fn new(overlap: Overlap, tiers: &[TierSpec], pages: usize) -> Self {
        let places = |tier: &TierSpec| vec![0.0; tier.concurrency.unwrap_or(0) as usize];
        Self {
            compute_ms: overlap.compute_ms,
            places: tiers.iter().map(places).collect(),
            arrives: vec![0.0; pages],
            now: 0.0,
            last_end: 0.0,
            waited_ms: 0.0,
            queued_ms: 0.0,
            late_prefetches: 0,
        }
    }

    /// Milliseconds until all is done.
    pub(super) fn elapsed_ms(&self) -> f64 {
        self.now.max(self.last_end)
    }

    /// A transfer that nobody waits for; gives its end.
    pub(super) fn transfer(&mut self, from: TierIndex, to: TierIndex, milliseconds: f64) -> f64 {
        let (source, target) = (self.free_place(from), self.free_place(to));
        let free = |place: Option<usize>, tier: TierIndex| {
            place.map_or(self.now, |place| self.places[tier][place])
        };
        let begin = self.now.max(free(source, from)).max(free(target, to));
        let end = begin + milliseconds;
        for (tier, place) in [(from, source), (to, target)] {
            if let Some(place) = place {
                self.places[tier][place] = end;
            }
        }
        self.queued_ms += begin - self.now;
        self.last_end = self.last_end.max(end);
        end
    }

    fn free_place(&self, tier: TierIndex) -> Option<usize> {
        let places = &self.places[tier];
        (0..places.len()).min_by(|&a, &b| places[a].total_cmp(&places[b]))
    }

    /// A transfer that the access waits for.
    pub(super) fn promote(&mut self, from: TierIndex, to: TierIndex, milliseconds: f64) {
        let end = self.transfer(from, to, milliseconds);
        self.wait_until(end);
    }

    /// The page will be there when the transfer has ended.
    pub(super) fn prefetch(&mut self, page: PageId, from: TierIndex, to: TierIndex, ms: f64) {
        self.arrives[page as usize] = self.transfer(from, to, ms);
    }

    /// The page is read where it is, as soon as it is there.
    pub(super) fn hit(&mut self, page: PageId, milliseconds: f64) {
        let arrives = self.arrives[page as usize];
        if arrives > self.now {
            self.late_prefetches += 1;
        }
        self.wait_until(self.now.max(arrives) + milliseconds);
    }

    fn wait_until(&mut self, time: f64) {
        self.waited_ms += time - self.now;
        self.now = time;
    }

    /// The compute behind an access.
    pub(super) fn compute(&mut self) {
        self.now += self.compute_ms;
    }
}
