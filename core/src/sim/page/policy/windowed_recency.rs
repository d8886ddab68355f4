//! Uses in a window of the latest accesses.

use std::collections::VecDeque;

use super::params::Params;
use super::scored::{NEVER, Score};
use crate::error::Result;
use crate::sim::page::workload::PageId;

/// A use within the window outweighs any difference in recency.
const USE: f64 = 1e6;

/// `1e6 * uses among the last 32 accesses + step of the last use`. From kv-hierarchy-lab. O(log n) a call.
#[derive(Debug)]
pub(super) struct WindowedRecency {
    window: u32,
    recent: VecDeque<PageId>,
    uses: Vec<f64>,
    last: Vec<f64>,
}

impl WindowedRecency {
    pub(super) fn new(params: &mut Params<'_>) -> Result<Self> {
        let usual = Self::default();
        Ok(Self {
            window: params.count("window", usual.window)?,
            ..usual
        })
    }
}

impl Default for WindowedRecency {
    fn default() -> Self {
        Self {
            window: 32,
            recent: VecDeque::new(),
            uses: Vec::new(),
            last: Vec::new(),
        }
    }
}

impl Score for WindowedRecency {
    type Key = f64;

    fn reserve(&mut self, pages: usize) {
        self.uses.resize(pages, 0.0);
        self.last.resize(pages, NEVER);
    }

    fn on_access(&mut self, step: u64, page: PageId) -> Option<PageId> {
        self.recent.push_back(page);
        self.uses[page as usize] += 1.0;
        self.last[page as usize] = step as f64;
        if self.recent.len() <= self.window as usize {
            return None;
        }
        let oldest = self.recent.pop_front()?;
        self.uses[oldest as usize] -= 1.0;
        Some(oldest)
    }

    fn key(&self, page: PageId, _bytes: u64) -> f64 {
        self.uses[page as usize] * USE + self.last[page as usize]
    }

    /// Uses in the window stay with the page that was used.
    fn copy(&mut self, from: PageId, to: PageId) {
        self.last[to as usize] = self.last[from as usize];
    }
}
