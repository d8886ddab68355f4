//! Uses and recency against size.

use super::params::Params;
use super::scored::{Score, Uses};
use crate::error::Result;
use crate::sim::page::key::Fading;
use crate::sim::page::workload::PageId;

/// `2 * uses + step of the last use / step now - 0.4 * KiB`. From kv-hierarchy-lab. O(log n) a call.
#[derive(Debug)]
pub(super) struct CostAware {
    frequency_weight: f64,
    recency_weight: f64,
    size_penalty: f64,
    uses: Vec<Uses>,
}

impl CostAware {
    pub(super) fn new(params: &mut Params<'_>) -> Result<Self> {
        let usual = Self::default();
        Ok(Self {
            frequency_weight: params.number("frequency_weight", usual.frequency_weight)?,
            recency_weight: params.number("recency_weight", usual.recency_weight)?,
            size_penalty: params.number("size_penalty", usual.size_penalty)?,
            ..usual
        })
    }
}

impl Default for CostAware {
    fn default() -> Self {
        Self {
            frequency_weight: 2.0,
            recency_weight: 1.0,
            size_penalty: 0.4,
            uses: Vec::new(),
        }
    }
}

impl Score for CostAware {
    type Key = Fading;

    fn reserve(&mut self, pages: usize) {
        self.uses.resize(pages, Uses::default());
    }

    fn on_access(&mut self, step: u64, page: PageId) -> Option<PageId> {
        self.uses[page as usize].record(step);
        None
    }

    fn key(&self, page: PageId, bytes: u64) -> Fading {
        let uses = &self.uses[page as usize];
        Fading {
            steady: self.frequency_weight * uses.count,
            recency: self.recency_weight * uses.last,
            extra: -(self.size_penalty * (bytes as f64 / 1024.0)),
        }
    }

    fn copy(&mut self, from: PageId, to: PageId) {
        self.uses[to as usize] = self.uses[from as usize];
    }
}
