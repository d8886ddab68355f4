//! What is replayed: pages, and the order in which they are used.

use super::tier::TierSpec;
use crate::error::{Error, Result};

/// A page's number: its place in the workload's list.
pub type PageId = u32;

/// A tier's place in the list of tiers; 0 is the fastest.
pub type TierIndex = usize;

/// One page of KV cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Page {
    /// Its size as it is stored, at least 1.
    pub bytes: u64,
    /// Milliseconds that decoding adds to a use or move.
    pub decode_ms: f64,
    /// The tier it lies in before the first access; none for a page that is nowhere yet.
    pub tier: Option<TierIndex>,
}

/// One row of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// When: a count of steps, never less than that of the row before.
    pub step: u64,
    /// The page that is used.
    pub page: PageId,
    /// The page is not used: whoever wrote the trace says that it will be. It is prefetched if the run allows that.
    pub hint: bool,
}

/// Pages and accesses that fit together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Workload {
    pages: Vec<Page>,
    accesses: Vec<Access>,
}

impl Workload {
    /// A workload; an empty trace is one.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an access to a page that there is not, a step that goes back, a page of 0 bytes or with a
    /// penalty that is no time.
    pub fn new(pages: Vec<Page>, accesses: Vec<Access>) -> Result<Self> {
        if pages.len() >= PageId::MAX as usize - 1 {
            return Err(Error::invalid(format!(
                "{} pages are too many; use fewer than {}",
                pages.len(),
                PageId::MAX - 1
            )));
        }
        for (id, page) in pages.iter().enumerate() {
            if page.bytes == 0 {
                return Err(Error::invalid(format!(
                    "page {id} has 0 bytes; use at least 1"
                )));
            }
            if !(page.decode_ms.is_finite() && page.decode_ms >= 0.0) {
                return Err(Error::invalid(format!(
                    "page {id} has a decode penalty of {} ms; use 0 or more",
                    page.decode_ms
                )));
            }
        }
        let mut before = 0;
        for (row, access) in accesses.iter().enumerate() {
            if access.page as usize >= pages.len() {
                return Err(Error::invalid(format!(
                    "row {row} uses page {}, but there are {} pages; use 0 to {}",
                    access.page,
                    pages.len(),
                    pages.len().saturating_sub(1)
                )));
            }
            if access.step < before {
                return Err(Error::invalid(format!(
                    "row {row} has step {} after step {before}; sort the rows by step",
                    access.step
                )));
            }
            before = access.step;
        }
        Ok(Self { pages, accesses })
    }

    /// The pages, by number.
    pub fn pages(&self) -> &[Page] {
        &self.pages
    }

    /// The trace.
    pub fn accesses(&self) -> &[Access] {
        &self.accesses
    }

    /// Checks that each page fits each tier, and starts in one that there is.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] that names the page and the tier.
    pub fn check_against(&self, tiers: &[TierSpec]) -> Result<()> {
        // A cascade can take any page to any tier.
        let Some(least) = tiers.iter().min_by_key(|tier| tier.capacity_bytes) else {
            return Ok(());
        };
        for (id, page) in self.pages.iter().enumerate() {
            if page.bytes > least.capacity_bytes {
                return Err(Error::invalid(format!(
                    "page {id} of {} bytes is larger than tier {:?} of {} bytes; use smaller pages or larger tiers",
                    page.bytes, least.name, least.capacity_bytes
                )));
            }
            if let Some(tier) = page.tier.filter(|&tier| tier >= tiers.len()) {
                return Err(Error::invalid(format!(
                    "page {id} starts in tier {tier}, but there are {} tiers; use 0 to {}",
                    tiers.len(),
                    tiers.len() - 1
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tier_preset;
    use super::*;

    fn page(bytes: u64) -> Page {
        Page {
            bytes,
            decode_ms: 0.0,
            tier: None,
        }
    }

    fn access(step: u64, page: PageId) -> Access {
        Access {
            step,
            page,
            hint: false,
        }
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let cases = [
            (vec![page(0)], vec![], "page 0 has 0 bytes"),
            (vec![page(1)], vec![access(0, 1)], "row 0 uses page 1"),
            (vec![], vec![access(0, 0)], "there are 0 pages"),
            (
                vec![page(1)],
                vec![access(3, 0), access(2, 0)],
                "row 1 has step 2 after step 3",
            ),
        ];
        for (pages, accesses, message) in cases {
            let error = Workload::new(pages, accesses).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        let negative = Page {
            decode_ms: -1.0,
            ..page(1)
        };
        assert!(Workload::new(vec![negative], vec![]).is_err());
        assert!(Workload::new(vec![], vec![]).is_ok());
    }

    #[test]
    fn a_page_larger_than_a_tier_is_refused_before_the_run() {
        let tiers = tier_preset("tight").unwrap();
        let fits = Workload::new(vec![page(tiers[0].capacity_bytes)], vec![]).unwrap();
        fits.check_against(&tiers).unwrap();
        let large =
            Workload::new(vec![page(1), page(tiers[0].capacity_bytes + 1)], vec![]).unwrap();
        let error = large.check_against(&tiers).unwrap_err().to_string();
        assert!(
            error.contains("page 1") && error.contains("gpu_fast"),
            "{error}"
        );
        let nowhere = Page {
            tier: Some(4),
            ..page(1)
        };
        let nowhere = Workload::new(vec![nowhere], vec![]).unwrap();
        assert!(nowhere.check_against(&tiers).is_err());
    }
}
