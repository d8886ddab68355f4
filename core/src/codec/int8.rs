//! Symmetric 8-bit integers with a scale a group, one scale per token and head in usual models.
//!
//! A stored slice is a row of groups, each its scale, in the format of the elements, and then one signed byte an element. The
//! element is `integer * scale`; the scale is the smallest number of the format with `scale * 127` at or above every magnitude of
//! the group, so that an element comes back within half a scale. A group that holds an infinity or a NaN comes back as NaN,
//! all of it: no number is made up for what was none.
//!
//! Groups stand by themselves: a part of a slice is decoded without the rest of it. Both directions go through a tile that stays
//! in the processor's nearest cache, between the scattered pieces on one side and the stored bytes on the other.

#![expect(
    clippy::inline_always,
    reason = "only what is inlined is compiled for the processor's vector instructions"
)]

use super::Element;
use super::format::{Bf16, F16, F32, Format};
use crate::memory::{Piece, Region, Work, vectorised};

/// Bytes of elements that are converted at a time, unless a group is larger.
const TILE_BYTES: usize = 8 << 10;
/// The largest integer; -128 is not used.
const LARGEST: f32 = 127.0;
/// Added to a small number, leaves its nearest integer (ties to even) in the lowest bits: 1.5 * 2^23.
const TO_INTEGER: f32 = 12_582_912.0;

/// The sizes of one kind of group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Int8 {
    pub(super) element: Element,
    /// Elements that share a scale.
    pub(super) group: usize,
}

impl Int8 {
    /// Bytes of a group as elements.
    fn exact(self) -> usize {
        self.group * self.element.bytes()
    }

    /// Bytes of a group as it is stored.
    fn stored(self) -> usize {
        self.element.bytes() + self.group
    }

    /// Groups in a tile.
    fn tile(self) -> usize {
        (TILE_BYTES / self.exact()).max(1)
    }

    /// Hands the stored form of `pieces`, which add up to whole groups, to `sink`, a tile at a time.
    pub(crate) fn encode<E>(
        self,
        source: &Region,
        pieces: &[Piece],
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut exact = vec![0; self.tile() * self.exact()];
        let mut stored = vec![0; self.tile() * self.stored()];
        let mut filled = 0;
        for piece in pieces {
            let mut done = 0;
            while done < piece.len {
                let part = (piece.len - done).min(exact.len() - filled);
                source.read(piece.offset + done, &mut exact[filled..filled + part]);
                filled += part;
                done += part;
                if filled == exact.len() {
                    self.encode_groups(&exact, &mut stored);
                    sink(&stored)?;
                    filled = 0;
                }
            }
        }
        let stored = &mut stored[..filled / self.exact() * self.stored()];
        self.encode_groups(&exact[..filled], stored);
        sink(stored)
    }

    /// Brings the stored slice at `from` of `stored` to `pieces` of `target`; nothing is done for `spare` ones.
    pub(super) fn decode(self, stored: &Region, from: usize, target: &Region, pieces: &[Piece]) {
        let mut input = vec![0; self.tile() * self.stored()];
        let mut output = vec![0; self.tile() * self.exact()];
        let mut at = 0;
        for piece in pieces {
            let end = at + piece.len;
            let mut done = if piece.spare { end } else { at };
            while done < end {
                let first = done / self.exact();
                let groups = (end.div_ceil(self.exact()) - first).min(self.tile());
                let input = &mut input[..groups * self.stored()];
                let output = &mut output[..groups * self.exact()];
                stored.read(from + first * self.stored(), input);
                self.decode_groups(input, output);
                // A piece may begin or end inside a group.
                let skip = done - first * self.exact();
                let part = (output.len() - skip).min(end - done);
                target.write(piece.offset + (done - at), &output[skip..skip + part]);
                done += part;
            }
            at = end;
        }
    }

    fn encode_groups(self, exact: &[u8], stored: &mut [u8]) {
        vectorised(Encode(self, exact, stored));
    }

    fn decode_groups(self, stored: &[u8], exact: &mut [u8]) {
        vectorised(Decode(self, stored, exact));
    }
}

/// Elements to stored groups.
struct Encode<'a>(Int8, &'a [u8], &'a mut [u8]);

impl Work for Encode<'_> {
    #[inline(always)]
    fn run(self) {
        let Self(Int8 { element, group }, exact, stored) = self;
        match element {
            Element::F32 => encode::<F32>(group, exact, stored),
            Element::F16 => encode::<F16>(group, exact, stored),
            Element::Bf16 => encode::<Bf16>(group, exact, stored),
        }
    }
}

/// Stored groups to elements.
struct Decode<'a>(Int8, &'a [u8], &'a mut [u8]);

impl Work for Decode<'_> {
    #[inline(always)]
    fn run(self) {
        let Self(Int8 { element, group }, stored, exact) = self;
        match element {
            Element::F32 => decode::<F32>(group, stored, exact),
            Element::F16 => decode::<F16>(group, stored, exact),
            Element::Bf16 => decode::<Bf16>(group, stored, exact),
        }
    }
}

#[inline(always)]
fn encode<F: Format>(group: usize, exact: &[u8], stored: &mut [u8]) {
    let groups = exact.chunks_exact(group * F::BYTES);
    for (elements, out) in groups.zip(stored.chunks_exact_mut(F::BYTES + group)) {
        let (scale, integers) = out.split_at_mut(F::BYTES);
        let magnitudes = elements.chunks_exact(F::BYTES).map(F::magnitude);
        let largest = magnitudes.fold(F::Magnitude::default(), Ord::max);
        F::put(largest, scale);
        if largest >= F::INFINITY {
            integers.fill(0);
            continue;
        }
        let largest = F::load(scale);
        F::store(largest / LARGEST, scale);
        if F::load(scale) * LARGEST < largest {
            F::put(F::next(F::magnitude(scale)), scale);
        }
        // Where all is zero, any divisor does.
        let scale = F::load(scale);
        let divisor = if scale > 0.0 { scale } else { 1.0 };
        for (element, integer) in elements.chunks_exact(F::BYTES).zip(integers) {
            *integer = (F::load(element) / divisor + TO_INTEGER).to_bits() as u8;
        }
    }
}

#[inline(always)]
fn decode<F: Format>(group: usize, stored: &[u8], exact: &mut [u8]) {
    let groups = stored.chunks_exact(F::BYTES + group);
    for (stored, elements) in groups.zip(exact.chunks_exact_mut(group * F::BYTES)) {
        let (scale, integers) = stored.split_at(F::BYTES);
        if F::magnitude(scale) >= F::INFINITY {
            for element in elements.chunks_exact_mut(F::BYTES) {
                F::put(F::NAN, element);
            }
            continue;
        }
        let scale = F::load(scale);
        for (&integer, element) in integers.iter().zip(elements.chunks_exact_mut(F::BYTES)) {
            // A scale that was rounded up may go beyond the largest number by a little.
            let value = f32::from(integer as i8) * scale;
            F::store(value.clamp(-F::MAX, F::MAX), element);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Int8;
    use crate::codec::{Codec, Element};
    use crate::memory::{Piece, Region};
    use half::{bf16, f16};
    use proptest::prelude::*;

    fn number(element: Element, bytes: &[u8]) -> f32 {
        match *bytes {
            [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
            [a, b] if element == Element::F16 => f16::from_le_bytes([a, b]).to_f32(),
            [a, b] => bf16::from_le_bytes([a, b]).to_f32(),
            _ => panic!("{bytes:?} is no element"),
        }
    }

    /// The distance to the next number of the format.
    fn spacing(element: Element, value: f32) -> f64 {
        let bytes = |step: u32| match element {
            Element::F32 => f64::from(f32::from_bits(value.abs().to_bits() + step)),
            Element::F16 => {
                f16::from_bits(f16::from_f32(value.abs()).to_bits() + step as u16).to_f64()
            }
            Element::Bf16 => {
                bf16::from_bits(bf16::from_f32(value.abs()).to_bits() + step as u16).to_f64()
            }
        };
        bytes(1) - bytes(0)
    }

    fn encode(codec: Int8, exact: &[u8], cuts: &[usize]) -> Vec<u8> {
        let source = Region::new(exact.len()).unwrap();
        source.write(0, exact);
        let mut stored = Vec::new();
        codec
            .encode(&source, &pieces(exact.len(), cuts), |bytes| {
                stored.extend_from_slice(bytes);
                Ok::<_, ()>(())
            })
            .unwrap();
        let (element, group) = (codec.element, codec.group as u16);
        let codec = Codec::Int8 { element, group };
        assert!(codec.takes(exact.len() as u32));
        assert_eq!(stored.len() as u32, codec.stored_bytes(exact.len() as u32));
        stored
    }

    /// `len` bytes in a row, cut in pieces.
    fn pieces(len: usize, cuts: &[usize]) -> Vec<Piece> {
        let mut ends = cuts.iter().map(|cut| cut % (len + 1)).collect::<Vec<_>>();
        ends.push(len);
        ends.sort_unstable();
        let mut offset = 0;
        let cut = |end: usize| {
            let piece = Piece {
                spare: false,
                offset,
                len: end - offset,
            };
            offset = end;
            piece
        };
        ends.into_iter().map(cut).collect()
    }

    fn decode(codec: Int8, stored: &[u8], len: usize, pieces: &[Piece]) -> Vec<u8> {
        let from = 24;
        let input = Region::new(from + stored.len()).unwrap();
        input.write(from, stored);
        let target = Region::new(len).unwrap();
        target.write(0, &vec![0xee; len]);
        codec.decode(&input, from, &target, pieces);
        let mut out = vec![0; len];
        target.read(0, &mut out);
        out
    }

    fn check_group(
        codec: Int8,
        exact: &[u8],
        stored: &[u8],
        back: &[u8],
    ) -> Result<(), TestCaseError> {
        let element = codec.element;
        let numbers = |bytes: &[u8]| {
            let numbers = bytes.chunks_exact(element.bytes());
            numbers
                .map(|bytes| number(element, bytes))
                .collect::<Vec<_>>()
        };
        let (exact, back) = (numbers(exact), numbers(back));
        if exact.iter().any(|value| !value.is_finite()) {
            prop_assert!(back.iter().all(|value| value.is_nan()), "{:?}", back);
            return Ok(());
        }
        let scale = f64::from(number(element, &stored[..element.bytes()]));
        prop_assert!(
            !stored[element.bytes()..].contains(&0x80),
            "-128 is not used"
        );
        for (x, y) in exact.iter().zip(&back) {
            prop_assert!(y.is_finite());
            // Rounding the quotient to a single moves a tie by at most 127 * 2^-24 of a scale.
            let bound = scale * (0.5 + 1e-5) + spacing(element, *y) / 2.0;
            let error = (f64::from(*x) - f64::from(*y)).abs();
            prop_assert!(error <= bound, "{x} came back as {y}, scale {scale}");
        }
        Ok(())
    }

    fn element() -> impl Strategy<Value = Element> {
        prop::sample::select(vec![Element::F32, Element::F16, Element::Bf16])
    }

    proptest! {
        #[test]
        fn elements_come_back_within_half_a_scale(
            element in element(),
            group in prop::sample::select(vec![1_usize, 2, 16, 64, 80, 5000]),
            groups in 1..40_usize,
            seed: u64,
            // Any bits; or numbers of one magnitude.
            exponent in prop::option::of(-150..127_i32),
            cuts in prop::collection::vec(any::<usize>(), 0..6),
        ) {
            let codec = Int8 { element, group };
            let elements = group * groups.min(20_000 / group);
            let mut state = seed;
            let mut random = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 32) as u32
            };
            let mut exact = Vec::new();
            for _ in 0..elements {
                let bits = random();
                let value = exponent.map_or(f32::from_bits(bits), |exponent| {
                    ((f64::from(bits) / f64::from(u32::MAX) - 0.5) * 2_f64.powi(exponent)) as f32
                });
                match element {
                    Element::F32 => exact.extend(value.to_le_bytes()),
                    Element::F16 if exponent.is_none() => exact.extend(&bits.to_le_bytes()[..2]),
                    Element::F16 => exact.extend(f16::from_f32(value).to_le_bytes()),
                    Element::Bf16 => exact.extend(bf16::from_f32(value).to_le_bytes()),
                }
            }
            let stored = encode(codec, &exact, &cuts);
            let back = decode(codec, &stored, exact.len(), &pieces(exact.len(), &cuts));
            let bytes = group * element.bytes();
            let parts = exact.chunks_exact(bytes).zip(back.chunks_exact(bytes));
            for ((exact, back), stored) in parts.zip(stored.chunks_exact(element.bytes() + group)) {
                check_group(codec, exact, stored, back)?;
            }
            prop_assert_eq!(&stored, &encode(codec, &exact, &[]), "cuts change nothing");

            // Any of the pieces may be left out; the others are the same without them.
            let mut some = pieces(exact.len(), &cuts);
            for (index, piece) in some.iter_mut().enumerate() {
                piece.spare = seed >> (index % 8) & 1 == 1;
            }
            let partly = decode(codec, &stored, exact.len(), &some);
            for piece in some {
                let range = piece.offset..piece.offset + piece.len;
                if piece.spare {
                    prop_assert!(partly[range].iter().all(|&byte| byte == 0xee));
                } else {
                    prop_assert_eq!(&partly[range.clone()], &back[range]);
                }
            }
        }
    }

    #[test]
    fn known_groups() {
        let codec = Int8 {
            element: Element::F32,
            group: 4,
        };
        let bytes = |values: [f32; 4]| values.map(f32::to_le_bytes).concat();
        let both = |values: [f32; 4]| {
            let stored = encode(codec, &bytes(values), &[]);
            let back = decode(codec, &stored, 16, &pieces(16, &[]));
            (stored, back)
        };
        // Ties go to the even integer.
        let (stored, back) = both([-127.0, 0.5, 1.5, -2.5]);
        assert_eq!(stored, [0, 0, 0x80, 0x3f, 0x81, 0, 2, 0xfe]);
        assert_eq!(back, bytes([-127.0, 0.0, 2.0, -2.0]));
        // Zeros of either sign, subnormals, and the ends of the range.
        assert_eq!(both([0.0, -0.0, 0.0, 0.0]).1, bytes([0.0; 4]));
        let tiny = f32::from_bits(1);
        let (_, back) = both([tiny, -tiny, 0.0, f32::from_bits(100)]);
        assert_eq!(back, bytes([tiny, -tiny, 0.0, f32::from_bits(100)]));
        let (_, back) = both([f32::MAX, -f32::MAX, 0.0, 0.0]);
        let largest = number(Element::F32, &back[..4]);
        assert!(largest.is_finite() && largest > f32::MAX * 0.999);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (_, back) = both([1.0, bad, 2.0, 3.0]);
            assert_eq!(back, bytes([f32::NAN; 4]));
        }
        let half = Int8 {
            element: Element::F16,
            group: 2,
        };
        let exact = [f16::MAX.to_le_bytes(), f16::MIN.to_le_bytes()].concat();
        let back = decode(half, &encode(half, &exact, &[]), 4, &pieces(4, &[]));
        assert_eq!(
            back, exact,
            "a scale that was rounded up does not reach infinity"
        );
    }

    #[test]
    fn slices_are_whole_groups() {
        let codec = |group| Codec::Int8 {
            element: Element::F16,
            group,
        };
        assert_eq!(codec(64).stored_bytes(128 * 3), 66 * 3);
        assert!(codec(64).takes(128 * 3) && !codec(64).takes(130) && !codec(0).takes(128));
    }
}
