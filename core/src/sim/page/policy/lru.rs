//! Least recently used.

use super::scored::{NEVER, Score};
use crate::sim::page::workload::PageId;

/// The step of a page's last use or insertion. From kv-hierarchy-lab. O(log n) a call.
#[derive(Debug, Default)]
pub(super) struct Lru {
    last: Vec<f64>,
}

impl Score for Lru {
    type Key = f64;

    fn reserve(&mut self, pages: usize) {
        self.last.resize(pages, NEVER);
    }

    fn on_access(&mut self, step: u64, page: PageId) -> Option<PageId> {
        self.last[page as usize] = step as f64;
        None
    }

    fn on_insert(&mut self, step: u64, page: PageId) -> bool {
        self.last[page as usize] = step as f64;
        true
    }

    fn key(&self, page: PageId, _bytes: u64) -> f64 {
        self.last[page as usize]
    }

    fn copy(&mut self, from: PageId, to: PageId) {
        self.last[to as usize] = self.last[from as usize];
    }
}
