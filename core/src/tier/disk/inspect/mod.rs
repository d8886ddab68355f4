//! Looking at a store without opening it: nothing is locked, written or repaired, another process may have it open, and what
//! is damaged is reported.

mod export;
mod survey;
mod verify;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::clock::Clock;
use crate::codec::Codec;
use crate::error::Result;
use crate::key::BlockKey;
use crate::tier::disk::lock::holder;
use crate::tier::disk::record::Record;
use survey::{Survey, disk_bytes};

pub use export::{Exported, export};
pub use survey::UnreadableSegment;
pub use verify::{Damage, Verification, verify};

/// The runs of one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceReport {
    /// The namespace.
    pub namespace: BlockKey,
    /// Whose it is: a digest of the cache salt; 0 for nobody's.
    pub tenant: u64,
    /// How its payload is stored.
    pub codec: Codec,
    /// Seconds that a run of it lives; 0 for no limit.
    pub ttl_seconds: u32,
    /// Tokens in a block; 0 for opaque blocks.
    pub block_tokens: u32,
    /// Slices (layers) of a run.
    pub slices: usize,
    /// Runs.
    pub runs: usize,
    /// Blocks in them.
    pub blocks: usize,
    /// Payload bytes as they were given.
    pub payload_bytes: u64,
    /// Bytes of the records on disk.
    pub stored_bytes: u64,
    /// When its oldest run was stored, in unix seconds; 0 where that is not known.
    pub oldest: u64,
    /// When its newest run was stored.
    pub newest: u64,
    /// Runs that are past their time to live and wait to be reclaimed.
    pub expired_runs: usize,
    /// Uses of its runs since they were stored, as far as the index has them: they are saved in batches.
    pub hits: u64,
}

/// One segment file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentReport {
    /// The file.
    pub path: PathBuf,
    /// Its id.
    pub id: u32,
    /// Whether it ends with a table of contents.
    pub sealed: bool,
    /// Its length in bytes.
    pub bytes: u64,
    /// What it takes on disk, holes left out.
    pub disk_bytes: u64,
    /// Records with a sound header.
    pub records: usize,
    /// Bytes of them.
    pub record_bytes: u64,
}

/// What the index says, compared with the segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexReport {
    /// Runs that have rows.
    pub rows: usize,
    /// Runs whose rows make no sense.
    pub damaged_rows: usize,
    /// Rows whose record is not there.
    pub rows_without_record: usize,
    /// Records that have no rows: written just now, or to be found again by the next open.
    pub records_without_row: usize,
    /// Whether the store was closed cleanly.
    pub clean: bool,
}

/// What is in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The format version that the store is marked with.
    pub format: u32,
    /// The store's id.
    pub store: u64,
    /// The process that has it open, as far as the system tells.
    pub holder: Option<String>,
    /// What the index says; what is wrong with it if it cannot be read. The next open then builds a new one.
    pub index: std::result::Result<IndexReport, String>,
    /// What the index takes on disk.
    pub index_bytes: u64,
    /// By namespace.
    pub namespaces: Vec<NamespaceReport>,
    /// Oldest first.
    pub segments: Vec<SegmentReport>,
    /// Files that could not be used.
    pub unreadable: Vec<UnreadableSegment>,
    /// Indexes that could not be opened once and were set aside; they can be deleted.
    pub moved_indexes: Vec<PathBuf>,
}

/// Says what is in the store at `path`. Reads headers only; costs about a millisecond for a hundred runs.
///
/// # Errors
/// [`crate::Error::Format`] for what is not a kvlab store or of an unknown version, [`crate::Error::Io`] if the directory
/// cannot be read. Damage inside of it is no error.
pub fn inspect(path: &Path) -> Result<Inspection> {
    let survey = Survey::of(path)?;
    let now = Clock::default().now();
    let mut namespaces = BTreeMap::new();
    for record in survey.segments.iter().flat_map(|found| &found.records) {
        let rows = survey.rows.as_ref().ok();
        let row = rows.and_then(|rows| rows.by_serial.get(&record.identity.serial));
        let hits = row.map_or(0, |row| u64::from(row.hits));
        add(&mut namespaces, record, hits, now);
    }
    let segments = survey.segments.iter().map(|found| SegmentReport {
        path: found.segment.path().to_owned(),
        id: found.segment.id,
        sealed: found.sealed,
        // A file that has just gone has no bytes.
        bytes: found.segment.size().unwrap_or(0),
        disk_bytes: disk_bytes(found.segment.path()),
        records: found.records.len(),
        record_bytes: found.records.iter().map(Record::bytes).sum(),
    });
    Ok(Inspection {
        format: survey.version,
        store: survey.store,
        holder: holder(path),
        index: survey.index_report(),
        index_bytes: survey.index_bytes,
        namespaces: namespaces.into_values().collect(),
        segments: segments.collect(),
        unreadable: survey.unreadable,
        moved_indexes: survey.moved_indexes,
    })
}

impl Survey {
    fn index_report(&self) -> std::result::Result<IndexReport, String> {
        let rows = self.rows.as_ref().map_err(Clone::clone)?;
        let records = self.segments.iter().flat_map(|found| &found.records);
        let serials = records.map(|record| record.identity.serial);
        let (mut matched, mut unmatched) = (0, 0);
        for serial in serials {
            if rows.by_serial.contains_key(&serial) {
                matched += 1;
            } else {
                unmatched += 1;
            }
        }
        Ok(IndexReport {
            rows: rows.by_serial.len(),
            damaged_rows: rows.damaged,
            rows_without_record: rows.by_serial.len() - matched,
            records_without_row: unmatched,
            clean: rows.clean,
        })
    }
}

fn add(namespaces: &mut BTreeMap<BlockKey, NamespaceReport>, record: &Record, hits: u64, now: u64) {
    let header = &record.header;
    let report = namespaces
        .entry(header.namespace)
        .or_insert_with(|| NamespaceReport {
            namespace: header.namespace,
            tenant: header.terms.tenant,
            codec: header.terms.codec,
            ttl_seconds: header.terms.ttl_seconds,
            block_tokens: header.block_tokens,
            slices: header.slices.len(),
            runs: 0,
            blocks: 0,
            payload_bytes: 0,
            stored_bytes: 0,
            oldest: record.created,
            newest: record.created,
            expired_runs: 0,
            hits: 0,
        });
    report.runs += 1;
    report.blocks += header.keys.len();
    report.payload_bytes += header.payload_bytes();
    report.stored_bytes += record.bytes();
    report.oldest = report.oldest.min(record.created);
    report.newest = report.newest.max(record.created);
    report.hits += hits;
    report.expired_runs += usize::from(header.terms.expires() <= now);
}
