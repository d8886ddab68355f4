//! Live policies in page mode: one instance a tier.

use super::policy::{Context, Departure, PagePolicy};
use super::workload::{PageId, TierIndex};
use crate::error::{Error, Result};
use crate::policy::{EntryMeta, EvictionPolicy, simulated};

/// A policy of [`crate::policy`], one instance for each tier. A page's number is its slot in all of them.
///
/// A tier's instance hears of the uses of pages that the tier has; a page that is demoted is new to the tier below. A step
/// stands for a millisecond, all pages cost the same to recompute.
#[derive(Debug)]
pub struct PerTier {
    tiers: Vec<Box<dyn EvictionPolicy>>,
}

impl PerTier {
    /// The policy of that name for tiers of these capacities in bytes.
    ///
    /// # Errors
    /// [`Error::Config`] for an unknown name.
    pub fn new(name: &str, capacities: &[u64]) -> Result<Self> {
        let tiers = capacities.iter().map(|&bytes| simulated(name, bytes));
        Ok(Self {
            tiers: tiers.collect::<Result<_>>()?,
        })
    }
}

/// A page's name in 64 bits that are spread well (`SplitMix64`, Steele et al., OOPSLA 2014).
fn ghost(page: PageId) -> u64 {
    let mut bits = u64::from(page).wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

impl PagePolicy for PerTier {
    fn reserve(&mut self, _pages: usize, tiers: usize) {
        debug_assert_eq!(tiers, self.tiers.len());
    }

    fn on_access(&mut self, context: &Context<'_>, page: PageId, hit_tier: Option<TierIndex>) {
        for policy in &mut self.tiers {
            policy.request(context.step, 0);
        }
        if let Some(tier) = hit_tier {
            self.tiers[tier].touch(page);
        }
    }

    fn entered(&mut self, context: &Context<'_>, page: PageId, tier: TierIndex) {
        let meta = EntryMeta {
            bytes: context.pages[page as usize].bytes,
            cost: 1.0,
            ..EntryMeta::default()
        };
        self.tiers[tier].insert(page, ghost(page), meta);
        self.tiers[tier].set_candidate(page, true);
    }

    fn left(&mut self, _context: &Context<'_>, page: PageId, tier: TierIndex, why: Departure) {
        match why {
            Departure::Evicted => self.tiers[tier].evicted(page),
            Departure::Promoted => self.tiers[tier].remove(page),
        }
    }

    fn select_eviction_candidate(
        &mut self,
        _context: &Context<'_>,
        tier: TierIndex,
        incoming: PageId,
    ) -> Result<PageId> {
        self.tiers[tier].victim().ok_or_else(|| {
            Error::invalid(format!(
                "tier {tier} has no page that could make room for page {incoming}; make it larger"
            ))
        })
    }
}
