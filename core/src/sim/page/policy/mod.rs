//! Page-mode policies, one file each, and the trait that they share.
//!
//! The hooks are those of kv-hierarchy-lab's policies; the six policies are its six, to the last bit of every score.

mod cost_aware;
mod heavy_hitter;
mod lru;
mod params;
mod predictive;
mod regret_aware;
mod scored;
mod windowed_recency;

use std::fmt;

use super::as_eviction::PageScored;
use super::engine::{Hierarchy, Simulation};
use super::metrics::Outcome;
use super::per_tier::PerTier;
use super::residency::Residency;
use super::workload::{Page, PageId, TierIndex, Workload};
use crate::error::{Error, Result};
use crate::policy::{EvictionPolicy, KNOWN};
use params::Params;
use scored::{Score, Scored};

/// What a policy may look at.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The step of the access that is being served.
    pub step: u64,
    /// All pages, by number.
    pub pages: &'a [Page],
    /// Where they are.
    pub residency: &'a Residency,
}

/// Why a page left a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// It was the victim; [`PagePolicy::on_evict`] follows.
    Evicted,
    /// It moves up.
    Promoted,
}

/// Decides what leaves a tier, and what is fetched ahead. One policy serves all tiers.
///
/// The order of hooks at an access: `on_access`; if it misses, `on_miss`; if the page was nowhere, `entered` and `on_insert` of
/// the last tier; then for each victim `left`, `on_evict` and, one tier down, `entered`; at last `entered`, `on_insert` and
/// `on_promote` of the first tier. A demotion has no `on_insert`.
pub trait PagePolicy: Send + fmt::Debug {
    /// Makes room for so many pages and tiers. Called before the first hook, and again only to tell of more pages.
    fn reserve(&mut self, pages: usize, tiers: usize);
    /// The page is used; `hit_tier` is the fastest tier that it is in.
    fn on_access(&mut self, _context: &Context<'_>, _page: PageId, _hit_tier: Option<TierIndex>) {}
    /// The page that is used is not in the first tier.
    fn on_miss(&mut self, _context: &Context<'_>, _page: PageId) {}
    /// The page was put into the first tier, or into the last as it was nowhere.
    fn on_insert(&mut self, _context: &Context<'_>, _page: PageId, _tier: TierIndex) {}
    /// The page was evicted from the tier; it is demoted next, or dropped from the last.
    fn on_evict(&mut self, _context: &Context<'_>, _page: PageId, _tier: TierIndex) {}
    /// The page was moved to the first tier.
    fn on_promote(&mut self, _context: &Context<'_>, _page: PageId, _from: TierIndex) {}
    /// The page is among the tier's candidates from now on.
    fn entered(&mut self, _context: &Context<'_>, _page: PageId, _tier: TierIndex) {}
    /// The page is no candidate of the tier any more.
    fn left(&mut self, _context: &Context<'_>, _page: PageId, _tier: TierIndex, _why: Departure) {}
    /// The page that leaves the tier so that `incoming` fits; one of the tier's residents, of which there is at least one.
    ///
    /// # Errors
    /// What a policy of the caller's raised.
    fn select_eviction_candidate(
        &mut self,
        context: &Context<'_>,
        tier: TierIndex,
        incoming: PageId,
    ) -> Result<PageId>;
    /// Appends the pages that should be fetched to the first tier after this access, the likeliest first.
    fn maybe_prefetch(&mut self, _context: &Context<'_>, _page: PageId, _wanted: &mut Vec<PageId>) {
    }
    /// How much the page is worth in the tier; the lowest goes first. 0 for a policy that has no scores.
    fn score_page(&self, _context: &Context<'_>, _page: PageId, _tier: TierIndex) -> f64 {
        0.0
    }
    /// Replays a workload from its beginning to its end. Not meant to be written anew: it is here so that the engine is compiled
    /// for each policy.
    ///
    /// # Errors
    /// What [`Simulation::new`] and [`Simulation::run`] refuse.
    fn replay(&mut self, hierarchy: &Hierarchy, workload: &Workload) -> Result<Outcome> {
        Simulation::new(hierarchy, workload, self)?.run()
    }
    /// `head` is a page from now on, with the past of `page`: what was one piece is two.
    fn on_split(&mut self, _page: PageId, _head: PageId) {}
}

/// The policies of page mode by name, with what they do and the parameters they take. All of
/// [`crate::policy::KNOWN`] can run as well, one instance a tier: by its name, or as `per_tier:NAME` where a name stands for
/// both.
pub const NAMES: [(&str, &str, &[&str]); 6] = [
    (
        "lru",
        "the page used or inserted longest ago goes first",
        &[],
    ),
    (
        "windowed_recency",
        "the page with the fewest uses among the last `window` accesses",
        &["window"],
    ),
    ("heavy_hitter", "the page with the fewest uses ever", &[]),
    (
        "cost_aware",
        "uses and recency, less a charge for size",
        &["frequency_weight", "recency_weight", "size_penalty"],
    ),
    (
        "predictive",
        "as heavy_hitter with more weight on recency; prefetches what followed a page before",
        &["min_confidence", "max_prefetches"],
    ),
    (
        "regret_aware",
        "uses and recency, plus regret for pages that were used soon after an eviction",
        &[
            "weight",
            "horizon",
            "frequency_weight",
            "recency_weight",
            "decay",
        ],
    ),
];

/// The prefix that asks for one instance a tier of a policy of [`crate::policy`].
const PER_TIER: &str = "per_tier:";

/// A fresh policy by its name, with its parameters, for tiers of these capacities in bytes.
///
/// # Errors
/// [`Error::Config`] that lists the known names, or parameters, or says what a value must be.
pub fn by_name(
    name: &str,
    params: &[(String, f64)],
    capacities: &[u64],
) -> Result<Box<dyn PagePolicy>> {
    let mut params = Params::new(name, params);
    let policy: Box<dyn PagePolicy> = match name {
        "lru" => Box::new(Scored::new(lru::Lru::default())),
        "windowed_recency" => Box::new(Scored::new(windowed_recency::WindowedRecency::new(
            &mut params,
        )?)),
        "heavy_hitter" => Box::new(Scored::new(heavy_hitter::HeavyHitter::default())),
        "cost_aware" => Box::new(Scored::new(cost_aware::CostAware::new(&mut params)?)),
        "predictive" => Box::new(Scored::new(predictive::Predictive::new(&mut params)?)),
        "regret_aware" => Box::new(Scored::new(regret_aware::RegretAware::new(&mut params)?)),
        _ => {
            let tiered = name.strip_prefix(PER_TIER).unwrap_or(name);
            if !KNOWN.iter().any(|known| known.name == tiered) {
                return Err(unknown(name));
            }
            Box::new(PerTier::new(tiered, capacities)?)
        }
    };
    params.finish()?;
    Ok(policy)
}

/// One of kv-hierarchy-lab's policies in prefix mode, where `lru` is [`crate::policy::Lru`].
fn in_prefix_mode<S: Score + 'static>(score: S) -> Box<dyn EvictionPolicy> {
    Box::new(PageScored::new(Box::new(Scored::new(score))))
}

pub(crate) fn windowed_recency() -> Box<dyn EvictionPolicy> {
    in_prefix_mode(windowed_recency::WindowedRecency::default())
}

pub(crate) fn heavy_hitter() -> Box<dyn EvictionPolicy> {
    in_prefix_mode(heavy_hitter::HeavyHitter::default())
}

pub(crate) fn cost_aware() -> Box<dyn EvictionPolicy> {
    in_prefix_mode(cost_aware::CostAware::default())
}

pub(crate) fn predictive() -> Box<dyn EvictionPolicy> {
    in_prefix_mode(predictive::Predictive::default())
}

pub(crate) fn regret_aware() -> Box<dyn EvictionPolicy> {
    in_prefix_mode(regret_aware::RegretAware::default())
}

fn unknown(name: &str) -> Error {
    Error::Config {
        name: "policy",
        value: name.to_owned(),
        remedy: format!(
            "use one of: {}; or, one instance a tier, of: {}",
            NAMES.map(|(name, ..)| name).join(", "),
            KNOWN
                .iter()
                .map(|known| known.name)
                .collect::<Vec<_>>()
                .join(", ")
        ),
    }
}
