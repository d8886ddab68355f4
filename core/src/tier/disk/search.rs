//! Finding the records of a segment, and whether their bytes arrived.

use std::io;
use std::ops::Range;

use super::bounce::{BOUNCE_BYTES, Bounce, BouncePool};
use super::record::{MAX_HEADER_BYTES, PEEKED_BYTES, Record};
use super::segment::{FIRST_RECORD, Segment};
use crate::memory::{Checksum, PAGE, page_align};

/// Records of this many bytes on average are found by a read each: what lies between two headers is not worth reading.
const SPARSE_FROM: u64 = 256 << 10;

/// What a search looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// Headers.
    Headers,
    /// Payloads too: records whose bytes do not fit their checksums are left out. Bytes that cannot be read now may be right: who
    /// reads them will know.
    Payloads,
}

/// What a search found.
#[derive(Debug, Default)]
pub(super) struct Search {
    pub(super) records: Vec<Record>,
    /// How many of them have a payload that the system could not read.
    pub(super) unread: usize,
}

impl Segment {
    /// Finds the records of this segment: by its table of contents, or page by page where there is none.
    pub(super) fn scan(&self, depth: Depth, pool: &BouncePool) -> io::Result<Search> {
        let contents = self.read_contents(pool)?;
        let mut window = Window::new(self, pool)?;
        let mut search = Search::default();
        let mut take = |window: &mut Window<'_>, record: Record| {
            let kept = depth == Depth::Headers
                || window.is_whole(&record).unwrap_or_else(|error| {
                    self.unread(&record, &error);
                    search.unread += 1;
                    true
                });
            if kept {
                search.records.push(record);
            }
        };
        if let Some(contents) = contents {
            let count = contents.records.len().max(1) as u64;
            if depth == Depth::Headers && contents.end / count >= SPARSE_FROM {
                window.ahead = PAGE;
            }
            for extent in contents.records {
                if let Some(record) = window.record(extent.offset)? {
                    take(&mut window, record);
                }
            }
            return Ok(search);
        }
        let size = window.size;
        let mut offset = FIRST_RECORD;
        while offset + (PAGE as u64) <= size {
            let record = match window.record(offset) {
                // Bytes that only look like a header longer than the file.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
                // What cannot be read now may be a record: it is not for this search to drop.
                found => found?,
            };
            match record {
                Some(record) if offset + record.bytes() <= size => {
                    offset += record.bytes();
                    take(&mut window, record);
                }
                _ => offset += PAGE as u64,
            }
        }
        Ok(search)
    }

    /// Says that it is not known whether the payload of a record is whole.
    pub(super) fn unread(&self, record: &Record, error: &io::Error) {
        log::warn!(
            "{}: the payload at offset {} could not be read, its record is kept: {error}",
            self.path().display(),
            record.identity.offset
        );
    }

    /// Whether the payload of a record is what its header says, all of it.
    pub(super) fn is_whole(&self, record: &Record, pool: &BouncePool) -> io::Result<bool> {
        let mut window = Window::new(self, pool)?;
        window.ahead = record.bytes().min(BOUNCE_BYTES as u64) as usize;
        window.is_whole(record)
    }
}

/// A part of a segment in memory. A search goes from front to back, so it is read ahead.
struct Window<'a> {
    segment: &'a Segment,
    bounce: Bounce<'a>,
    /// Whole pages of the file, in bytes.
    size: u64,
    /// What is in memory, from the start of the bounce on.
    held: Range<u64>,
    /// Bytes that a read takes at least, where there are as many.
    ahead: usize,
}

impl<'a> Window<'a> {
    fn new(segment: &'a Segment, pool: &'a BouncePool) -> io::Result<Self> {
        Ok(Self {
            segment,
            bounce: pool.take(BOUNCE_BYTES).map_err(io::Error::other)?,
            size: segment.size()? / PAGE as u64 * PAGE as u64,
            held: 0..0,
            ahead: BOUNCE_BYTES,
        })
    }

    /// Brings `len` bytes of the file from `offset` on into memory, whole pages and at most a bounce; where they are there.
    fn bring(&mut self, offset: u64, len: usize) -> io::Result<usize> {
        if offset < self.held.start || offset + len as u64 > self.held.end {
            self.held = 0..0;
            let left = self.size.saturating_sub(offset);
            let ahead = (left.min(self.ahead as u64) as usize).max(len);
            let region = &self.bounce.region;
            let read = match self.segment.read_region(offset, region, 0, ahead) {
                // What lies further on may be what cannot be read.
                Err(_) if ahead > len => {
                    self.segment.read_region(offset, region, 0, len)?;
                    len
                }
                read => read.map(|()| ahead)?,
            };
            self.held = offset..offset + read as u64;
        }
        Ok((offset - self.held.start) as usize)
    }

    /// The record that starts at `offset`, if one does.
    fn record(&mut self, offset: u64) -> io::Result<Option<Record>> {
        let at = self.bring(offset, PAGE)?;
        let mut start = [0; PEEKED_BYTES];
        self.bounce.region.read(at, &mut start);
        let Some(len) = Record::peek(&start) else {
            return Ok(None);
        };
        let at = self.bring(offset, len)?;
        let mut bytes = vec![0; len];
        self.bounce.region.read(at, &mut bytes);
        Ok(self.segment.parse_record(offset, &bytes))
    }

    /// Whether the payload of a record is what its header says, all of it.
    fn is_whole(&mut self, record: &Record) -> io::Result<bool> {
        let codec = record.header.terms.codec;
        let mut next = record.identity.offset + u64::from(record.header_bytes);
        if record.identity.offset + record.bytes() > self.size {
            return Ok(false);
        }
        for (&len, sum) in record.header.slices.iter().zip(&record.sums) {
            let mut hasher = Checksum::default();
            let mut left = codec.stored_bytes(len) as usize;
            while left > 0 {
                let part = left.min(BOUNCE_BYTES);
                let at = self.bring(next, page_align(part))?;
                self.bounce.region.hash_into(&mut hasher, at, part);
                next += page_align(part) as u64;
                left -= part;
            }
            if *sum != hasher.finish() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

const _: () = assert!(MAX_HEADER_BYTES <= BOUNCE_BYTES);
