//! What a run counts.

use super::workload::TierIndex;

/// The result of a run. Counts and bytes are exact; milliseconds are the model's.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Outcome {
    /// Rows that used a page.
    pub accesses: u64,
    /// Accesses whose page was not in the first tier.
    pub misses: u64,
    /// Misses whose page was in no tier.
    pub cold_misses: u64,
    /// Accesses whose page was in the tier, by tier; only those of the first are hits.
    pub found: Vec<u64>,
    /// Pages that left a tier as victims, from any tier.
    pub evictions: u64,
    /// Evictions from the last tier, which drop the page.
    pub dropped: u64,
    /// What all hits and transfers cost, one after the other.
    pub total_ms: f64,
    /// Bytes moved for accesses: promotions, and all demotions.
    pub demand_bytes: u64,
    /// Bytes moved up by prefetches.
    pub prefetch_bytes: u64,
    /// Pages that were fetched ahead.
    pub prefetches: u64,
    /// Prefetched pages that were used before they left the first tier.
    pub useful_prefetches: u64,
    /// Prefetched pages that left it first, or were not used by the end.
    pub wasted_prefetches: u64,
    /// The most bytes that lay in each tier.
    pub peak_bytes: Vec<u64>,
    /// Bytes that lie in each tier at the end.
    pub resident_bytes: Vec<u64>,
    /// Bytes of pages that came into the tiers, those that started there included.
    pub inserted_bytes: u64,
    /// Bytes of pages that were dropped.
    pub dropped_bytes: u64,
    /// Promotions that left the page behind in a second tier; only `Engine::Compat` has any.
    pub double_residencies: u64,
    /// What the run was like with overlap, if that was asked for.
    pub overlapped: Option<Overlapped>,
}

/// What a run is like when transfers overlap with compute.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Overlapped {
    /// From the first access until compute and transfers have ended.
    pub elapsed_ms: f64,
    /// What accesses waited for: promotions, pages underway, reads.
    pub waited_ms: f64,
    /// What transfers waited for a place in their tiers.
    pub queued_ms: f64,
    /// Hits whose page was still underway.
    pub late_prefetches: u64,
}

impl Outcome {
    /// Hits in the first tier over accesses; 0 for an empty trace.
    pub fn hit_rate(&self) -> f64 {
        if self.accesses == 0 {
            return 0.0;
        }
        1.0 - self.misses as f64 / self.accesses as f64
    }

    /// Accesses that found their page in the tier, over all; 0 for an empty trace.
    pub fn tier_hit_rate(&self, tier: TierIndex) -> f64 {
        ratio(self.found[tier], self.accesses)
    }

    /// What an access waits for on average: with overlap what it waited for, else its share of all hits and transfers.
    pub fn mean_latency_ms(&self) -> f64 {
        if self.accesses == 0 {
            return 0.0;
        }
        let total = self
            .overlapped
            .map_or(self.total_ms, |overlapped| overlapped.waited_ms);
        total / self.accesses as f64
    }

    /// Useful prefetches over all; 0 if there were none.
    pub fn useful_prefetch_ratio(&self) -> f64 {
        ratio(self.useful_prefetches, self.prefetches)
    }

    /// All bytes that were moved.
    pub fn bytes_moved(&self) -> u64 {
        self.demand_bytes + self.prefetch_bytes
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}
