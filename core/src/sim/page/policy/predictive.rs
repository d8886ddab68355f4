//! What followed a page before is fetched when the page is used again.

use std::collections::HashMap;

use super::params::Params;
use super::scored::{Score, Uses};
use crate::error::Result;
use crate::sim::page::workload::PageId;

/// What a use is worth, in steps of recency.
const USE: f64 = 100.0;

/// How often one page followed another.
#[derive(Clone, Copy, Debug)]
struct Successor {
    page: PageId,
    count: u32,
    /// Its place among the page's successors, in the order in which they were first seen.
    seen: u32,
}

impl Successor {
    fn goes_before(&self, other: &Self) -> bool {
        self.count > other.count || (self.count == other.count && self.seen < other.seen)
    }
}

/// The successors of one page: how many there are, and the most frequent.
#[derive(Clone, Debug, Default)]
struct Successors {
    seen: u32,
    best: Vec<Successor>,
}

/// `100 * uses + step of the last use`; prefetches the 2 pages that followed most often, if they did at least twice. From
/// kv-hierarchy-lab. O(log n) a call, and a look-up in a hash map a use; its memory grows with the number of different successions.
#[derive(Debug)]
pub(super) struct Predictive {
    min_confidence: u32,
    max_prefetches: u32,
    uses: Vec<Uses>,
    before: Option<PageId>,
    successors: Vec<Successors>,
    counts: HashMap<(PageId, PageId), Successor, foldhash::fast::FixedState>,
}

impl Predictive {
    pub(super) fn new(params: &mut Params<'_>) -> Result<Self> {
        let usual = Self::default();
        Ok(Self {
            min_confidence: params.count("min_confidence", usual.min_confidence)?,
            max_prefetches: params.count("max_prefetches", usual.max_prefetches)?,
            ..usual
        })
    }

    fn record(&mut self, before: PageId, page: PageId) {
        let successors = &mut self.successors[before as usize];
        let successor = self.counts.entry((before, page)).or_insert_with(|| {
            successors.seen += 1;
            Successor {
                page,
                count: 0,
                seen: successors.seen,
            }
        });
        successor.count += 1;
        let successor = *successor;
        let best = &mut successors.best;
        // Only this one's count grew: it can but rise, by as many places as it takes.
        match best.iter().position(|other| other.page == page) {
            Some(at) => best[at] = successor,
            None => best.push(successor),
        }
        for at in (1..best.len()).rev() {
            if best[at].goes_before(&best[at - 1]) {
                best.swap(at, at - 1);
            }
        }
        best.truncate(self.max_prefetches as usize);
    }
}

impl Default for Predictive {
    fn default() -> Self {
        Self {
            min_confidence: 2,
            max_prefetches: 2,
            uses: Vec::new(),
            before: None,
            successors: Vec::new(),
            counts: HashMap::default(),
        }
    }
}

impl Score for Predictive {
    type Key = f64;

    fn reserve(&mut self, pages: usize) {
        self.uses.resize(pages, Uses::default());
        self.successors.resize_with(pages, Successors::default);
    }

    fn on_access(&mut self, step: u64, page: PageId) -> Option<PageId> {
        if let Some(before) = self.before.replace(page) {
            self.record(before, page);
        }
        self.uses[page as usize].record(step);
        None
    }

    fn key(&self, page: PageId, _bytes: u64) -> f64 {
        let uses = &self.uses[page as usize];
        uses.count * USE + uses.last
    }

    fn prefetch(&self, page: PageId, wanted: &mut Vec<PageId>) {
        let best = &self.successors[page as usize].best;
        let sure = best.iter().filter(|next| next.count >= self.min_confidence);
        wanted.extend(sure.map(|next| next.page));
    }

    fn copy(&mut self, from: PageId, to: PageId) {
        self.uses[to as usize] = self.uses[from as usize];
    }
}
