//! What the segment files of a store hold, before it is said which of it is believed.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use super::bounce::BouncePool;
use super::files::{Files, OpenMode};
use super::index::Row;
use super::lock::StoreDirectory;
use super::record::Record;
use super::recovery::RecoveryReport;
use super::search::Depth;
use super::segment::{Contents, Extent, FIRST_RECORD, Segment, parse_file_name};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::memory::PAGE;

/// A segment as it was found on disk.
pub(super) struct Found {
    pub(super) segment: Arc<Segment>,
    /// Bytes of the file.
    pub(super) size: u64,
    /// What its table of contents says.
    pub(super) contents: Option<Contents>,
    /// Where it has no bytes on disk, once [`Found::find_holes`] was called.
    holes: Vec<Range<u64>>,
}

impl Found {
    /// Asks for what was given back of the file: a power failure may bring back rows of runs whose bytes are gone. A copy that leaves
    /// out zeroes has holes too, so what lies over one is not gone for sure.
    pub(super) fn find_holes(&mut self) {
        match self.segment.holes() {
            Ok(holes) => self.holes = holes,
            Err(error) => log::warn!("{}: its holes: {error}", self.segment.path().display()),
        }
    }

    /// Whether a range has all its bytes on disk.
    pub(super) fn holds(&self, extent: Extent) -> bool {
        let next = self.holes.partition_point(|hole| hole.end <= extent.offset);
        let next = self.holes.get(next);
        next.is_none_or(|hole| hole.start >= extent.end())
    }

    /// Whether the file is long enough for what a row says.
    pub(super) fn covers(&self, row: &Row) -> bool {
        let contents = self.contents.as_ref();
        let limit = contents.map_or(self.size, |contents| contents.end);
        let from = row.offset;
        row.extent().end() <= limit && from >= FIRST_RECORD && from.is_multiple_of(PAGE as u64)
    }
}

/// Opens the files that have a segment's name. Gives back the segments by id, and the first id that no file has.
pub(super) fn open_segments(
    files: &Arc<dyn Files>,
    directory: &StoreDirectory,
    mode: OpenMode,
    bounces: &BouncePool,
    report: &mut RecoveryReport,
) -> Result<(BTreeMap<u32, Found>, u32)> {
    let path = &directory.path;
    let context = |error| Error::io(format!("{}: listing segments", path.display()), error);
    let mut segments = BTreeMap::new();
    let mut free_id = 1;
    for name in files.list(path).map_err(context)? {
        let Some(id) = name.to_str().and_then(parse_file_name) else {
            continue;
        };
        free_id = free_id.max(id.saturating_add(1));
        let opened = Segment::open(files, path, directory.store, id, mode, bounces);
        let found = opened.and_then(|segment| {
            Ok(Found {
                size: segment.size()?,
                contents: segment.read_contents(bounces)?,
                holes: Vec::new(),
                segment: Arc::new(segment),
            })
        });
        match found {
            Ok(found) => {
                segments.insert(id, found);
            }
            Err(error) => {
                let file = path.join(name);
                // A process that was killed while it made a segment leaves a file without a byte in it.
                let blank = Segment::is_blank(files, &file, mode, bounces).unwrap_or(false);
                if mode.read_only || !blank || files.remove(&file).is_err() {
                    log::warn!("{}: left alone: {error}", file.display());
                    report.foreign_segments += 1;
                    report.foreign_ids.push(id);
                }
            }
        }
    }
    report.segments = segments.len();
    Ok((segments, free_id))
}

/// Records by segment and offset.
pub(super) type Scanned = HashMap<u32, BTreeMap<u64, Record>>;

/// Searches the segments that are `wanted` for records; by segment and offset. What cannot be read is left alone.
///
/// Writes to a segment that was not sealed may have been cut short, header first; and of a segment from `saved_below` on the power
/// may have failed before the payload arrived, though a later table of contents did. What is not whole was lost or never
/// acknowledged, and must not stand in the way of its being stored again.
pub(super) fn scan(
    segments: &mut BTreeMap<u32, Found>,
    bounces: &BouncePool,
    report: &mut RecoveryReport,
    saved_below: u64,
    wanted: impl Fn(u32) -> bool,
) -> Scanned {
    let mut scanned = HashMap::new();
    segments.retain(|id, found| {
        if !wanted(*id) {
            return true;
        }
        report.segments_scanned += 1;
        let depth = if found.contents.is_some() && u64::from(*id) < saved_below {
            Depth::Headers
        } else {
            Depth::Payloads
        };
        match found.segment.scan(depth, bounces) {
            Ok(search) => {
                report.payloads_unread += search.unread;
                let records = search.records.into_iter().filter(|record| {
                    depth == Depth::Payloads
                        || found.holds(record.extent())
                        || found
                            .segment
                            .is_whole(record, bounces)
                            .unwrap_or_else(|error| {
                                found.segment.unread(record, &error);
                                report.payloads_unread += 1;
                                true
                            })
                });
                let records = records.map(|record| (record.identity.offset, record));
                scanned.insert(*id, records.collect());
                true
            }
            Err(error) => {
                log::warn!("{}: left alone: {error}", found.segment.path().display());
                report.foreign_segments += 1;
                report.foreign_ids.push(*id);
                false
            }
        }
    });
    scanned
}

/// Drops expired records, and lets the clock know when the others were stored: it may have been set back since.
pub(super) fn drop_expired(
    scanned: &mut Scanned,
    clock: &Clock,
    report: &mut RecoveryReport,
) -> u64 {
    let records = scanned.values().flat_map(BTreeMap::values);
    clock.seen(records.map(|record| record.created).max().unwrap_or(0));
    let now = clock.now();
    for records in scanned.values_mut() {
        let before = records.len();
        records.retain(|_, record| record.header.terms.expires() > now);
        report.rows_dropped.expired += before - records.len();
    }
    now
}

/// Of records that lie over each other the newer one goes: offsets are never given out twice, so one of them is not real.
/// Gives back the serials of those that went.
pub(super) fn drop_overlapping(rows: &mut Vec<Row>, report: &mut RecoveryReport) -> Vec<u64> {
    rows.sort_unstable_by_key(|row| (row.segment, row.offset, row.serial));
    let mut dropped = Vec::new();
    let mut before = (0, 0);
    rows.retain(|row| {
        let place = (row.segment, row.offset);
        let kept = place >= before;
        if kept {
            before = (row.segment, row.extent().end());
        } else {
            dropped.push(row.serial);
        }
        kept
    });
    report.rows_dropped.overlapping = dropped.len();
    dropped
}

/// Takes the record of a row out of those of its segment; whether there is one.
pub(super) fn take(records: &mut BTreeMap<u64, Record>, row: &Row) -> bool {
    let matches = |record: &Record| {
        record.identity.serial == row.serial
            && record.created == row.created
            && record.header == row.header
    };
    records.get(&row.offset).is_some_and(matches) && records.remove(&row.offset).is_some()
}

pub(super) fn row_of(record: Record) -> Row {
    Row {
        serial: record.identity.serial,
        last_use: record.identity.serial,
        hits: 0,
        segment: record.identity.segment,
        offset: record.identity.offset,
        header: record.header,
        header_bytes: record.header_bytes,
        created: record.created,
    }
}
