//! A stored run as the directory knows it.

use std::sync::{Arc, OnceLock};

use super::index::Row;
use super::record::{header_bytes, padded, record_bytes};
use super::segment::{Extent, Segment};
use crate::run::RunHeader;

/// A range of a segment that a record lies in.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) segment: Arc<Segment>,
    pub(super) extent: Extent,
}

/// A stored run. Which blocks it is found by is the directory's business.
#[derive(Debug)]
pub(super) struct Run {
    /// Its index in the directory and in the eviction policy.
    pub(super) slot: u32,
    /// Its number, never given out twice.
    pub(super) serial: u64,
    pub(super) header: RunHeader,
    pub(super) place: Place,
    /// Checksums of the slices, once the header on disk was read and found to be right.
    pub(super) sums: OnceLock<Box<[u64]>>,
}

impl Run {
    /// Its rows in the index.
    pub(super) fn row(&self, last_use: u64) -> Row {
        Row {
            serial: self.serial,
            last_use,
            segment: self.place.segment.id,
            offset: self.place.extent.offset,
            header: self.header.clone(),
        }
    }

    /// Bytes of its header on disk.
    pub(super) fn header_bytes(&self) -> usize {
        header_bytes(self.header.keys.len(), self.header.slices.len())
    }

    /// Byte offset of a slice in the segment file.
    pub(super) fn slice_offset(&self, slice: usize) -> u64 {
        let before = self.header.slices.iter().take(slice);
        self.place.extent.offset
            + self.header_bytes() as u64
            + before.map(|&len| padded(len)).sum::<u64>()
    }
}

/// Bytes that a run's record takes, as an extent at `offset`.
pub(super) fn extent_of(header: &RunHeader, offset: u64) -> Extent {
    Extent {
        offset,
        len: record_bytes(header),
    }
}
