//! A stored run as the directory knows it.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use super::index::Row;
use super::record::{Record, padded};
use super::segment::{Extent, Segment};
use crate::run::RunHeader;
use crate::tier::ReadFailure;

/// A range of a segment that a record lies in.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) segment: Arc<Segment>,
    pub(super) extent: Extent,
}

/// How a run was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Uses {
    /// The tick of the last use.
    pub(super) last: u64,
    /// How many there were.
    pub(super) hits: u32,
}

/// A stored run. Which blocks it is found by is the directory's business.
#[derive(Debug)]
pub(super) struct Run {
    /// Its index in the directory and in the eviction policy.
    pub(super) slot: u32,
    /// Its number, never given out twice.
    pub(super) serial: u64,
    pub(super) header: RunHeader,
    /// Bytes of its header on disk.
    pub(super) header_bytes: u32,
    /// When it was stored, in unix seconds; 0 where it is not known.
    pub(super) created: u64,
    pub(super) place: Place,
    /// Checksums of the slices, once the header on disk was read and found to be right.
    pub(super) sums: OnceLock<Box<[u64]>>,
    /// It was deleted: set before its header is erased, which may happen under a reader.
    pub(super) deleted: AtomicBool,
}

impl Run {
    /// Its rows in the index.
    pub(super) fn row(&self, uses: Uses) -> Row {
        Row {
            serial: self.serial,
            last_use: uses.last,
            hits: uses.hits,
            segment: self.place.segment.id,
            offset: self.place.extent.offset,
            header: self.header.clone(),
            header_bytes: self.header_bytes,
            created: self.created,
        }
    }

    /// Takes the checksums out of the record that was found where this run's should be.
    ///
    /// # Errors
    /// [`ReadFailure::Corrupt`] if that is not the one that was written for this run.
    pub(super) fn learn(&self, found: Option<Record>) -> Result<&[u64], ReadFailure> {
        let own = found
            .filter(|record| record.identity.serial == self.serial && record.header == self.header)
            .ok_or(ReadFailure::Corrupt)?;
        Ok(self.sums.get_or_init(|| own.sums))
    }

    /// Bytes of each slice on disk, padding excluded.
    pub(super) fn stored(&self) -> impl Iterator<Item = u32> + Clone {
        let codec = self.header.terms.codec;
        let slices = self.header.slices.iter();
        slices.map(move |&len| codec.stored_bytes(len))
    }

    /// Byte offset of a slice in the segment file.
    pub(super) fn slice_offset(&self, slice: usize) -> u64 {
        let before = self.stored().take(slice);
        self.place.extent.offset + u64::from(self.header_bytes) + before.map(padded).sum::<u64>()
    }
}
