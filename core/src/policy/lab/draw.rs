//! Chance that is the same in every run.

/// The seed of policies that draw.
pub(super) const SEED: u64 = 0x6b76_6c61_6221;

/// `SplitMix64` (Steele, Lea and Flood, OOPSLA'14): the same numbers from the same seed in every version and on every machine, so
/// that a result can be had again.
#[derive(Debug)]
pub(super) struct Draw(u64);

impl Draw {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of `0..count`, which is not 0.
    pub(super) fn below(&mut self, count: usize) -> usize {
        let scaled = u128::from(self.next()) * count as u128;
        (scaled >> 64) as usize
    }

    /// A number in `0.0..1.0`.
    pub(super) fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}
