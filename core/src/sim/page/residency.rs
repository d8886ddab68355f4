//! Which page lies in which tier, and how full the tiers are.

use super::tier::TierSpec;
use super::workload::{Page, PageId, TierIndex};

/// The end of a list.
const END: u32 = u32::MAX;
/// Stands as `next` of a page that is not in the tier.
const ABSENT: u32 = u32::MAX - 1;

#[derive(Clone, Copy, Debug)]
struct Link {
    before: u32,
    next: u32,
}

#[derive(Clone, Debug)]
struct State {
    capacity: u64,
    used: u64,
    peak: u64,
    /// Bytes of a page that is being moved away: still taken, but no candidate.
    held: u64,
    first: u32,
    last: u32,
    pages: usize,
}

/// The pages of each tier, in the order in which they came.
#[derive(Clone, Debug)]
pub struct Residency {
    tiers: Vec<State>,
    /// Of page `p` in tier `t`: at `p * tiers + t`.
    links: Vec<Link>,
}

impl Residency {
    pub(super) fn new(tiers: &[TierSpec], pages: usize) -> Self {
        let empty = |tier: &TierSpec| State {
            capacity: tier.capacity_bytes,
            used: 0,
            peak: 0,
            held: 0,
            first: END,
            last: END,
            pages: 0,
        };
        let nowhere = Link {
            before: END,
            next: ABSENT,
        };
        Self {
            tiers: tiers.iter().map(empty).collect(),
            links: vec![nowhere; pages * tiers.len()],
        }
    }

    /// How many tiers there are.
    pub fn tiers(&self) -> usize {
        self.tiers.len()
    }

    /// Whether the page is in the tier.
    pub fn contains(&self, tier: TierIndex, page: PageId) -> bool {
        self.links[page as usize * self.tiers.len() + tier].next != ABSENT
    }

    /// The fastest tier that the page is in.
    pub fn find(&self, page: PageId) -> Option<TierIndex> {
        let start = page as usize * self.tiers.len();
        self.links[start..start + self.tiers.len()]
            .iter()
            .position(|link| link.next != ABSENT)
    }

    /// The tier's pages, the one that came first at the front.
    pub fn residents(&self, tier: TierIndex) -> impl Iterator<Item = PageId> + '_ {
        let mut at = self.tiers[tier].first;
        std::iter::from_fn(move || {
            let page = at;
            if page == END {
                return None;
            }
            at = self.link(page, tier).next;
            Some(page)
        })
    }

    /// How many pages the tier has.
    pub fn len(&self, tier: TierIndex) -> usize {
        self.tiers[tier].pages
    }

    /// Bytes that are taken in the tier.
    pub fn used_bytes(&self, tier: TierIndex) -> u64 {
        self.tiers[tier].used
    }

    /// Bytes that are free in the tier.
    pub fn free_bytes(&self, tier: TierIndex) -> u64 {
        self.tiers[tier].capacity - self.tiers[tier].used
    }

    /// The most bytes that were ever taken in the tier.
    pub fn peak_bytes(&self, tier: TierIndex) -> u64 {
        self.tiers[tier].peak
    }

    fn link(&self, page: PageId, tier: TierIndex) -> Link {
        self.links[page as usize * self.tiers.len() + tier]
    }

    fn link_mut(&mut self, page: PageId, tier: TierIndex) -> &mut Link {
        let tiers = self.tiers.len();
        &mut self.links[page as usize * tiers + tier]
    }

    pub(super) fn fits(&self, tier: TierIndex, bytes: u64) -> bool {
        bytes <= self.free_bytes(tier)
    }

    /// Puts the page last in the tier's order. It must fit, and not be there.
    pub(super) fn add(&mut self, tier: TierIndex, page: PageId, bytes: u64) {
        let before = self.tiers[tier].last;
        *self.link_mut(page, tier) = Link { before, next: END };
        if before == END {
            self.tiers[tier].first = page;
        } else {
            self.link_mut(before, tier).next = page;
        }
        let state = &mut self.tiers[tier];
        state.last = page;
        state.pages += 1;
        state.used += bytes;
        state.peak = state.peak.max(state.used);
    }

    /// Takes the page out of the tier, where it must be.
    pub(super) fn remove(&mut self, tier: TierIndex, page: PageId, bytes: u64) {
        self.unlink(tier, page);
        self.tiers[tier].used -= bytes;
    }

    /// Takes the page out of the tier's order but leaves it its room, until `release`.
    pub(super) fn hold(&mut self, tier: TierIndex, page: PageId, bytes: u64) {
        self.unlink(tier, page);
        self.tiers[tier].held += bytes;
    }

    /// Gives up the room of what is held.
    pub(super) fn release(&mut self, tier: TierIndex) {
        let held = std::mem::take(&mut self.tiers[tier].held);
        self.tiers[tier].used -= held;
    }

    fn unlink(&mut self, tier: TierIndex, page: PageId) {
        let Link { before, next } = self.link(page, tier);
        self.link_mut(page, tier).next = ABSENT;
        if before == END {
            self.tiers[tier].first = next;
        } else {
            self.link_mut(before, tier).next = next;
        }
        if next == END {
            self.tiers[tier].last = before;
        } else {
            self.link_mut(next, tier).before = before;
        }
        self.tiers[tier].pages -= 1;
    }

    /// Pages that are in more than one tier.
    pub(super) fn doubles(&self) -> usize {
        self.links
            .chunks_exact(self.tiers.len())
            .filter(|links| links.iter().filter(|link| link.next != ABSENT).count() > 1)
            .count()
    }

    /// Checks that lists, counts and bytes agree, and that no tier is or was over its capacity.
    pub(super) fn validate(&self, pages: &[Page]) -> Result<(), String> {
        for (tier, state) in self.tiers.iter().enumerate() {
            let mut bytes = state.held;
            let mut count = 0;
            let mut before = END;
            for page in self.residents(tier) {
                if self.link(page, tier).before != before {
                    return Err(format!("tier {tier}: page {page} does not follow {before}"));
                }
                before = page;
                bytes += pages[page as usize].bytes;
                count += 1;
            }
            if before != state.last || count != state.pages {
                return Err(format!(
                    "tier {tier}: {count} pages, {} counted",
                    state.pages
                ));
            }
            if bytes != state.used {
                return Err(format!(
                    "tier {tier}: {bytes} bytes, {} counted",
                    state.used
                ));
            }
            if state.peak < state.used || state.peak > state.capacity {
                return Err(format!(
                    "tier {tier}: {} bytes of {} are used, the peak is {}",
                    state.used, state.capacity, state.peak
                ));
            }
        }
        let linked = self.links.iter().filter(|link| link.next != ABSENT).count();
        let listed: usize = self.tiers.iter().map(|state| state.pages).sum();
        if linked != listed {
            return Err(format!("{linked} places are marked, {listed} are listed"));
        }
        Ok(())
    }
}
