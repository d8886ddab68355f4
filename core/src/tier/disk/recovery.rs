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
use super::files::OpenMode;
use super::flight::Flights;
use super::found::{Found, drop_expired, drop_overlapping, open_segments, row_of, scan, take};
use super::index::{HELD, Index, Loaded, Meta, Row};
use super::limited;
use super::lock::StoreDirectory;
use super::run::Place;
use super::segment::{Contents, Extent, FIRST_RECORD};
use super::space::Space;
use super::stats::Counters;
use super::tenants::Tenants;
use super::{Inner, Resources, State};
use crate::clock::Clock;
use crate::config::DiskConfig;
use crate::error::{Error, Result};
use crate::memory::page_align;
use crate::sim::capture::{self, Recorder};
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
    /// The ids of these files.
    pub foreign_ids: Vec<u32>,
    /// Records that were kept though the system could not read their payload, so that nobody knows yet whether it is whole: an I/O
    /// error, said in the log. Who reads one will know.
    pub payloads_unread: usize,
    /// Rows that were dropped.
    pub rows_dropped: RowsDropped,
    /// Runs that were found in segments only.
    pub rows_rebuilt: usize,
    /// Where the old index was moved because it could not be opened.
    pub index_moved: Option<PathBuf>,
    /// The index was rebuilt from the segments alone.
    pub index_rebuilt: bool,
}

/// Opens the store.
pub(super) fn open(config: &DiskConfig) -> Result<(Inner, RecoveryReport)> {
    let recorder = config.capture.clone().map(Recorder::Live);
    let (eviction, tap) = capture::policy(
        recorder.as_ref(),
        TierId::L3,
        0,
        &config.policy,
        config.capacity,
        0,
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
        recorder,
        tap.clone(),
    )?;
    let entries = Directory::new(eviction, tenants, clock.clone(), tap);
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
            saved_below: 0,
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
        counters: Counters::unread_at_open(report.payloads_unread),
        unlinked: AtomicBool::new(true),
        left_alone: Mutex::new(report.foreign_ids.clone()),
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

struct Recovery<'a> {
    bounces: &'a BouncePool,
    segments: BTreeMap<u32, Found>,
    /// The first id that no segment file has, foreign ones included.
    free_id: u32,
    index: &'a Index,
    clock: &'a Clock,
    /// Segments below this id are on stable storage, payload and all.
    saved_below: u64,
    report: RecoveryReport,
}

/// The state of a store that is only read, from its segments alone: an index cannot be opened without writing to it.
fn read_only_state(
    mut segments: BTreeMap<u32, Found>,
    mut directory: Directory,
    clock: &Clock,
    bounces: &BouncePool,
    report: &mut RecoveryReport,
) -> State {
    // Nothing can be stored here: what is lost is a miss when it is read, and that is all.
    let mut scanned = scan(&mut segments, bounces, report, u64::MAX, |_| true);
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
        let unlisted = Contents {
            end: found.size,
            records: Vec::new(),
            saved_below: 0,
        };
        let contents = found.contents.clone().unwrap_or(unlisted);
        let live = live.get(id).copied().unwrap_or(0);
        space.adopt(Arc::clone(&found.segment), found.size, contents, live, true);
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
        let tables = self.segments.values().flat_map(|found| &found.contents);
        let listed = tables.map(|contents| u64::from(contents.saved_below));
        self.saved_below = if self.report.clean {
            u64::MAX
        } else {
            listed.max().unwrap_or(0).max(checkpoint)
        };
        if !self.report.clean {
            self.segments.values_mut().for_each(Found::find_holes);
        }
        // A segment that no row speaks of is searched before it is taken for empty.
        let known = loaded.rows.iter().map(|row| row.segment);
        let known = known.collect::<HashSet<_>>();
        let hollow = loaded.rows.iter().filter(|row| {
            let found = self.segments.get(&row.segment);
            found.is_some_and(|found| !found.holds(row.extent()))
        });
        let hollow = hollow.map(|row| row.segment).collect::<HashSet<_>>();
        let wanted = |id| u64::from(id) >= first || !known.contains(&id) || hollow.contains(&id);
        let (bounces, saved_below) = (self.bounces, self.saved_below);
        let mut scanned = scan(
            &mut self.segments,
            bounces,
            &mut self.report,
            saved_below,
            wanted,
        );
        let newest = loaded.rows.iter().map(|row| row.created).max();
        self.clock.seen(newest.unwrap_or(0));
        self.clock.seen(meta(Meta::Time)?.unwrap_or(0));
        let now = drop_expired(&mut scanned, self.clock, &mut self.report);
        let mut rows = loaded.rows;
        let segments = &self.segments;
        let counts = &mut self.report.rows_dropped;
        rows.retain(|row| {
            let reason = if row.header.terms.expires() <= now {
                Some(&mut counts.expired)
            } else if !segments
                .get(&row.segment)
                .is_some_and(|found| found.covers(row))
            {
                Some(&mut counts.no_segment)
            } else if !scanned
                .get_mut(&row.segment)
                .is_none_or(|records| take(records, row))
            {
                Some(&mut counts.no_record)
            } else {
                None
            };
            if let Some(count) = reason {
                *count += 1;
                dropped.push(row.serial);
                return false;
            }
            true
        });
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
        let blocks = rows.iter().map(|row| row.header.keys.len()).sum();
        directory.reserve(rows.len(), blocks);
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
        let (size, contents) = if let Some(contents) = &found.contents {
            (found.size, contents.clone())
        } else {
            let contents = Contents {
                end: live.last().map_or(FIRST_RECORD, Extent::end),
                records: live.to_vec(),
                saved_below: 0,
            };
            // Without its table it is searched page by page the next time.
            let sealed = segment.seal(&contents, self.bounces);
            (sealed.unwrap_or(found.size), contents)
        };
        let end = contents.end;
        // The checkpoint may pass what is taken over only if a power failure leaves it there.
        let known = found.contents.is_some() && u64::from(segment.id) < self.saved_below;
        let saved = known || {
            let saved = segment.sync();
            saved
                .inspect_err(|error| log::warn!("{}: saving it: {error}", segment.path().display()))
                .is_ok()
        };
        space.adopt(Arc::clone(segment), size, contents, live.len(), saved);
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
