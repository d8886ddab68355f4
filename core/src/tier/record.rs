//! The record of one run, on disk and on a server: header page(s), then the payload. On disk every slice is padded to whole pages. See
//! `docs/format.md`.

use crate::codec::{Codec, Element};
use crate::key::BlockKey;
use crate::memory::{Checksum, PAGE, page_align};
use crate::run::{MAX_RUN_BLOCKS, MAX_RUN_SLICES, RunHeader, Terms};

/// The version of the files that this code writes. It reads all from [`OLDEST_VERSION`] on.
pub(super) const FORMAT_VERSION: u32 = 2;
/// The first version there was: no terms, and no time at which a run was stored.
pub(super) const OLDEST_VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"KVLABRUN";
/// Bytes before the list of keys.
const FIXED_BYTES: usize = 168;
/// The same in version 1.
const FIXED_BYTES_1: usize = 144;
const KEY_BYTES: usize = 32;
/// Bytes of one slice's row: length, length on disk, checksum.
const SLICE_ROW_BYTES: usize = 16;
/// Where the bytes begin that the header's checksum covers.
const CHECKED_FROM: usize = 16;

/// The bytes that tell a header and its length: magic, checksum, version, length.
pub(super) const PEEKED_BYTES: usize = 24;
/// The longest header, in bytes.
pub(super) const MAX_HEADER_BYTES: usize =
    page_align(FIXED_BYTES + MAX_RUN_BLOCKS * KEY_BYTES + MAX_RUN_SLICES * SLICE_ROW_BYTES);

/// Where a record belongs: a header found anywhere else is a stray copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// The store's id.
    pub(super) store: u64,
    /// The segment's id, never given out twice.
    pub(super) segment: u32,
    /// Byte offset of the record in its segment.
    pub(super) offset: u64,
    /// The run's number, never given out twice.
    pub(super) serial: u64,
}

/// A header as it is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) identity: Identity,
    pub(super) header: RunHeader,
    /// Bytes that this header takes: fewer in version 1.
    pub(super) header_bytes: u32,
    /// When the run was stored, in unix seconds; 0 where it is not known.
    pub(super) created: u64,
    /// XXH3-64 of each slice as it is on disk.
    pub(super) sums: Box<[u64]>,
}

/// Bytes of the header of a run of so many blocks and slices, as it is written now.
pub(super) const fn header_bytes(blocks: usize, slices: usize) -> usize {
    page_align(FIXED_BYTES + blocks * KEY_BYTES + slices * SLICE_ROW_BYTES)
}

/// The same in version 1.
pub(super) const fn header_bytes_1(blocks: usize, slices: usize) -> usize {
    page_align(FIXED_BYTES_1 + blocks * KEY_BYTES + slices * SLICE_ROW_BYTES)
}

/// Bytes of a run's payload on disk, padding included.
pub(super) fn stored_payload_bytes(header: &RunHeader) -> u64 {
    let codec = header.terms.codec;
    let lengths = header.slices.iter();
    lengths.map(|&len| padded(codec.stored_bytes(len))).sum()
}

/// Bytes of a slice on disk, which are `len` without padding.
pub(super) fn padded(len: u32) -> u64 {
    page_align(len as usize) as u64
}

/// Bytes of a run's whole record on disk, as it is written now.
pub(crate) fn record_bytes(header: &RunHeader) -> u64 {
    header_bytes(header.keys.len(), header.slices.len()) as u64 + stored_payload_bytes(header)
}

/// A codec on disk: its number and its parameters.
pub(super) fn codec_fields(codec: Codec) -> (u16, u32) {
    match codec {
        Codec::Raw => (0, 0),
        Codec::Int8 { element, group } => {
            let element = match element {
                Element::F32 => 0,
                Element::F16 => 1,
                Element::Bf16 => 2,
            };
            (1, element | u32::from(group) << 16)
        }
    }
}

/// The codec of these fields; none if this code does not know it.
pub(super) fn parse_codec(number: u16, parameters: u32) -> Option<Codec> {
    match number {
        0 => (parameters == 0).then_some(Codec::Raw),
        1 => {
            let element = match parameters & 0xffff {
                0 => Element::F32,
                1 => Element::F16,
                2 => Element::Bf16,
                _ => return None,
            };
            let group = (parameters >> 16) as u16;
            (group > 0).then_some(Codec::Int8 { element, group })
        }
        _ => None,
    }
}

impl Record {
    /// The header page(s).
    pub(super) fn encode(&self) -> Vec<u8> {
        let Self {
            identity,
            header,
            created,
            sums,
            header_bytes: _,
        } = self;
        let terms = &header.terms;
        let (codec, parameters) = codec_fields(terms.codec);
        let len = header_bytes(header.keys.len(), header.slices.len());
        let mut out = Vec::with_capacity(len);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&(len as u32).to_le_bytes());
        out.extend_from_slice(&identity.store.to_le_bytes());
        out.extend_from_slice(&identity.serial.to_le_bytes());
        out.extend_from_slice(&identity.offset.to_le_bytes());
        out.extend_from_slice(&identity.segment.to_le_bytes());
        out.extend_from_slice(&u32::from(codec).to_le_bytes());
        out.extend_from_slice(&stored_payload_bytes(header).to_le_bytes());
        out.extend_from_slice(&header.block_tokens.to_le_bytes());
        out.extend_from_slice(&(header.keys.len() as u32).to_le_bytes());
        out.extend_from_slice(&(header.slices.len() as u32).to_le_bytes());
        out.extend_from_slice(&parameters.to_le_bytes());
        out.extend_from_slice(&header.namespace.0);
        out.extend_from_slice(&header.parent.0);
        out.extend_from_slice(&created.to_le_bytes());
        out.extend_from_slice(&terms.tenant.to_le_bytes());
        out.extend_from_slice(&terms.ttl_seconds.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        for key in &header.keys {
            out.extend_from_slice(&key.0);
        }
        for (slice, sum) in header.slices.iter().zip(sums) {
            out.extend_from_slice(&slice.to_le_bytes());
            out.extend_from_slice(&terms.codec.stored_bytes(*slice).to_le_bytes());
            out.extend_from_slice(&sum.to_le_bytes());
        }
        out.resize(len, 0);
        seal(&mut out);
        out
    }

    /// Length of the header that starts with these bytes, [`PEEKED_BYTES`] or more, if one does.
    pub(super) fn peek(page: &[u8]) -> Option<usize> {
        let mut fields = Fields(page);
        if fields.take::<8>()? != MAGIC {
            return None;
        }
        fields.u64()?;
        if !is_readable(fields.u32()?) {
            return None;
        }
        let len = fields.u32()? as usize;
        (len > 0 && len.is_multiple_of(PAGE) && len <= MAX_HEADER_BYTES).then_some(len)
    }

    /// Reads a whole header; none if anything about it is wrong.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let len = Self::peek(bytes)?;
        let bytes = bytes.get(..len)?;
        if !is_sealed(bytes) {
            return None;
        }
        let mut fields = Fields(bytes.get(16..)?);
        let version = fields.u32()?;
        fields.u32()?;
        let store = fields.u64()?;
        let serial = fields.u64()?;
        let offset = fields.u64()?;
        let segment = fields.u32()?;
        let codec = u16::try_from(fields.u32()?).ok()?;
        let payload = fields.u64()?;
        let block_tokens = fields.u32()?;
        let blocks = fields.u32()? as usize;
        let slices = fields.u32()? as usize;
        let codec = parse_codec(codec, fields.u32()?)?;
        if blocks > MAX_RUN_BLOCKS || slices > MAX_RUN_SLICES {
            return None;
        }
        let namespace = BlockKey(fields.take()?);
        let parent = BlockKey(fields.take()?);
        let mut terms = Terms::default();
        let (mut created, mut expected) = (0, header_bytes_1(blocks, slices));
        if version > OLDEST_VERSION {
            created = fields.u64()?;
            terms.codec = codec;
            terms.tenant = fields.u64()?;
            terms.ttl_seconds = fields.u32()?;
            terms = terms.stamped(created);
            fields.u32()?;
            expected = header_bytes(blocks, slices);
        }
        if expected != len {
            return None;
        }
        let keys = (0..blocks)
            .map(|_| fields.take().map(BlockKey))
            .collect::<Option<Box<[_]>>>()?;
        let mut lengths = Vec::with_capacity(slices);
        let mut sums = Vec::with_capacity(slices);
        for _ in 0..slices {
            let (raw, stored) = (fields.u32()?, fields.u32()?);
            if version > OLDEST_VERSION && stored != terms.codec.stored_bytes(raw) {
                return None;
            }
            lengths.push(raw);
            sums.push(fields.u64()?);
        }
        let header = RunHeader {
            namespace,
            parent,
            keys,
            block_tokens,
            slices: lengths.into(),
            terms,
        };
        if header.validate().is_err() || stored_payload_bytes(&header) != payload {
            return None;
        }
        Some(Self {
            identity: Identity {
                store,
                segment,
                offset,
                serial,
            },
            header,
            header_bytes: len as u32,
            created,
            sums: sums.into(),
        })
    }

    /// Bytes of the whole record on disk.
    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.header_bytes) + stored_payload_bytes(&self.header)
    }
}

/// Whether this code reads files of a version.
pub(super) const fn is_readable(version: u32) -> bool {
    OLDEST_VERSION <= version && version <= FORMAT_VERSION
}

/// Writes the checksum of everything after the first [`CHECKED_FROM`] bytes to bytes 8..16.
pub(super) fn seal(bytes: &mut [u8]) {
    let sum = bytes
        .get(CHECKED_FROM..)
        .map_or(0, Checksum::of)
        .to_le_bytes();
    if let Some(place) = bytes.get_mut(8..CHECKED_FROM) {
        place.copy_from_slice(&sum);
    }
}

/// Whether the checksum in bytes 8..16 is that of what follows.
pub(super) fn is_sealed(bytes: &[u8]) -> bool {
    match (bytes.get(8..CHECKED_FROM), bytes.get(CHECKED_FROM..)) {
        (Some(sum), Some(rest)) => sum == Checksum::of(rest).to_le_bytes(),
        _ => false,
    }
}

/// Reads fixed-size little-endian fields one after the other.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    pub(super) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::{Identity, Record, codec_fields, header_bytes, padded, parse_codec};
    use super::{record_bytes, seal};
    use crate::codec::{Codec, Element};
    use crate::key::BlockKey;
    use crate::memory::PAGE;
    use crate::run::{RunHeader, Terms};
    use proptest::prelude::*;

    fn record() -> Record {
        Record {
            identity: Identity {
                store: 0x1122_3344_5566_7788,
                segment: 0x0102_0304,
                offset: 0x5000,
                serial: 0x0a0b_0c0d,
            },
            header: RunHeader {
                namespace: BlockKey([1; 32]),
                parent: BlockKey([2; 32]),
                keys: [BlockKey([3; 32]), BlockKey([4; 32])].into(),
                block_tokens: 16,
                slices: [5000, 4096].into(),
                terms: Terms {
                    tenant: 0x0102_0304_0506_0708,
                    ttl_seconds: 0x0001_5180,
                    born: 0x6553_f100,
                    ..Terms::default()
                },
            },
            header_bytes: 4096,
            created: 0x6553_f100,
            sums: [0x1111_2222_3333_4444, 0x5555_6666_7777_8888].into(),
        }
    }

    #[test]
    fn golden_record_header() {
        let bytes = record().encode();
        let mut expected = b"KVLABRUN".to_vec();
        expected.extend(0x8b58_a403_9249_f376_u64.to_le_bytes());
        expected.extend([2, 0, 0, 0]);
        expected.extend([0, 0x10, 0, 0]);
        expected.extend([0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        expected.extend([0x0d, 0x0c, 0x0b, 0x0a, 0, 0, 0, 0]);
        expected.extend([0, 0x50, 0, 0, 0, 0, 0, 0]);
        expected.extend([4, 3, 2, 1]);
        expected.extend([0; 4]);
        expected.extend([0, 0x30, 0, 0, 0, 0, 0, 0]);
        expected.extend([16, 0, 0, 0]);
        expected.extend([2, 0, 0, 0]);
        expected.extend([2, 0, 0, 0]);
        expected.extend([0; 4]);
        expected.extend((1..=2_u8).flat_map(|byte| [byte; 32]));
        expected.extend([0x00, 0xf1, 0x53, 0x65, 0, 0, 0, 0]);
        expected.extend([8, 7, 6, 5, 4, 3, 2, 1]);
        expected.extend([0x80, 0x51, 1, 0, 0, 0, 0, 0]);
        expected.extend((3..=4_u8).flat_map(|byte| [byte; 32]));
        expected.extend([0x88, 0x13, 0, 0, 0x88, 0x13, 0, 0]);
        expected.extend(0x1111_2222_3333_4444_u64.to_le_bytes());
        expected.extend([0, 0x10, 0, 0, 0, 0x10, 0, 0]);
        expected.extend(0x5555_6666_7777_8888_u64.to_le_bytes());
        assert_eq!(expected.len(), 168 + 2 * 32 + 2 * 16);
        expected.resize(PAGE, 0);
        assert!(bytes == expected, "{:02x?}", &bytes[..240]);
        assert_eq!(Record::decode(&bytes), Some(record()));
        assert_eq!(record_bytes(&record().header), 4096 + 8192 + 4096);
    }

    #[test]
    fn headers_grow_by_pages() {
        assert_eq!(header_bytes(1, 1), PAGE);
        assert_eq!(header_bytes(122, 1), PAGE);
        assert_eq!(header_bytes(123, 1), 2 * PAGE);
        assert_eq!([1, 4096, 4097].map(padded), [4096, 4096, 8192]);
    }

    #[test]
    fn lies_under_a_right_checksum_are_refused() {
        // Versions, header length, codec, payload length, no blocks, too many blocks, no slices, codec parameters, an empty
        // slice, its stored length.
        for (at, value) in [
            (16, 0_u32),
            (16, 3),
            (20, 8192),
            (20, 0),
            (20, u32::MAX),
            (52, 9),
            (52, 0x1_0000),
            (56, 4096),
            (68, 0),
            (68, u32::MAX),
            (72, 0),
            (72, 1025),
            (76, 1),
            (232, 0),
            (236, 4999),
        ] {
            let mut bytes = record().encode();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            seal(&mut bytes);
            assert_eq!(Record::decode(&bytes), None, "{value} at {at}");
        }
    }

    #[test]
    fn golden_codecs() {
        let int8 = |element, group| Codec::Int8 { element, group };
        for (codec, number, parameters) in [
            (Codec::Raw, 0, 0),
            (int8(Element::F32, 64), 1, 0x0040_0000),
            (int8(Element::F16, 128), 1, 0x0080_0001),
            (int8(Element::Bf16, 0x102), 1, 0x0102_0002),
        ] {
            assert_eq!(codec_fields(codec), (number, parameters));
            assert_eq!(parse_codec(number, parameters), Some(codec));
        }
        for (number, parameters) in [(0, 1), (1, 0), (1, 0x0040_0003), (2, 0)] {
            assert_eq!(parse_codec(number, parameters), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..300),
            cut in 0..4097_usize,
            at in 0..240_usize,
            value: u8,
            sealed: bool,
        ) {
            prop_assert_eq!(Record::decode(&bytes), None);
            bytes.clear();
            let mut bytes = record().encode();
            bytes[at] = value;
            if sealed {
                seal(&mut bytes);
            }
            bytes.truncate(cut);
            if let Some(found) = Record::decode(&bytes) {
                prop_assert!(found.header.validate().is_ok());
                prop_assert_eq!(found.encode().len(), bytes.len());
            }
        }
    }
}
