//! The most used pages stay.

use super::scored::{Score, Uses};
use crate::sim::page::workload::PageId;

/// What a use is worth, in steps of recency.
const USE: f64 = 1e4;

/// `1e4 * uses + step of the last use`. From kv-hierarchy-lab. O(log n) a call.
#[derive(Debug, Default)]
pub(super) struct HeavyHitter {
    uses: Vec<Uses>,
}

impl Score for HeavyHitter {
    type Key = f64;

    fn reserve(&mut self, pages: usize) {
        self.uses.resize(pages, Uses::default());
    }

    fn on_access(&mut self, step: u64, page: PageId) -> Option<PageId> {
        self.uses[page as usize].record(step);
        None
    }

    fn key(&self, page: PageId, _bytes: u64) -> f64 {
        let uses = &self.uses[page as usize];
        uses.count * USE + uses.last
    }

    fn copy(&mut self, from: PageId, to: PageId) {
        self.uses[to as usize] = self.uses[from as usize];
    }
}
