//! Reading everything that a store holds, and checking it.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use super::IndexReport;
use super::survey::{Survey, UnreadableSegment};
use crate::error::Result;
use crate::key::BlockKey;
use crate::memory::{Checksum, PAGE};
use crate::tier::disk::bounce::{BOUNCE_BYTES, BouncePool};
use crate::tier::disk::lock::holder;
use crate::tier::disk::record::{Record, padded};
use crate::tier::disk::segment::Segment;

/// Before something that a process is perhaps still writing is called damaged, it gets so long.
const SECOND_LOOK: Duration = Duration::from_millis(500);

/// A record whose bytes are not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The segment file.
    pub path: PathBuf,
    /// Where the record starts in it, in bytes.
    pub offset: u64,
    /// The first slice (layer) that is wrong.
    pub slice: usize,
    /// Blocks that the record holds.
    pub blocks: usize,
    /// Their namespace.
    pub namespace: BlockKey,
    /// What is wrong.
    pub reason: String,
}

/// What a check of everything found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verification {
    /// Records read.
    pub records: usize,
    /// Blocks in them.
    pub blocks: usize,
    /// Bytes read.
    pub bytes: u64,
    /// Records that are not what was written: each will be a miss when it is read.
    pub damaged: Vec<Damage>,
    /// Files that could not be used.
    pub unreadable: Vec<UnreadableSegment>,
    /// What the index says of the records; what is wrong with it if it cannot be read.
    pub index: std::result::Result<IndexReport, String>,
}

impl Verification {
    /// Whether everything is as it was written. Rows that lag behind the segments are no damage: the next open mends them.
    pub fn is_sound(&self) -> bool {
        self.damaged.is_empty()
            && self.unreadable.is_empty()
            && self.index.as_ref().is_ok_and(|index| {
                index.damaged_rows == 0 && (index.rows_without_record == 0 || !index.clean)
            })
    }
}

/// Reads every record of the store at `path` and checks every slice. `progress` hears the bytes done and the bytes in all.
///
/// # Errors
/// As for [`super::inspect`]. Damage is no error.
pub fn verify(path: &Path, mut progress: impl FnMut(u64, u64)) -> Result<Verification> {
    let survey = Survey::of(path)?;
    let total = survey
        .segments
        .iter()
        .flat_map(|found| &found.records)
        .map(Record::bytes)
        .sum();
    let mut found = Verification {
        records: 0,
        blocks: 0,
        bytes: 0,
        damaged: Vec::new(),
        unreadable: survey.unreadable.clone(),
        index: survey.index_report(),
    };
    for segment in &survey.segments {
        for record in &segment.records {
            if let Err(mut damage) = check(&segment.segment, record, &survey.pool) {
                // Written just now, or reclaimed since it was listed: neither is damage.
                if holder(path).is_some() {
                    sleep(SECOND_LOOK);
                }
                let again = segment
                    .segment
                    .read_record(record.identity.offset, &survey.pool);
                match again.map(|again| again.as_ref() == Some(record)) {
                    Ok(true) => match check(&segment.segment, record, &survey.pool) {
                        Ok(()) => {}
                        Err(still) => found.damaged.push(still),
                    },
                    Ok(false) => {}
                    Err(error) => {
                        damage.reason = error.to_string();
                        found.damaged.push(damage);
                    }
                }
            }
            found.records += 1;
            found.blocks += record.header.keys.len();
            found.bytes += record.bytes();
            progress(found.bytes, total);
        }
    }
    Ok(found)
}

/// Reads the slices of a record and compares their checksums.
pub(super) fn check(
    segment: &Segment,
    record: &Record,
    pool: &BouncePool,
) -> std::result::Result<(), Damage> {
    let damage = |slice: usize, reason: String| Damage {
        path: segment.path().to_owned(),
        offset: record.identity.offset,
        slice,
        blocks: record.header.keys.len(),
        namespace: record.header.namespace,
        reason,
    };
    let codec = record.header.terms.codec;
    let mut offset = record.identity.offset + u64::from(record.header_bytes);
    for (slice, (&len, &sum)) in record.header.slices.iter().zip(&record.sums).enumerate() {
        let stored = codec.stored_bytes(len);
        let mut left = stored as usize;
        let mut at = offset;
        let mut hasher = Checksum::default();
        while left > 0 {
            let part = left.min(BOUNCE_BYTES);
            let bytes = segment
                .read_at(at, part.next_multiple_of(PAGE), pool)
                .map_err(|error| damage(slice, error.to_string()))?;
            hasher.update(&bytes[..part]);
            at += part as u64;
            left -= part;
        }
        if hasher.finish() != sum {
            return Err(damage(slice, "the checksum is another".to_owned()));
        }
        offset += padded(stored);
    }
    Ok(())
}
