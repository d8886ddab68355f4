//! Opening a store: rows are read, checked against the segments, and repaired both ways after an unclean end.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::{Condvar, Mutex};

use super::bounce::BouncePool;
use super::directory::Directory;
use super::files::{Files, OpenMode};
use super::flight::Flights;
use super::index::{HELD, Index, Loaded, Meta, Row};
use super::limited;
use super::lock::StoreDirectory;
use super::record::Record;
use super::run::Place;
use super::segment::{Extent, FIRST_RECORD, Segment, parse_file_name};
use super::space::Space;
use super::stats::Counters;
use super::tenants::Tenants;
use super::{Inner, Resources, State};
use crate::clock::Clock;
use crate::config::DiskConfig;
use crate::error::{Error, Result};
use crate::memory::{PAGE, page_align};
use crate::sim::capture;
use crate::tier::TierId;

pub(super) const INDEX_DIRECTORY: &str = "index";
/// The least capacity, in bytes: the index alone takes half of it.
const MIN_CAPACITY: u64 = 1 << 20;
/// The smallest segment, in bytes.
const MIN_SEGMENT_BYTES: u64 = 64 << 10;

/// Index rows that were not taken over, by reason; each counts a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowsDropped {
    /// The rows themselves make no sense.
    pub damaged: usize,
    /// The segment file is missing, foreign or shorter than the rows say.
    pub no_segment: usize,
    /// The segment has no such record.
    pub no_record: usize,
    /// The record lies over another one.
    pub overlapping: usize,
    /// Their time to live was over.
    pub expired: usize,
}

/// What opening a store found and repaired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The store was closed cleanly, or is new.
    pub clean: bool,
    /// Runs that can be found now.
    pub runs: usize,
    /// Blocks that can be found now.
    pub blocks: usize,
    /// Bytes of their records.
    pub bytes: u64,
    /// Segment files.
    pub segments: usize,
    /// Segment files that were searched for records.
    pub segments_scanned: usize,
    /// Files with a segment's name that are not this store's, or cannot be read; they are left alone.
    pub foreign_segments: usize,
    /// Rows that were dropped.
    pub rows_dropped: RowsDropped,
    /// Runs that were found in segments only.
    pub rows_rebuilt: usize,
    /// Where the old index was moved because it could not be opened.
    pub index_moved: Option<PathBuf>,
    /// The index was rebuilt from the segments alone.
    pub index_rebuilt: bool,
}

/// A segment as it was found on disk.
struct Found {
    segment: Arc<Segment>,
    size: u64,
    /// Where its table of contents starts, and the records it lists.
    contents: Option<(u64, Vec<Extent>)>,
}

/// Opens the store.
pub(super) fn open(config: &DiskConfig) -> Result<(Inner, RecoveryReport)> {
    let eviction = capture::policy(
        config.capture.as_ref(),
        TierId::L3,
        0,
        &config.policy,
        config.capacity,
    )?;
    if config.capacity < MIN_CAPACITY {
        return Err(Error::Config {
            name: "l3 capacity",
            value: config.capacity.to_string(),
            remedy: format!("give at least {MIN_CAPACITY} bytes"),
        });
    }
    let clock = Clock::default();
    let tenants = Tenants::new(
        &config.policy,
        config.quota_per_tenant,
        config.capture.clone(),
    )?;
    let entries = Directory::new(eviction, tenants, clock.clone());
    let files = limited::files(config)?;
    let directory = if config.read_only {
        StoreDirectory::open_read_only(&config.path, config.allow_unsafe_directory)?
    } else {
        StoreDirectory::open(&config.path, config.allow_unsafe_directory)?
    };
    let bounces = BouncePool::default();
    let mut report = RecoveryReport::default();
    let mode = OpenMode {
        create: false,
        direct: config.direct,
        read_only: config.read_only,
    };
    let (segments, free_id) = open_segments(&files, &directory, mode, &bounces, &mut report)?;
    let (path, store) = (directory.path.clone(), directory.store);
    let (state, resources, reading) = if config.read_only {
        let state = read_only_state(segments, entries, &clock, &bounces, &mut report);
        (state, None, Some(directory))
    } else {
        let (index, loaded) = open_index(&directory.path, !segments.is_empty(), &mut report)?;
        let mut recovery = Recovery {
            bounces: &bounces,
            segments,
            free_id,
            index: &index,
            clock: &clock,
            report,
        };
        let rows = recovery.rows(loaded)?;
        let state = recovery.state(rows, entries)?;
        report = recovery.report;
        let resources = Resources {
            index,
            _directory: directory,
        };
        (state, Some(Arc::new(resources)), None)
    };
    let inner = Inner {
        path,
        files,
        store,
        capacity: config.capacity,
        segment_bytes: segment_bytes(config),
        free_reserve: config.free_reserve,
        direct: config.direct,
        durable: config.durable,
        read_only: config.read_only,
        clock,
        owner: std::process::id(),
        bounces,
        counters: Counters::default(),
        unlinked: AtomicBool::new(true),
        full: AtomicBool::new(false),
        resources: Mutex::new(resources),
        reading: Mutex::new(reading),
        state: Mutex::new(state),
        changed: Condvar::new(),
    };
    Ok((inner, report))
}

/// The size of segments: as configured, but small enough that a small store has several.
fn segment_bytes(config: &DiskConfig) -> u64 {
    let bytes = config
        .segment_bytes
        .min(config.capacity / 8)
        .max(MIN_SEGMENT_BYTES);
    page_align(bytes as usize) as u64
}

fn open_segments(
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
                }
            }
        }
    }
    report.segments = segments.len();
    Ok((segments, free_id))
}

/// Opens and reads the index; one that does not open is moved aside for a new one.
fn open_index(
    directory: &Path,
    expected: bool,
    report: &mut RecoveryReport,
) -> Result<(Index, Loaded)> {
    let path = directory.join(INDEX_DIRECTORY);
    let existed = path.exists();
    let fail = |reason: String| {
        Error::io(
            format!("{}: opening the index", path.display()),
            io::Error::other(reason),
        )
    };
    report.index_rebuilt = expected && !existed;
    let readable = Index::open(&path).and_then(|index| {
        let loaded = index.load()?;
        index.meta(Meta::Clean).map_err(|error| error.to_string())?;
        Ok((index, loaded))
    });
    let opened = match readable {
        Ok(opened) => opened,
        Err(reason) if existed && !reason.contains(HELD) => {
            let mut number = 1;
            let mut moved = directory.join("index.corrupt-1");
            while moved.exists() {
                number += 1;
                moved = directory.join(format!("index.corrupt-{number}"));
            }
            log::error!(
                "{}: the index does not open ({reason}); it is moved to {} and rebuilt",
                path.display(),
                moved.display()
            );
            fs::rename(&path, &moved).map_err(|error| fail(error.to_string()))?;
            report.index_moved = Some(moved);
            report.index_rebuilt = true;
            (Index::open(&path).map_err(fail)?, Loaded::default())
        }
        Err(reason) => return Err(fail(reason)),
    };
    restrict(&path);
    Ok(opened)
}

/// sled makes its files readable for all; the directory keeps others out.
fn restrict(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    if let Err(error) = fs::set_permissions(path, fs::Permissions::from_mode(0o700)) {
        log::warn!("{}: {error}", path.display());
    }
}

fn index_error(error: sled::Error) -> Error {
    Error::io("repairing the index", error.into())
}

/// Records by segment and offset.
type Scanned = HashMap<u32, BTreeMap<u64, Record>>;

struct Recovery<'a> {
    bounces: &'a BouncePool,
    segments: BTreeMap<u32, Found>,
    /// The first id that no segment file has, foreign ones included.
    free_id: u32,
    index: &'a Index,
    clock: &'a Clock,
    report: RecoveryReport,
}

/// Searches the segments that are `wanted` for records; by segment and offset. What cannot be read is left alone.
///
/// Writes to a segment that was not sealed may have been cut short, header first: what is not whole was never acknowledged, and
/// must not stand in the way of its being stored again.
fn scan(
    segments: &mut BTreeMap<u32, Found>,
    bounces: &BouncePool,
    report: &mut RecoveryReport,
    wanted: impl Fn(u32) -> bool,
) -> Scanned {
    let mut scanned = HashMap::new();
    segments.retain(|id, found| {
        if !wanted(*id) {
            return true;
        }
        report.segments_scanned += 1;
        match found.segment.scan(bounces) {
            Ok(records) => {
                let records = records.into_iter().filter(|record| {
                    // Bytes that cannot be read now may be right: who reads them will know.
                    found.contents.is_some()
                        || found.segment.is_whole(record, bounces).unwrap_or(true)
                });
                let records = records.map(|record| (record.identity.offset, record));
                scanned.insert(*id, records.collect());
                true
            }
            Err(error) => {
                log::warn!("{}: left alone: {error}", found.segment.path().display());
                report.foreign_segments += 1;
                false
            }
        }
    });
    scanned
}

/// Drops expired records, and lets the clock know when the others were stored: it may have been set back since.
fn drop_expired(scanned: &mut Scanned, clock: &Clock, report: &mut RecoveryReport) -> u64 {
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
fn drop_overlapping(rows: &mut Vec<Row>, report: &mut RecoveryReport) -> Vec<u64> {
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

fn row_of(record: Record) -> Row {
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

/// The state of a store that is only read, from its segments alone: an index cannot be opened without writing to it.
fn read_only_state(
    mut segments: BTreeMap<u32, Found>,
    mut directory: Directory,
    clock: &Clock,
    bounces: &BouncePool,
    report: &mut RecoveryReport,
) -> State {
    let mut scanned = scan(&mut segments, bounces, report, |_| true);
    drop_expired(&mut scanned, clock, report);
    let records = scanned.into_values().flat_map(BTreeMap::into_values);
    let mut rows = records.map(row_of).collect::<Vec<_>>();
    drop_overlapping(&mut rows, report);
    let mut space = Space::default();
    let mut live: HashMap<u32, usize> = HashMap::new();
    for row in &rows {
        *live.entry(row.segment).or_default() += 1;
    }
    for (id, found) in &segments {
        let (end, records) = found.contents.clone().unwrap_or((found.size, Vec::new()));
        let live = live.get(id).copied().unwrap_or(0);
        space.adopt(Arc::clone(&found.segment), found.size, end, records, live);
        space.next_id = space.next_id.max(id.saturating_add(1));
    }
    rows.sort_unstable_by_key(|row| row.serial);
    for row in rows {
        if let Some(found) = segments.get(&row.segment) {
            let place = Place {
                segment: Arc::clone(&found.segment),
                extent: row.extent(),
            };
            directory.insert(row, place);
        }
    }
    let totals = directory.totals();
    report.runs = totals.runs;
    report.blocks = totals.blocks;
    report.bytes = totals.live_bytes;
    State {
        directory,
        space,
        flights: Flights::default(),
        leaving: HashMap::default(),
        growing: false,
        closed: false,
        index_bytes: 0,
    }
}

impl Recovery<'_> {
    /// The rows that hold, in order of their last use. What the index lacks or has too much is repaired in it.
    fn rows(&mut self, loaded: Loaded) -> Result<Vec<Row>> {
        let meta = |meta| self.index.meta(meta).map_err(index_error);
        let clean = meta(Meta::Clean)?;
        let checkpoint = meta(Meta::Checkpoint)?.unwrap_or(0);
        let fresh = clean.is_none() && self.segments.is_empty();
        self.report.clean = clean == Some(1) || fresh;
        self.report.index_rebuilt |= clean.is_none() && !fresh;
        // Whatever ends this process from here on leaves the store unclean, and a power failure must not undo that.
        self.index.set_meta(Meta::Clean, 0).map_err(index_error)?;
        self.index.sync()?;
        self.report.rows_dropped.damaged = loaded.damaged.len();
        let outdated = loaded.outdated.into_iter().collect::<HashSet<_>>();
        for row in loaded
            .rows
            .iter()
            .filter(|row| outdated.contains(&row.serial))
        {
            self.index.replace(row).map_err(index_error)?;
        }
        let mut dropped = loaded.damaged;
        // Rows that make no sense may belong to any record.
        let doubtful = self.report.index_rebuilt || !dropped.is_empty();
        let first = match (self.report.clean, doubtful) {
            (_, true) => 0,
            (true, false) => u64::MAX,
            (false, false) => checkpoint,
        };
        // A segment that no row speaks of is searched before it is taken for empty.
        let known = loaded.rows.iter().map(|row| row.segment);
        let known = known.collect::<HashSet<_>>();
        let mut scanned = scan(&mut self.segments, self.bounces, &mut self.report, |id| {
            u64::from(id) >= first || !known.contains(&id)
        });
        let newest = loaded.rows.iter().map(|row| row.created).max();
        self.clock.seen(newest.unwrap_or(0));
        self.clock.seen(meta(Meta::Time)?.unwrap_or(0));
        let now = drop_expired(&mut scanned, self.clock, &mut self.report);
        let mut rows = Vec::with_capacity(loaded.rows.len());
        for row in loaded.rows {
            let counts = &mut self.report.rows_dropped;
            if row.header.terms.expires() <= now {
                counts.expired += 1;
                dropped.push(row.serial);
                continue;
            }
            let end = row.extent().end();
            let Some(found) = self.segments.get(&row.segment) else {
                counts.no_segment += 1;
                dropped.push(row.serial);
                continue;
            };
            let limit = found.contents.as_ref().map_or(found.size, |(end, _)| *end);
            if end > limit || row.offset < FIRST_RECORD || row.offset % PAGE as u64 != 0 {
                counts.no_segment += 1;
                dropped.push(row.serial);
                continue;
            }
            if let Some(records) = scanned.get_mut(&row.segment) {
                let matches = |record: &Record| {
                    record.identity.serial == row.serial
                        && record.created == row.created
                        && record.header == row.header
                };
                if records.get(&row.offset).is_some_and(matches) {
                    records.remove(&row.offset);
                } else {
                    counts.no_record += 1;
                    dropped.push(row.serial);
                    continue;
                }
            }
            rows.push(row);
        }
        self.index.remove_unread(&dropped).map_err(index_error)?;
        for record in scanned.into_values().flat_map(BTreeMap::into_values) {
            let row = row_of(record);
            self.index.insert(&row).map_err(index_error)?;
            rows.push(row);
            self.report.rows_rebuilt += 1;
        }
        let overlapping = drop_overlapping(&mut rows, &mut self.report);
        self.index
            .remove_unread(&overlapping)
            .map_err(index_error)?;
        rows.sort_unstable_by_key(|row| (row.last_use, row.serial));
        Ok(rows)
    }

    /// Fills directory and segment table. Segments left open are sealed, empty ones go, and what no record takes is given back.
    fn state(&mut self, rows: Vec<Row>, mut directory: Directory) -> Result<State> {
        let mut space = Space::default();
        let mut live: HashMap<u32, Vec<Extent>> = HashMap::new();
        let mut clock = self
            .index
            .meta(Meta::Clock)
            .map_err(index_error)?
            .unwrap_or(0);
        for row in rows {
            let Some(found) = self.segments.get(&row.segment) else {
                continue;
            };
            let place = Place {
                segment: Arc::clone(&found.segment),
                extent: row.extent(),
            };
            live.entry(row.segment).or_default().push(place.extent);
            clock = clock.max(row.serial).max(row.last_use);
            directory.insert(row, place);
        }
        directory.resume_clock(clock);
        let next = self.index.meta(Meta::NextSegment).map_err(index_error)?;
        space.next_id = self.free_id.max(next.unwrap_or(1) as u32);
        for (id, found) in std::mem::take(&mut self.segments) {
            let mut extents = live.remove(&id).unwrap_or_default();
            extents.sort_unstable();
            if let Err(error) = self.settle(&mut space, &found, &extents) {
                log::warn!("{}: repairing it: {error}", found.segment.path().display());
            }
        }
        self.index
            .set_meta(Meta::NextSegment, u64::from(space.next_id))
            .and_then(|()| {
                self.index
                    .set_meta(Meta::Checkpoint, u64::from(space.checkpoint()))
            })
            .and_then(|()| self.index.flush())
            .map_err(index_error)?;
        let totals = directory.totals();
        self.report.runs = totals.runs;
        self.report.blocks = totals.blocks;
        self.report.bytes = totals.live_bytes;
        self.report.segments = space.len();
        Ok(State {
            directory,
            space,
            flights: Flights::default(),
            leaving: HashMap::default(),
            growing: false,
            closed: false,
            index_bytes: self.index.bytes(),
        })
    }

    /// Takes a segment over: seals it if it was left open, gives back what no record takes, removes it if that is all.
    fn settle(&self, space: &mut Space, found: &Found, live: &[Extent]) -> io::Result<()> {
        let segment = &found.segment;
        if live.is_empty() {
            return segment
                .remove()
                .inspect_err(|_| space.doom(segment, found.size));
        }
        let (size, end, records) = if let Some((end, records)) = &found.contents {
            (found.size, *end, records.clone())
        } else {
            let end = live.last().map_or(FIRST_RECORD, Extent::end);
            // Without its table it is searched page by page the next time.
            let sealed = segment.seal(end, live, self.bounces);
            let size = sealed
                .and_then(|size| segment.sync().map(|()| size))
                .unwrap_or(found.size);
            (size, end, live.to_vec())
        };
        space.adopt(Arc::clone(segment), size, end, records, live.len());
        let mut from = FIRST_RECORD;
        let before = live.iter().map(|extent| {
            let gap = from..extent.offset;
            from = extent.end();
            gap
        });
        let mut gaps = before.collect::<Vec<_>>();
        gaps.push(from..end);
        for gap in gaps {
            let extent = Extent {
                offset: gap.start,
                len: gap.end.saturating_sub(gap.start),
            };
            if extent.len > 0 && segment.punch(extent)? {
                space.punched(segment.id, extent.len);
            }
        }
        Ok(())
    }
}
