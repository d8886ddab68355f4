//! What the payload of a run becomes on L3.

mod format;
mod int8;

use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::memory::{Piece, Region};
pub(crate) use int8::Int8;

/// The shortest group that is worth a scale: below, integers and scale take most of what they save.
const SHORTEST_GROUP: u32 = 16;

/// A number format of KV elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Element {
    /// IEEE 754 single precision, 4 bytes.
    F32,
    /// IEEE 754 half precision, 2 bytes.
    F16,
    /// The upper half of a single, 2 bytes.
    Bf16,
}

impl Element {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// How the payload of a run is stored below L2. Part of the namespace: one name, one set of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Codec {
    /// As it was given: what comes back is exact.
    #[default]
    Raw,
    /// One scale and 8-bit integers for every `group` consecutive elements of a slice: of one token and head, if `group` is the
    /// head's dimension.
    Int8 {
        /// What the elements are.
        element: Element,
        /// Elements that share a scale. Divides every K and V dimension of the layout.
        group: u16,
    },
}

impl Codec {
    /// 8-bit integers for a layout of `element`s: one scale a group, of as many elements as divide every K and V dimension (the head
    /// dimension, if there is but one).
    ///
    /// # Errors
    /// [`Error::Config`] if the dimensions have no common divisor of 16 or more, or the elements are not as long as the layout's.
    pub fn int8(element: Element, layout: &Layout) -> Result<Self> {
        if element.bytes() != layout.element_bytes() as usize {
            return Err(Error::Config {
                name: "codec",
                value: format!("int8 of {element:?}"),
                remedy: format!(
                    "its elements have {} bytes, those of the layout {}; name the element type of the layout",
                    element.bytes(),
                    layout.element_bytes()
                ),
            });
        }
        let dims = layout.layers().iter().flat_map(|layer| {
            [(layer.k_heads, layer.k_dim), (layer.v_heads, layer.v_dim)]
                .into_iter()
                .filter_map(|(heads, dim)| (heads > 0).then_some(dim))
        });
        let group = dims.fold(0, gcd);
        match u16::try_from(group) {
            Ok(group) if u32::from(group) >= SHORTEST_GROUP => Ok(Self::Int8 { element, group }),
            _ => Err(Error::Config {
                name: "codec",
                value: "int8".to_owned(),
                remedy: format!(
                    "the head dimensions of this model have {group} as their greatest common divisor, int8 needs {SHORTEST_GROUP} to {}; use exact",
                    u16::MAX
                ),
            }),
        }
    }

    /// Whether what comes back may differ from what was stored.
    pub fn is_lossy(self) -> bool {
        self != Self::Raw
    }

    /// Bytes that a slice of `raw` bytes takes on L3, padding excluded.
    pub const fn stored_bytes(self, raw: u32) -> u32 {
        match self.checked_stored_bytes(raw) {
            Some(bytes) => bytes,
            None => u32::MAX,
        }
    }

    /// As [`Self::stored_bytes`]; none if that is more than a length can say, which short groups come to.
    const fn checked_stored_bytes(self, raw: u32) -> Option<u32> {
        match self {
            Self::Raw => Some(raw),
            // A scale and an integer an element.
            Self::Int8 { element, group } => {
                let bytes = element.bytes() as u32;
                match raw.checked_div(bytes * group as u32) {
                    Some(groups) => groups.checked_mul(bytes + group as u32),
                    None => Some(0),
                }
            }
        }
    }

    /// Whether a slice of `raw` bytes can be stored: it has to be whole groups.
    pub const fn takes(self, raw: u32) -> bool {
        match self {
            Self::Raw => true,
            Self::Int8 { element, group } => {
                group > 0
                    && raw.is_multiple_of(element.bytes() as u32 * group as u32)
                    && self.checked_stored_bytes(raw).is_some()
            }
        }
    }

    /// Brings the stored slice at `from` of `stored` to `pieces` of `target`; nothing is done for `spare` ones.
    pub(crate) fn decode(self, stored: &Region, from: usize, target: &Region, pieces: &[Piece]) {
        if let Some(int8) = self.as_int8() {
            return int8.decode(stored, from, target, pieces);
        }
        let mut at = from;
        for piece in pieces {
            if !piece.spare {
                target.copy_from(piece.offset, stored, at, piece.len);
            }
            at += piece.len;
        }
    }

    /// How long encoding and decoding `payload` takes on this machine, by one thread between memory that was touched before; the
    /// best of `rounds`. Of [`Codec::Raw`] it is a copy.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an empty payload or one that it cannot take, [`Error::Io`] if memory cannot be had.
    pub fn measure(self, payload: &[u8], rounds: usize) -> Result<(Duration, Duration)> {
        let len = u32::try_from(payload.len()).unwrap_or(0);
        if len == 0 || !self.takes(len) {
            return Err(Error::invalid(format!(
                "{} bytes cannot be stored by {self:?}; give whole groups",
                payload.len()
            )));
        }
        let [source, stored, target] = [(); 3].map(|()| Region::new(payload.len()));
        let (source, stored, target) = (source?, stored?, target?);
        for region in [&source, &stored, &target] {
            region.prefault();
        }
        source.write(0, payload);
        let pieces = [Piece {
            spare: false,
            offset: 0,
            len: payload.len(),
        }];
        let (mut encoding, mut decoding) = (Duration::MAX, Duration::MAX);
        for _ in 0..rounds.max(1) {
            let start = Instant::now();
            if let Some(int8) = self.as_int8() {
                let mut at = 0;
                int8.encode(&source, &pieces, |bytes| {
                    stored.write(at, bytes);
                    at += bytes.len();
                    Ok::<_, Error>(())
                })?;
            } else {
                stored.copy_from(0, &source, 0, payload.len());
            }
            encoding = encoding.min(start.elapsed());
            let start = Instant::now();
            self.decode(&stored, 0, &target, &pieces);
            decoding = decoding.min(start.elapsed());
        }
        Ok((encoding, decoding))
    }

    /// The integers that it makes of elements, if it does.
    pub(crate) fn as_int8(self) -> Option<Int8> {
        match self {
            Self::Raw => None,
            Self::Int8 { element, group } => Some(Int8 {
                element,
                group: usize::from(group),
            }),
        }
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
