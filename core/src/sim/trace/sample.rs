//! Spatial sampling of blocks, for miss-ratio curves of policies that are no stack algorithms.

use super::{BlockTokens, Trace};
use crate::error::{Error, Result};

/// Denoting that a block was not seen, or is not in the sample.
const NONE: u32 = u32::MAX;

impl Trace {
    /// The trace with a part `rate` of its blocks, chosen by a hash of their ids and `seed`: a block is in for all of its uses or for
    /// none. Replayed with `rate` times the capacity, it tells the hit ratio of the whole (SHARDS: Waldspurger and others,
    /// FAST '15; scaled-down replays: ATC '17). Of prefix ids ([`prefix_ids`](Self::prefix_ids)) what remains is a prefix tree
    /// again, since a block's ancestors in the sample come before it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] unless `rate` is above 0 and at most 1.
    pub fn sampled(&self, rate: f64, seed: u64) -> Result<Self> {
        if !(rate > 0.0 && rate <= 1.0) {
            return Err(Error::invalid(format!(
                "a sample takes a part above 0 and at most 1, got {rate}"
            )));
        }
        let limit = (rate * u64::MAX as f64) as u64;
        let mut dense = vec![NONE; self.unique_blocks];
        let mut content = Vec::new();
        for (id, place) in dense.iter_mut().enumerate() {
            if mix(seed ^ mix(id as u64)) <= limit {
                *place = content.len() as u32;
                content.push(id);
            }
        }
        let mut sample = self.columns();
        sample.ends.clear();
        for request in self.requests() {
            let own = request.blocks.iter().map(|&id| dense[id as usize]);
            sample.blocks.extend(own.filter(|&id| id != NONE));
            sample.ends.push(sample.blocks.len() as u64);
        }
        sample.unique_blocks = content.len();
        sample.block_tokens = match &self.block_tokens {
            BlockTokens::Each(lengths) => {
                BlockTokens::Each(content.iter().map(|&id| lengths[id]).collect())
            }
            other => other.clone(),
        };
        Ok(sample)
    }
}

/// The finaliser of `SplitMix64` (Steele, Lea and Flood, OOPSLA '14).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::sim::trace::testing::{prefixes, trace};

    proptest! {
        #[test]
        fn a_sample_of_a_prefix_tree_is_one(requests in prefixes(30), rate in 0.05..1.0_f64, seed: u64) {
            let whole = trace(&requests);
            let sample = whole.sampled(rate, seed).unwrap();
            prop_assert_eq!(sample.validate(), Ok(()));
            prop_assert!(sample.has_prefix_ids());
            prop_assert_eq!(sample.len(), whole.len());
        }

        #[test]
        fn all_of_it_is_the_whole(requests in prefixes(30), seed: u64) {
            let whole = trace(&requests);
            let sample = whole.sampled(1.0, seed).unwrap();
            prop_assert_eq!(sample.blocks(), whole.blocks());
        }
    }

    #[test]
    fn the_share_is_about_the_rate() {
        let whole = trace(&[(0..100_000).collect()]);
        let kept = whole.sampled(0.1, 3).unwrap().unique_blocks();
        assert!((9_500..10_500).contains(&kept), "{kept}");
        for wrong in [0.0, -1.0, 1.5, f64::NAN] {
            assert!(whole.sampled(wrong, 0).is_err());
        }
    }
}
