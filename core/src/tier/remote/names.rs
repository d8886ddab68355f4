//! The names of values, and the entries that lead from blocks to runs.

use crate::key::BlockKey;
use crate::memory::PAGE;
use crate::run::{MAX_RUN_BLOCKS, RunHeader};
use crate::tier::record::{MAX_HEADER_BYTES, header_bytes};

/// The first byte of an entry.
const ENTRY_VERSION: u8 = 1;
/// Bytes of an entry.
pub(super) const ENTRY_BYTES: usize = 45;

/// What a run is found by: cut anywhere else it is another run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct RunName {
    pub(super) last: BlockKey,
    pub(super) blocks: u32,
}

/// Where a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) run: RunName,
    /// Which of the run's blocks it is.
    pub(super) position: u32,
    /// Bytes of the run's header.
    pub(super) header_bytes: u32,
}

impl RunName {
    /// None for a run without blocks.
    pub(super) fn of(header: &RunHeader) -> Option<Self> {
        Some(Self {
            last: *header.keys.last()?,
            blocks: header.keys.len() as u32,
        })
    }

    /// The name of its value.
    pub(super) fn value(&self, prefix: &str) -> Vec<u8> {
        format!("{prefix}:r:{}:{}", self.last, self.blocks).into_bytes()
    }
}

/// The name of a block's entry.
pub(super) fn entry_name(prefix: &str, block: &BlockKey) -> Vec<u8> {
    format!("{prefix}:b:{block}").into_bytes()
}

impl Entry {
    /// The entries of a run's blocks, in order.
    pub(super) fn all(header: &RunHeader) -> impl Iterator<Item = (BlockKey, Self)> {
        let name = RunName::of(header);
        let header_bytes = header_bytes(header.keys.len(), header.slices.len()) as u32;
        let keys = header.keys.iter().zip(0..);
        keys.filter_map(move |(key, position)| {
            let entry = Self {
                run: name?,
                position,
                header_bytes,
            };
            Some((*key, entry))
        })
    }

    pub(super) fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut out = [0; ENTRY_BYTES];
        let parts: [&[u8]; 5] = [
            &[ENTRY_VERSION],
            &self.run.last.0,
            &self.run.blocks.to_le_bytes(),
            &self.position.to_le_bytes(),
            &self.header_bytes.to_le_bytes(),
        ];
        let mut at = 0;
        for part in parts {
            out[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        out
    }

    /// None if that is not an entry, or says what cannot be.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first()?;
        let (last, rest) = rest.split_first_chunk()?;
        let ([blocks, position, header_bytes], []) = rest.as_chunks::<4>() else {
            return None;
        };
        let [blocks, position, header_bytes] =
            [blocks, position, header_bytes].map(|bytes| u32::from_le_bytes(*bytes));
        let entry = Self {
            run: RunName {
                last: BlockKey(*last),
                blocks,
            },
            position,
            header_bytes,
        };
        let header = header_bytes as usize;
        let holds = *version == ENTRY_VERSION
            && blocks as usize <= MAX_RUN_BLOCKS
            && position < blocks
            && (PAGE..=MAX_HEADER_BYTES).contains(&header)
            && header.is_multiple_of(PAGE);
        holds.then_some(entry)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Entry, RunName, entry_name};
    use crate::key::BlockKey;

    #[test]
    fn golden_names_and_entries() {
        let run = RunName {
            last: BlockKey([0xab; 32]),
            blocks: 45,
        };
        let digits = "ab".repeat(32);
        assert_eq!(
            run.value("kvlab"),
            format!("kvlab:r:{digits}:45").into_bytes()
        );
        assert_eq!(
            entry_name("x", &run.last),
            format!("x:b:{digits}").into_bytes()
        );
        let entry = Entry {
            run,
            position: 3,
            header_bytes: 8192,
        };
        let mut expected = vec![1];
        expected.extend([0xab; 32]);
        expected.extend([45, 0, 0, 0, 3, 0, 0, 0, 0, 0x20, 0, 0]);
        assert_eq!(entry.encode()[..], expected);
        assert_eq!(Entry::decode(&expected), Some(entry));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..60), version: bool) {
            let mut bytes = bytes;
            if version && !bytes.is_empty() {
                bytes[0] = 1;
            }
            if let Some(entry) = Entry::decode(&bytes) {
                prop_assert_eq!(&entry.encode()[..], &bytes);
            }
        }
    }
}
