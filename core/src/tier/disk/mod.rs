//! L3: segment files, a directory in memory, and its sled copy. The format is described in `docs/format.md`.
//!
//! Lookups are answered from memory; sled and the disk are touched by writes, reads of payload and reopening only. One mutex
//! guards directory and segment table for microseconds; no lock is held over I/O.

mod archive;
mod bounce;
mod call;
mod directory;
mod files;
mod flight;
mod found;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod import;
mod index;
pub mod inspect;
mod limited;
mod lock;
mod payload;
mod payload_free;
mod platform;
mod read;
mod reclaim;
mod recovery;
mod replica;
mod run;
mod scrub;
mod search;
mod segment;
mod shapes;
mod space;
mod stats;
mod sync;
mod tenants;
mod write;

use std::collections::{BTreeMap, HashMap};
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use parking_lot::{Condvar, Mutex};

use bounce::BouncePool;
use directory::Directory;
use flight::Flights;
use index::{Index, Meta};
use lock::StoreDirectory;
use payload::Form;
use read::PinnedDiskRun;
use run::Run;
use segment::Segment;
use space::Space;
use stats::Counters;

pub use files::{Files, IoMode, OpenFile, OpenMode, SystemFiles};
pub use import::Imported;
pub(crate) use payload_free::PayloadFree;
#[cfg(test)]
pub(crate) use record::record_bytes;
pub(crate) use replica::Replica;

pub use recovery::{RecoveryReport, RowsDropped};
pub use scrub::Scrubbed;
pub use stats::{DiskStats, DroppedCounts, RefusedCounts};

use super::record;
use super::{NamespaceUsage, PinnedRun, Put, Tier, TierId};
use crate::clock::Clock;
use crate::config::DiskConfig;
use crate::error::{Error, Result};
use crate::key::BlockKey;
use crate::memory::resident_bytes;
use crate::run::{RunHeader, RunSource};

/// How long `close` waits for puts that are under way.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Uses that wait in memory before a put saves them.
const UNSAVED_USES: usize = 1024;
/// Expired runs that a flush takes out of the directory at once.
const SWEPT_BY_FLUSH: usize = 1024;

/// The disk tier of one directory, which it alone uses until closed or dropped.
#[derive(Debug)]
pub struct DiskTier {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    path: PathBuf,
    files: Arc<dyn Files>,
    store: u64,
    capacity: u64,
    segment_bytes: u64,
    free_reserve: u64,
    direct: bool,
    durable: bool,
    read_only: bool,
    clock: Clock,
    /// The process that opened it.
    owner: u32,
    bounces: BouncePool,
    counters: Counters,
    /// What `close` gives back: the index and the directory's lock.
    resources: Mutex<Option<Arc<Resources>>>,
    /// A segment file was removed since the directory was last saved.
    unlinked: AtomicBool,
    /// Segment files that were left alone when the store was opened. What they hold nobody knows until they can be read.
    left_alone: Mutex<Vec<u32>>,
    /// The disk was full when something was last written.
    full: AtomicBool,
    /// What `close` gives back of a store that is only read: the lock of its directory.
    reading: Mutex<Option<StoreDirectory>>,
    state: Mutex<State>,
    /// Signalled when a put ends or a segment becomes active.
    changed: Condvar,
}

/// The index, and the lock of the directory, which is let go after the index is closed. Whoever still works with the index keeps both.
#[derive(Debug)]
struct Resources {
    index: Index,
    _directory: StoreDirectory,
}

impl Deref for Resources {
    type Target = Index;

    fn deref(&self) -> &Index {
        &self.index
    }
}

#[derive(Debug)]
struct State {
    directory: Directory,
    space: Space,
    flights: Flights,
    /// Runs that left the directory without being deleted, until their headers are gone from disk; by serial.
    leaving: HashMap<u64, Arc<Run>, RandomState>,
    /// A thread is making room for records.
    growing: bool,
    closed: bool,
    /// Bytes that the index took when it was last looked at.
    index_bytes: u64,
}

impl DiskTier {
    /// Opens the store in `config.path`, or makes it, and repairs what an unclean end left.
    ///
    /// # Errors
    /// [`Error::Config`] for an unknown policy or a capacity below 1 MiB, [`Error::Format`] for a directory that is not a kvlab
    /// store or of another format version (it stays untouched), [`Error::Locked`] if someone else uses it, [`Error::Io`]
    /// if it cannot be made, read or written.
    pub fn open(config: &DiskConfig) -> Result<(Self, RecoveryReport)> {
        let (inner, report) = recovery::open(config)?;
        if !config.read_only {
            let index = inner.index()?;
            inner.trim(&index);
            let over = inner.state.lock().directory.tenants.all_over();
            for tenant in over {
                inner.trim_tenant(&index, tenant);
            }
        }
        let tier = Self {
            inner: Arc::new(inner),
        };
        Ok((tier, report))
    }

    /// Stores a run, as [`Tier::put`] does; what follows it in its chain may be put as soon as `admitted` was called.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if header and source do not match, [`Error::Closed`], [`Error::Forked`].
    pub fn put_ahead(
        &self,
        header: &RunHeader,
        source: &RunSource,
        admitted: &dyn Fn(),
    ) -> Result<Put> {
        self.inner.put(header, source, admitted, Form::Given)
    }

    /// Deletes all runs of a namespace, or everything, and gives back how many. Their headers are erased on disk when this
    /// returns: a crash does not bring them back.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Forked`], or [`Error::Io`] if the disk did not take it; the runs are not found any more even
    /// then.
    pub fn clear(&self, namespace: Option<&BlockKey>) -> Result<usize> {
        self.inner.clear(namespace)
    }

    /// Evicts leaves until `bytes` bytes of records are gone or nothing can go; the bytes that went.
    pub fn evict(&self, bytes: u64) -> u64 {
        self.inner.evict(bytes)
    }

    /// Sets how many bytes the records of a tenant may take, for as long as the store is open; more than that evicts the tenant's
    /// own leaves. None for no limit.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for tenant 0, [`Error::Closed`], [`Error::Forked`], [`Error::ReadOnly`].
    pub fn set_quota(&self, tenant: u64, quota: Option<u64>) -> Result<()> {
        self.inner.set_quota(tenant, quota)
    }

    /// Bytes of the records of a tenant.
    pub fn tenant_bytes(&self, tenant: u64) -> u64 {
        self.inner.state.lock().directory.tenants.bytes(tenant)
    }

    /// Says how many threads read at once, so that there is working memory for them: a few MiB each, at most. 4 unless said.
    pub fn set_readers(&self, readers: usize) {
        self.inner.bounces.set_readers(readers);
    }

    /// The clock by which runs expire.
    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    /// Puts everything acknowledged so far on stable storage, uses included, and moves the recovery checkpoint.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Forked`], or [`Error::Io`]: the segment that the system could not save takes nothing more, and
    /// what of it was lost since it was last saved is a miss.
    pub fn flush(&self) -> Result<()> {
        self.inner.check_owner()?;
        self.inner.flush()
    }

    /// Waits for puts under way, seals the open segment, saves the index, marks the store clean and gives up the
    /// directory. Pinned runs stay readable. Closing twice does nothing.
    ///
    /// # Errors
    /// [`Error::Forked`]; [`Error::Timeout`] if puts do not end, the store is then still open but takes nothing; [`Error::Io`]
    /// if something could not be saved, the store is then closed all the same and repaired when next opened.
    pub fn close(&self) -> Result<()> {
        self.inner.close()
    }

    /// What the tier holds and has done.
    pub fn stats(&self) -> DiskStats {
        let mut out = DiskStats {
            capacity: self.inner.capacity,
            direct: self.inner.direct,
            ..DiskStats::default()
        };
        self.inner.counters.fill(&mut out);
        out.memory_waits = self.inner.bounces.waits();
        let state = self.inner.state.lock();
        let totals = state.directory.totals();
        out.runs = totals.runs;
        out.blocks = totals.blocks;
        out.live_bytes = totals.live_bytes;
        out.pinned = totals.pinned;
        out.segments = state.space.len();
        out.used_bytes = state.space.used() + state.index_bytes;
        out
    }

    /// What there is of each namespace, by namespace. O(runs).
    pub fn namespaces(&self) -> Vec<NamespaceUsage> {
        let mut all = BTreeMap::new();
        for run in self.inner.state.lock().directory.runs() {
            let header = &run.header;
            let usage = all.entry(header.namespace).or_insert(NamespaceUsage {
                namespace: header.namespace,
                runs: 0,
                blocks: 0,
                payload_bytes: 0,
            });
            usage.runs += 1;
            usage.blocks += header.keys.len();
            usage.payload_bytes += header.payload_bytes();
        }
        all.into_values().collect()
    }

    /// The segment files, oldest first.
    pub fn segment_files(&self) -> Vec<PathBuf> {
        let segments = self.inner.segments();
        segments
            .iter()
            .map(|segment| segment.path().to_owned())
            .collect()
    }

    /// Writes out and drops what the system's page cache holds of the segment files; the bytes that stayed all the same.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn drop_page_cache(&self) -> Result<u64> {
        let mut resident = 0;
        for segment in self.inner.segments() {
            resident += segment
                .sync()
                .and_then(|()| platform::drop_cached(&segment.file.file))
                .and_then(|()| resident_bytes(&segment.file.file))
                .map_err(|error| {
                    let path = segment.path().display();
                    Error::io(format!("{path}: dropping it from the page cache"), error)
                })?;
        }
        Ok(resident)
    }

    /// Checks every structure against what it counts. For tests and inspection: O(n).
    ///
    /// # Errors
    /// A description of the first thing that is wrong.
    pub fn validate(&self) -> std::result::Result<(), String> {
        let state = self.inner.state.lock();
        state.directory.validate()?;
        let mut extents = state
            .directory
            .runs()
            .map(|run| (run.place.segment.id, run.place.extent))
            .collect::<Vec<_>>();
        extents.sort_unstable();
        state.space.validate(&extents)?;
        let idle = state.flights.is_empty() && !state.growing;
        if idle
            && state.directory.evictable() > 0
            && state.space.used() + state.index_bytes > self.inner.capacity
        {
            return Err(format!(
                "segments and index take {} bytes of {}",
                state.space.used() + state.index_bytes,
                self.inner.capacity
            ));
        }
        Ok(())
    }
}

impl Tier for DiskTier {
    fn id(&self) -> TierId {
        TierId::L3
    }

    fn contains(&self, key: &BlockKey) -> bool {
        let state = self.inner.state.lock();
        !state.closed && state.directory.live(key).is_some()
    }

    fn find(&self, key: &BlockKey) -> Option<(Arc<dyn PinnedRun>, usize)> {
        self.inner.check_owner().ok()?;
        let mut state = self.inner.state.lock();
        if state.closed {
            return None;
        }
        let row = state.directory.live(key)?;
        state.directory.touch(row.slot);
        let run = state.directory.pin(row.slot)?;
        drop(state);
        let pinned = PinnedDiskRun {
            inner: Arc::clone(&self.inner),
            run,
        };
        Some((Arc::new(pinned), row.position as usize))
    }

    fn put(&self, header: &RunHeader, source: &RunSource) -> Result<Put> {
        self.inner.put(header, source, &|| (), Form::Given)
    }

    fn remove(&self, keys: &[BlockKey]) -> usize {
        self.inner.remove(keys)
    }
}

impl Drop for DiskTier {
    fn drop(&mut self) {
        if self.inner.check_owner().is_ok()
            && let Err(error) = self.inner.close()
        {
            log::warn!("{}: closing: {error}", self.inner.path.display());
        }
    }
}

impl Inner {
    /// A forked child shares descriptors with its parent, but not what the parent knows.
    fn check_owner(&self) -> Result<()> {
        let child = std::process::id();
        if child == self.owner {
            Ok(())
        } else {
            Err(Error::Forked {
                owner: self.owner,
                child,
            })
        }
    }

    fn index(&self) -> Result<Arc<Resources>> {
        if self.read_only {
            return Err(Error::ReadOnly(self.path.clone()));
        }
        self.resources.lock().clone().ok_or(Error::Closed)
    }

    fn segments(&self) -> Vec<Arc<Segment>> {
        let state = self.state.lock();
        let segments = state.space.iter();
        segments
            .map(|segment| Arc::clone(&segment.segment))
            .collect()
    }

    fn index_error(&self, error: sled::Error) -> Error {
        Error::io(
            format!("{}: writing the index", self.path.display()),
            error.into(),
        )
    }

    /// Saves uses, if there are at least so many.
    fn save_uses(&self, index: &Index, at_least: usize) -> Result<()> {
        let uses = {
            let mut state = self.state.lock();
            if state.directory.unsaved_uses() < at_least {
                return Ok(());
            }
            state.directory.take_uses()
        };
        let rows = uses.iter().map(|(run, uses)| (&**run, *uses));
        let saved = index.save_uses(rows).and_then(|()| {
            // A run that went meanwhile must not get its row back.
            let state = self.state.lock();
            let gone = uses
                .iter()
                .filter(|(run, _)| !state.directory.holds(run))
                .map(|(run, _)| Arc::clone(run))
                .collect::<Vec<_>>();
            drop(state);
            index.remove(gone.iter().map(|run| &**run))
        });
        saved.map_err(|error| self.index_error(error))
    }

    fn flush(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        let index = self.index()?;
        while self.sweep(&index, &[], SWEPT_BY_FLUSH) > 0 {}
        let unsaved = self.state.lock().space.unsaved();
        for segment in unsaved {
            self.save(&segment).inspect_err(|_| self.seal_full())?;
        }
        let checkpoint = self.state.lock().space.checkpoint();
        self.files
            .sync_directory(&self.path)
            .map_err(|error| Error::io(format!("{}: saving it", self.path.display()), error))?;
        self.save_uses(&index, 1)?;
        let clock = self.state.lock().directory.tick();
        index
            .set_meta(Meta::Clock, clock)
            .and_then(|()| index.set_meta(Meta::Time, self.clock.now()))
            .and_then(|()| index.flush())
            .and_then(|()| index.set_meta(Meta::Checkpoint, u64::from(checkpoint)))
            .map_err(|error| self.index_error(error))?;
        index.sync()?;
        self.trim(&index);
        Ok(())
    }

    /// Evicts what is over the capacity: it may have been larger before, and the index grows on its own.
    fn trim(&self, index: &Index) {
        let index_bytes = index.bytes();
        loop {
            let over = {
                let mut state = self.state.lock();
                state.index_bytes = index_bytes;
                (state.space.used() + index_bytes).saturating_sub(self.capacity)
            };
            if over == 0 || self.evict(over) == 0 {
                return;
            }
        }
    }

    fn close(&self) -> Result<()> {
        self.check_owner()?;
        if self.read_only {
            self.state.lock().closed = true;
            drop(self.reading.lock().take());
            return Ok(());
        }
        if self.resources.lock().is_none() {
            return Ok(());
        }
        {
            let mut state = self.state.lock();
            state.closed = true;
            let deadline = Instant::now() + CLOSE_TIMEOUT;
            while !state.flights.is_empty() {
                if self.changed.wait_until(&mut state, deadline).timed_out() {
                    return Err(Error::Timeout {
                        what: "closing the disk tier: a put under way",
                        seconds: CLOSE_TIMEOUT.as_secs_f64(),
                    });
                }
            }
        }
        self.state.lock().space.retire();
        self.seal_full();
        let outcome = self.flush().and_then(|()| {
            if self.state.lock().space.any_failed() {
                // What of it arrived is for the next search to find out.
                return Ok(());
            }
            let index = self.index()?;
            index
                .set_meta(Meta::Clean, 1)
                .map_err(|error| self.index_error(error))?;
            index.sync()
        });
        drop(self.resources.lock().take());
        outcome
    }
}
