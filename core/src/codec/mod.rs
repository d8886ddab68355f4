//! What the payload of a run becomes on L3.

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
    /// Bytes that a slice of `raw` bytes takes on L3, padding excluded.
    pub const fn stored_bytes(self, raw: u32) -> u32 {
        match self {
            Self::Raw => raw,
            // A scale of four bytes a group, a byte an element.
            Self::Int8 { element, group } => {
                let elements = raw / element.bytes() as u32;
                elements + elements.div_ceil(group as u32) * 4
            }
        }
    }
}
