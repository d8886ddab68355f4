//! Number formats of KV elements, as little-endian bytes. Everything here is branch-free, so that loops over it vectorise.

#![expect(
    clippy::inline_always,
    reason = "only what is inlined is compiled for the processor's vector instructions"
)]

/// A floating-point format with its bytes.
pub(super) trait Format {
    /// Bytes of one number.
    const BYTES: usize;
    /// The largest finite number.
    const MAX: f32;
    /// Its bits without the sign. They order as the magnitudes do, with infinity and NaN above all.
    type Magnitude: Copy + Ord + Default;
    /// The magnitude of infinity.
    const INFINITY: Self::Magnitude;
    /// The magnitude of the usual NaN.
    const NAN: Self::Magnitude;

    /// Reads a finite number.
    fn load(bytes: &[u8]) -> f32;
    /// Writes the nearest number to `value`, which is finite and at most [`Format::MAX`]; ties go to even.
    fn store(value: f32, out: &mut [u8]);
    /// The magnitude of any number.
    fn magnitude(bytes: &[u8]) -> Self::Magnitude;
    /// Writes the positive number of a magnitude.
    fn put(magnitude: Self::Magnitude, out: &mut [u8]);
    /// The next larger magnitude.
    fn next(magnitude: Self::Magnitude) -> Self::Magnitude;
}

/// IEEE 754 single precision.
pub(super) struct F32;
/// IEEE 754 half precision.
pub(super) struct F16;
/// The upper half of a single.
pub(super) struct Bf16;

#[inline(always)]
fn low(bytes: &[u8]) -> u16 {
    u16::from_le_bytes([bytes[0], bytes[1]])
}

impl Format for F32 {
    const BYTES: usize = 4;
    const MAX: f32 = f32::MAX;
    type Magnitude = i32;
    const INFINITY: i32 = 0x7f80_0000;
    const NAN: i32 = 0x7fc0_0000;

    #[inline(always)]
    fn load(bytes: &[u8]) -> f32 {
        f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    #[inline(always)]
    fn store(value: f32, out: &mut [u8]) {
        out.copy_from_slice(&value.to_le_bytes());
    }

    #[inline(always)]
    fn magnitude(bytes: &[u8]) -> i32 {
        i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) & i32::MAX
    }

    #[inline(always)]
    fn put(magnitude: i32, out: &mut [u8]) {
        out.copy_from_slice(&magnitude.to_le_bytes());
    }

    #[inline(always)]
    fn next(magnitude: i32) -> i32 {
        magnitude + 1
    }
}

impl Format for F16 {
    const BYTES: usize = 2;
    const MAX: f32 = 65504.0;
    type Magnitude = i16;
    const INFINITY: i16 = 0x7c00;
    const NAN: i16 = 0x7e00;

    #[inline(always)]
    fn load(bytes: &[u8]) -> f32 {
        let bits = low(bytes);
        // The half's exponent and fraction at the single's place; a product with 2^112 makes up for the exponents' biases, and
        // normalises what was subnormal.
        let shifted = f32::from_bits(u32::from(bits & 0x7fff) << 13);
        let magnitude = shifted * f32::from_bits((127 + 112) << 23);
        f32::from_bits(magnitude.to_bits() | u32::from(bits & 0x8000) << 16)
    }

    #[inline(always)]
    fn store(value: f32, out: &mut [u8]) {
        let sign = value.to_bits() >> 16 & 0x8000;
        let magnitude = value.to_bits() & 0x7fff_ffff;
        let ties_to_even = 0xfff + (magnitude >> 13 & 1);
        let normal = (magnitude + ties_to_even).wrapping_sub(112 << 23) >> 13;
        // In [0.5, 1) the last bit of a single is worth 2^-24, as that of a subnormal half: the sum rounds to it.
        let half = 0.5_f32;
        let subnormal = (f32::from_bits(magnitude) + half)
            .to_bits()
            .wrapping_sub(half.to_bits());
        let smallest_normal = (127 - 14) << 23;
        let bits = if (magnitude as i32) < smallest_normal {
            subnormal
        } else {
            normal
        };
        out.copy_from_slice(&((bits | sign) as u16).to_le_bytes());
    }

    #[inline(always)]
    fn magnitude(bytes: &[u8]) -> i16 {
        low(bytes) as i16 & i16::MAX
    }

    #[inline(always)]
    fn put(magnitude: i16, out: &mut [u8]) {
        out.copy_from_slice(&magnitude.to_le_bytes());
    }

    #[inline(always)]
    fn next(magnitude: i16) -> i16 {
        magnitude + 1
    }
}

impl Format for Bf16 {
    const BYTES: usize = 2;
    const MAX: f32 = f32::from_bits(0x7f7f_0000);
    type Magnitude = i16;
    const INFINITY: i16 = 0x7f80;
    const NAN: i16 = 0x7fc0;

    #[inline(always)]
    fn load(bytes: &[u8]) -> f32 {
        f32::from_bits(u32::from(low(bytes)) << 16)
    }

    #[inline(always)]
    fn store(value: f32, out: &mut [u8]) {
        let bits = value.to_bits();
        let ties_to_even = 0x7fff + (bits >> 16 & 1);
        out.copy_from_slice(&((bits + ties_to_even) >> 16).to_le_bytes()[..2]);
    }

    #[inline(always)]
    fn magnitude(bytes: &[u8]) -> i16 {
        F16::magnitude(bytes)
    }

    #[inline(always)]
    fn put(magnitude: i16, out: &mut [u8]) {
        F16::put(magnitude, out);
    }

    #[inline(always)]
    fn next(magnitude: i16) -> i16 {
        magnitude + 1
    }
}

#[cfg(test)]
mod tests {
    use super::{Bf16, F16, Format};
    use half::{bf16, f16};
    use proptest::prelude::*;

    fn stored<F: Format>(value: f32) -> u16 {
        let mut out = [0; 2];
        F::store(value, &mut out);
        u16::from_le_bytes(out)
    }

    #[test]
    fn every_finite_number_of_16_bits_is_read_and_written() {
        for bits in 0..=u16::MAX {
            let bytes = bits.to_le_bytes();
            let (half, brain) = (f16::from_bits(bits), bf16::from_bits(bits));
            if half.is_finite() {
                assert_eq!(F16::load(&bytes).to_bits(), half.to_f32().to_bits());
                assert_eq!(stored::<F16>(half.to_f32()), bits);
            }
            if brain.is_finite() {
                assert_eq!(Bf16::load(&bytes).to_bits(), brain.to_f32().to_bits());
                assert_eq!(stored::<Bf16>(brain.to_f32()), bits);
            }
            assert_eq!(F16::magnitude(&bytes) >= F16::INFINITY, !half.is_finite());
            assert_eq!(
                Bf16::magnitude(&bytes) >= Bf16::INFINITY,
                !brain.is_finite()
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn rounding_goes_to_the_nearest_and_ties_to_even(bits: u32) {
            let value = f32::from_bits(bits);
            if value.abs() <= F16::MAX {
                prop_assert_eq!(stored::<F16>(value), f16::from_f32(value).to_bits());
            }
            if value.abs() <= Bf16::MAX {
                prop_assert_eq!(stored::<Bf16>(value), bf16::from_f32(value).to_bits());
            }
        }
    }
}
