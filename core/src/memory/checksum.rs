use std::hash::Hasher;

use twox_hash::XxHash3_64;

/// A running XXH3-64 with seed 0, by the widest instructions that the processor has.
pub struct Checksum(XxHash3_64);

impl Checksum {
    /// The checksum of these bytes.
    pub fn of(bytes: &[u8]) -> u64 {
        XxHash3_64::oneshot(bytes)
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// The checksum of all bytes added so far.
    pub fn finish(&self) -> u64 {
        self.0.finish()
    }
}

impl Default for Checksum {
    fn default() -> Self {
        Self(XxHash3_64::with_seed(0))
    }
}

#[cfg(test)]
mod tests {
    use super::Checksum;

    /// Values of the reference implementation.
    #[test]
    fn it_is_xxh3_64_with_seed_0() {
        let bytes = (0..4099_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8);
        let bytes = bytes.collect::<Vec<_>>();
        assert_eq!(Checksum::of(b""), 0x2d06_8005_38d3_94c2);
        let whole = Checksum::of(&bytes);
        for cut in [0, 1, 239, 240, 241, 1024, 4098] {
            let mut checksum = Checksum::default();
            checksum.update(&bytes[..cut]);
            checksum.update(&bytes[cut..]);
            assert_eq!(checksum.finish(), whole, "cut at {cut}");
        }
        assert_eq!(whole, 0x4371_7729_5cbd_a0e1);
    }
}
