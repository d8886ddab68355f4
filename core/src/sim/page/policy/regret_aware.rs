//! Evictions that were regretted are not repeated.

use super::params::Params;
use super::scored::{NEVER, Score, Uses};
use crate::error::Result;
use crate::sim::page::key::Fading;
use crate::sim::page::workload::PageId;

/// `1.5 * uses + step of the last use / step now + 6 * regret`. A use within 24 steps of the page's latest eviction adds
/// `(24 - gap + 1) / 24` to its regret, of which 0.98 remain at each use. From kv-hierarchy-lab. O(log n) a call.
///
/// With weight 0 what is left is the frequency score alone.
#[derive(Debug)]
pub(super) struct RegretAware {
    weight: f64,
    horizon: u32,
    frequency_weight: f64,
    recency_weight: f64,
    decay: f64,
    pages: Vec<Past>,
}

/// What is kept of a page.
#[derive(Clone, Copy, Debug)]
struct Past {
    uses: Uses,
    regret: f64,
    /// [`NEVER`] for a page that was not evicted since its last use.
    evicted: f64,
}

impl RegretAware {
    pub(super) fn new(params: &mut Params<'_>) -> Result<Self> {
        let usual = Self::default();
        Ok(Self {
            weight: params.number("weight", usual.weight)?,
            horizon: params.count("horizon", usual.horizon)?,
            frequency_weight: params.number("frequency_weight", usual.frequency_weight)?,
            recency_weight: params.number("recency_weight", usual.recency_weight)?,
            decay: params.number("decay", usual.decay)?,
            ..usual
        })
    }
}

impl Default for RegretAware {
    fn default() -> Self {
        Self {
            weight: 6.0,
            horizon: 24,
            frequency_weight: 1.5,
            recency_weight: 1.0,
            decay: 0.98,
            pages: Vec::new(),
        }
    }
}

impl Score for RegretAware {
    type Key = Fading;

    fn reserve(&mut self, pages: usize) {
        let new = Past {
            uses: Uses::default(),
            regret: 0.0,
            evicted: NEVER,
        };
        self.pages.resize(pages, new);
    }

    fn on_access(&mut self, step: u64, page: PageId) -> Option<PageId> {
        let past = &mut self.pages[page as usize];
        past.uses.record(step);
        past.regret *= self.decay;
        let evicted = std::mem::replace(&mut past.evicted, NEVER);
        if evicted != NEVER {
            let horizon = f64::from(self.horizon);
            let gap = step as f64 - evicted;
            if gap <= horizon {
                past.regret += (horizon - gap + 1.0) / horizon;
            }
        }
        None
    }

    fn on_evict(&mut self, step: u64, page: PageId) {
        self.pages[page as usize].evicted = step as f64;
    }

    fn key(&self, page: PageId, _bytes: u64) -> Fading {
        let past = &self.pages[page as usize];
        Fading {
            steady: self.frequency_weight * past.uses.count,
            recency: self.recency_weight * past.uses.last,
            extra: self.weight * past.regret,
        }
    }

    fn copy(&mut self, from: PageId, to: PageId) {
        let Past { uses, regret, .. } = self.pages[from as usize];
        let to = &mut self.pages[to as usize];
        (to.uses, to.regret) = (uses, regret);
    }
}
