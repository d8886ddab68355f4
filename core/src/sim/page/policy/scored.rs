//! A policy that is a score: the page of the lowest goes first.

use super::{Context, Departure, PagePolicy};
use crate::error::{Error, Result};
use crate::sim::page::key::Key;
use crate::sim::page::tournament::Order;
use crate::sim::page::workload::{PageId, TierIndex};

/// What a page is worth to a policy, and what changes that.
pub(super) trait Score: Send + std::fmt::Debug {
    /// What a score is made from.
    type Key: Key;

    /// Makes room for so many pages.
    fn reserve(&mut self, pages: usize);
    /// The page is used, and its key changes; gives another page whose key changes as well.
    fn on_access(&mut self, step: u64, page: PageId) -> Option<PageId>;
    /// The page was inserted; says whether that changes its key.
    fn on_insert(&mut self, _step: u64, _page: PageId) -> bool {
        false
    }
    /// The page was evicted, which changes no key.
    fn on_evict(&mut self, _step: u64, _page: PageId) {}
    /// What the page's score is made from.
    fn key(&self, page: PageId, bytes: u64) -> Self::Key;
    /// Appends the pages to fetch after the use of this one.
    fn prefetch(&self, _page: PageId, _wanted: &mut Vec<PageId>) {}
    /// Gives `to` the past of `from`.
    fn copy(&mut self, from: PageId, to: PageId);
}

/// A score, and each tier's pages in its order.
#[derive(Debug)]
pub(super) struct Scored<S: Score> {
    score: S,
    order: Order<S::Key>,
    /// A page that was used but does not stand at its new place yet: most that are used below the first tier leave it at once.
    used: Option<PageId>,
}

impl<S: Score> Scored<S> {
    pub(super) fn new(score: S) -> Self {
        Self {
            score,
            order: Order::default(),
            used: None,
        }
    }

    fn key(&self, context: &Context<'_>, page: PageId) -> S::Key {
        self.score.key(page, context.pages[page as usize].bytes)
    }

    fn update(&mut self, context: &Context<'_>, page: PageId) {
        let key = self.key(context, page);
        self.order.update(context.step, page, key);
    }

    fn settle(&mut self, context: &Context<'_>) {
        if let Some(page) = self.used.take() {
            self.update(context, page);
        }
    }
}

impl<S: Score> PagePolicy for Scored<S> {
    fn reserve(&mut self, pages: usize, tiers: usize) {
        self.score.reserve(pages);
        self.order.reserve(pages, tiers);
    }

    fn on_access(&mut self, context: &Context<'_>, page: PageId, _hit_tier: Option<TierIndex>) {
        if self.used != Some(page) {
            self.settle(context);
        }
        self.used = Some(page);
        if let Some(other) = self.score.on_access(context.step, page) {
            self.update(context, other);
        }
    }

    fn on_insert(&mut self, context: &Context<'_>, page: PageId, _tier: TierIndex) {
        if self.score.on_insert(context.step, page) {
            self.update(context, page);
        }
    }

    fn on_evict(&mut self, context: &Context<'_>, page: PageId, _tier: TierIndex) {
        self.score.on_evict(context.step, page);
    }

    fn entered(&mut self, context: &Context<'_>, page: PageId, tier: TierIndex) {
        let key = self.key(context, page);
        self.order.enter(context.step, tier, page, key);
    }

    fn left(&mut self, _context: &Context<'_>, page: PageId, tier: TierIndex, _why: Departure) {
        self.order.leave(tier, page);
    }

    fn select_eviction_candidate(
        &mut self,
        context: &Context<'_>,
        tier: TierIndex,
        incoming: PageId,
    ) -> Result<PageId> {
        self.settle(context);
        self.order.first(context.step, tier).ok_or_else(|| {
            Error::invalid(format!(
                "tier {tier} has no page that could make room for page {incoming}; make it larger"
            ))
        })
    }

    fn maybe_prefetch(&mut self, _context: &Context<'_>, page: PageId, wanted: &mut Vec<PageId>) {
        self.score.prefetch(page, wanted);
    }

    fn score_page(&self, context: &Context<'_>, page: PageId, _tier: TierIndex) -> f64 {
        self.key(context, page).score(context.step)
    }

    fn on_split(&mut self, page: PageId, head: PageId) {
        self.score.copy(page, head);
    }
}

/// The step of a page that was never used.
pub(super) const NEVER: f64 = -1.0;

/// How often and when a page was used last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Uses {
    pub(super) count: f64,
    /// [`NEVER`] before the first use.
    pub(super) last: f64,
}

impl Default for Uses {
    fn default() -> Self {
        Self {
            count: 0.0,
            last: NEVER,
        }
    }
}

impl Uses {
    pub(super) fn record(&mut self, step: u64) {
        self.count += 1.0;
        self.last = step as f64;
    }
}
