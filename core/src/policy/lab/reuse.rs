//! How often, and how soon, entries of a category are used again.

use std::collections::BTreeMap;

/// A category's sums are halved when it has seen so many uses, so that what is long past loses weight.
const WINDOW: f64 = 10_000.0;
/// The mean time between two uses that a category is taken to have until it shows another.
const PRIOR_MS: f64 = 60_000.0;

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    uses: f64,
    reuses: f64,
    idle_ms: f64,
}

/// Fits, one a category, of an exponential distribution of the time until the next use, and of how many uses have a next one.
/// Each starts from one reuse after a minute among two uses. As large as there are categories.
#[derive(Debug, Default)]
pub(super) struct Reuse {
    categories: BTreeMap<u32, Sums>,
}

impl Reuse {
    /// A use that may have a next one.
    pub(super) fn used(&mut self, category: u32) {
        let sums = self.categories.entry(category).or_default();
        sums.uses += 1.0;
        if sums.uses > WINDOW {
            sums.uses /= 2.0;
            sums.reuses /= 2.0;
            sums.idle_ms /= 2.0;
        }
    }

    /// The next use of one in `category` came after `idle_ms`.
    pub(super) fn reused(&mut self, category: u32, idle_ms: u64) {
        let sums = self.categories.entry(category).or_default();
        sums.reuses += 1.0;
        sums.idle_ms += idle_ms as f64;
    }

    fn sums(&self, category: u32) -> Sums {
        let sums = self.categories.get(&category);
        sums.copied().unwrap_or_default()
    }

    /// The share of uses in a category that have a next one.
    pub(super) fn share(&self, category: u32) -> f64 {
        let sums = self.sums(category);
        (sums.reuses + 1.0) / (sums.uses + 2.0)
    }

    /// The probability that what was used `idle_ms` ago, in a category, is used again within the next `life_ms`: the share of
    /// reuses that fall into that time.
    pub(super) fn probability(&self, category: u32, idle_ms: u64, life_ms: f64) -> f64 {
        let sums = self.sums(category);
        let rate = (sums.reuses + 1.0) / (sums.idle_ms + PRIOR_MS);
        let not_yet = (-rate * idle_ms as f64).exp();
        self.share(category) * not_yet * -(-rate * life_ms).exp_m1()
    }
}
