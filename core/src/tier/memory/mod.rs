//! L2: runs in host memory, in one arena of 64 KiB pages.
//!
//! An entry is a list of pages, so records of any size share the arena. A directory maps block keys to (run, position) and
//! counts children, so that leaves go first; a run whose parent lives in another tier is welcome. Nothing is hashed or
//! verified here: memory is trusted, what comes from a disk was verified on its way in.
//!
//! Locks: the directory's (microseconds, never over a copy, a wait or a callback) and, inside it or alone, the free list's.

mod arena;
mod copy;
mod directory;
mod replica;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sync::Mutex;

use super::{PinnedRun, Put, ReadFailure, Refusal, Tier, TierId};
use crate::clock::Clock;
use crate::error::Result;
use crate::key::BlockKey;
use crate::policy::{self, EvictionPolicy, Slot};
use crate::run::{RunHeader, RunSource, RunTarget};
use crate::sim::capture::{L2Event, Tap};

pub use arena::ARENA_PAGE;
use arena::{Arena, Record};
pub(crate) use copy::{check_source, check_target, copy_pieces};
use directory::Directory;
pub(crate) use replica::Replica;

/// How long a run waits for the pages of victims that are being written to L3 before it is refused.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);

#[derive(Debug)]
struct Shared {
    arena: Arc<Arena>,
    directory: Mutex<Directory>,
    drain_limit: Duration,
    /// Where what is asked is written down, while it is captured.
    tap: Option<Tap>,
}

impl Shared {
    fn note(&self, event: impl FnOnce(&Tap) -> L2Event) {
        if let Some(tap) = &self.tap {
            tap.l2(event(tap));
        }
    }

    /// Notes what a directory is asked that may have runs whose time is over; the time by which it is to answer.
    fn note_timed(&self, directory: &Directory, event: impl FnOnce(&Tap) -> L2Event) -> u64 {
        let now = directory.time();
        if let Some(tap) = &self.tap
            && now > 0
        {
            tap.time(now);
        }
        self.note(event);
        now
    }
}

/// The tier in host memory. Cheap to clone; clones are the same tier.
#[derive(Clone, Debug)]
pub struct MemoryTier {
    shared: Arc<Shared>,
}

/// How much of a [`MemoryTier`] is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    /// Bytes of the arena.
    pub capacity: u64,
    /// Bytes of pages that are not free: listed runs, reservations, and runs that are gone but still read or written out.
    pub used: u64,
    /// Payload bytes of listed runs.
    pub payload: u64,
    /// Listed runs.
    pub runs: usize,
    /// Listed blocks.
    pub blocks: usize,
}

/// A run in L2, pinned while this handle lives.
pub struct MemoryRun {
    shared: Arc<Shared>,
    record: Arc<Record>,
    /// None for a run that was never listed, because all its blocks were there already.
    slot: Option<Slot>,
}

/// A run that was evicted: no longer listed, its payload still in the arena until this is dropped.
#[derive(Debug)]
pub struct VictimRun {
    record: Arc<Record>,
}

/// Room for a run that is being filled; not visible before [`MemoryTier::commit`], given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    record: Arc<Record>,
}

impl MemoryTier {
    /// A tier of `bytes`, rounded down to whole pages of [`ARENA_PAGE`]; memory is committed as it is first touched.
    ///
    /// # Errors
    /// [`crate::Error::Config`] for less than one page or an unknown policy, [`crate::Error::Io`] if the system has no memory.
    pub fn new(bytes: u64, policy: &str) -> Result<Self> {
        Self::with_clock(bytes, policy::by_name(policy, bytes)?, Clock::default())
    }

    /// The same, with a policy for as many bytes, and runs that expire by a given clock.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_clock(bytes: u64, policy: Box<dyn EvictionPolicy>, clock: Clock) -> Result<Self> {
        Self::captured(bytes, policy, clock, None)
    }

    /// The same; what it is asked is written down.
    pub(crate) fn captured(
        bytes: u64,
        policy: Box<dyn EvictionPolicy>,
        clock: Clock,
        tap: Option<Tap>,
    ) -> Result<Self> {
        Self::with_limits(bytes, policy, DRAIN_LIMIT, clock, tap)
    }

    fn with_limits(
        bytes: u64,
        policy: Box<dyn EvictionPolicy>,
        drain_limit: Duration,
        clock: Clock,
        tap: Option<Tap>,
    ) -> Result<Self> {
        let arena = Arena::new(bytes, tap.clone())?;
        Ok(Self::over(arena, policy, drain_limit, clock, tap))
    }

    /// A tier of so many pages that has no memory: all is as in any other, but that nothing is copied. Sources for it have no
    /// pieces, as those of its runs have none. Pages of victims must be free when the callback that gets them returns.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if the system has no memory at all.
    pub(crate) fn payload_free(
        pages: u32,
        policy: Box<dyn EvictionPolicy>,
        clock: Clock,
    ) -> Result<Self> {
        let arena = Arena::payload_free(pages)?;
        Ok(Self::over(arena, policy, Duration::ZERO, clock, None))
    }

    fn over(
        arena: Arena,
        policy: Box<dyn EvictionPolicy>,
        drain_limit: Duration,
        clock: Clock,
        tap: Option<Tap>,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                arena: Arc::new(arena),
                directory: Mutex::new(Directory::new(policy, clock)),
                drain_limit,
                tap,
            }),
        }
    }

    /// Tells the policy that a request comes, and takes out what it says the time of is over; their headers. For the simulator.
    pub(crate) fn request(&self, now_ms: u64, category: u32) -> Vec<RunHeader> {
        let gone = self.shared.directory.lock().request(now_ms, category);
        let headers = gone.iter().map(|record| record.header().clone());
        headers.collect()
    }

    /// Stores a run like [`Tier::put`] and hands out what had to go.
    ///
    /// Victims come leaves first. Each was unlinked before `on_victim` sees it, so its key is not found here meanwhile; its
    /// pages are free again only when the [`VictimRun`], or the source made of it, is dropped. The new run waits for that
    /// for a limited time, then it is refused. The callback runs without any lock, before the new run is copied.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if the header does not validate or the source does not match it.
    pub fn put_evicting(
        &self,
        header: &RunHeader,
        source: &RunSource,
        on_victim: &mut dyn FnMut(VictimRun),
    ) -> Result<Put> {
        let has_payload = self.shared.arena.has_payload();
        if has_payload {
            check_source(header, source)?;
        }
        {
            let mut directory = self.shared.directory.lock();
            let now = self.shared.note_timed(&directory, |tap| L2Event::Offer {
                keys: tap.keys(&header.keys),
            });
            directory.drop_expired(&header.keys, now);
            if directory.renew_if_all_present(&header.keys, now) {
                return Ok(Put::Present);
            }
        }
        let record = match self.allocate(header, on_victim) {
            Ok(record) => record,
            Err(refusal) => return Ok(Put::Refused(refusal)),
        };
        let slices = source.slices.iter().filter(|_| has_payload);
        for (index, pieces) in slices.enumerate() {
            let to = record.pieces(index);
            copy_pieces(&source.region, pieces, record.region(), &to);
        }
        let (put, _) = self.commit(Reservation {
            record: Arc::new(record),
        });
        Ok(put)
    }

    /// Makes room for a run that something else fills, through [`Reservation::target`]; victims as in
    /// [`MemoryTier::put_evicting`].
    ///
    /// # Errors
    /// [`Refusal::TooLarge`] or [`Refusal::NothingToEvict`].
    pub fn reserve(
        &self,
        header: &RunHeader,
        on_victim: &mut dyn FnMut(VictimRun),
    ) -> Result<Reservation, Refusal> {
        self.allocate(header, on_victim).map(|record| Reservation {
            record: Arc::new(record),
        })
    }

    /// Lists a filled reservation. The run comes back pinned; it can be read even if, all its blocks being there already
    /// ([`Put::Present`]), it was not listed.
    pub fn commit(&self, reservation: Reservation) -> (Put, MemoryRun) {
        let record = reservation.record;
        let slot = {
            let mut directory = self.shared.directory.lock();
            let now = self.shared.note_timed(&directory, |_| L2Event::List {
                run: record.number(),
            });
            directory.drop_expired(&record.header().keys, now);
            directory.insert(&record)
        };
        let put = slot.map_or(Put::Present, |_| Put::Stored);
        (put, self.run(record, slot))
    }

    /// A filled reservation that shall not be listed after all, as a run that can be read.
    pub fn detach(&self, reservation: Reservation) -> MemoryRun {
        self.run(reservation.record, None)
    }

    fn run(&self, record: Arc<Record>, slot: Option<Slot>) -> MemoryRun {
        MemoryRun {
            shared: Arc::clone(&self.shared),
            record,
            slot,
        }
    }

    /// Bytes of the arena that a run takes.
    pub fn arena_bytes(header: &RunHeader) -> u64 {
        (arena::pages_of(header) * ARENA_PAGE) as u64
    }

    fn allocate(
        &self,
        header: &RunHeader,
        on_victim: &mut dyn FnMut(VictimRun),
    ) -> Result<Record, Refusal> {
        let arena = &self.shared.arena;
        let wanted = arena::pages_of(header);
        if wanted > arena.pages() {
            return Err(Refusal::TooLarge);
        }
        let deadline = Instant::now() + self.shared.drain_limit;
        loop {
            if let Some(record) = arena.take(header) {
                return Ok(record);
            }
            for record in self.evict_for(wanted)? {
                on_victim(VictimRun { record });
            }
            arena.wait_free(wanted, deadline);
            if Instant::now() >= deadline {
                return arena.take(header).ok_or(Refusal::NothingToEvict);
            }
        }
    }

    /// Unlinks leaves until `pages` are free or on their way; nothing if even all unpinned runs would not do.
    fn evict_for(&self, pages: usize) -> Result<Vec<Arc<Record>>, Refusal> {
        let mut directory = self.shared.directory.lock();
        let (free, draining) = self.shared.arena.available_for(pages);
        let mut coming = free + draining;
        if coming + directory.listed().unpinned_pages < pages {
            return Err(Refusal::NothingToEvict);
        }
        let mut victims = Vec::new();
        while coming < pages {
            match directory.evict() {
                Some(record) => {
                    coming += record.pages();
                    victims.push(record);
                }
                None if victims.is_empty() => return Err(Refusal::NothingToEvict),
                None => break,
            }
        }
        Ok(victims)
    }

    /// Evicts the leaf that goes next; none if nothing can go.
    pub fn evict_one(&self) -> Option<VictimRun> {
        let mut directory = self.shared.directory.lock();
        self.shared.note(|_| L2Event::EvictOne {});
        let record = directory.evict()?;
        Some(VictimRun { record })
    }

    /// [`Tier::find`] with the concrete type.
    pub fn find_run(&self, key: &BlockKey) -> Option<(MemoryRun, usize)> {
        let mut directory = self.shared.directory.lock();
        let (slot, record, position) = directory.pin(key)?;
        self.shared.note(|tap| L2Event::Find { key: tap.key(key) });
        drop(directory);
        Some((self.run(record, Some(slot)), position))
    }

    /// Every listed run, pinned or not, with its payload.
    pub fn runs(&self) -> Vec<(RunHeader, RunSource)> {
        let directory = self.shared.directory.lock();
        let records = directory.records();
        let runs = records.map(|record| (record.header().clone(), record.source()));
        runs.collect()
    }

    /// An evicted run that is on its way to another tier, by one of its blocks.
    pub fn find_leaving(&self, key: &BlockKey) -> Option<(RunHeader, RunSource)> {
        let record = self.shared.directory.lock().leaving(key)?;
        Some((record.header().clone(), record.source()))
    }

    /// Drops the runs of which `keys` are all that is listed: what another tier has taken over whole. Gives back how many.
    pub fn remove_covered(&self, keys: &[BlockKey]) -> usize {
        let mut directory = self.shared.directory.lock();
        self.shared.note(|tap| L2Event::RemoveCovered {
            keys: tap.keys(keys),
        });
        directory.remove_covered(keys).len()
    }

    /// Drops the runs of a namespace, or all; gives back how many.
    pub fn clear(&self, namespace: Option<&BlockKey>) -> usize {
        let mut directory = self.shared.directory.lock();
        self.shared.note(|tap| L2Event::Clear {
            namespace: namespace.map(|namespace| tap.key(namespace)),
        });
        directory.clear(namespace).len()
    }

    /// What is in use.
    pub fn usage(&self) -> MemoryUsage {
        let listed = self.shared.directory.lock().listed();
        let arena = &self.shared.arena;
        let page = ARENA_PAGE as u64;
        MemoryUsage {
            capacity: arena.pages() as u64 * page,
            used: (arena.pages() - arena.available().0) as u64 * page,
            payload: listed.payload_bytes,
            runs: listed.runs,
            blocks: listed.blocks,
        }
    }

    /// Checks rows, runs, child counts, candidates and pages.
    ///
    /// # Errors
    /// A description of the first thing that is wrong.
    pub fn validate(&self) -> Result<(), String> {
        let directory = self.shared.directory.lock();
        directory.validate()?;
        self.shared
            .arena
            .validate(directory.records().map(AsRef::as_ref))
    }
}

impl Tier for MemoryTier {
    fn id(&self) -> TierId {
        TierId::L2
    }

    fn contains(&self, key: &BlockKey) -> bool {
        self.shared.directory.lock().contains(key)
    }

    fn find(&self, key: &BlockKey) -> Option<(Arc<dyn PinnedRun>, usize)> {
        let (run, position) = self.find_run(key)?;
        Some((Arc::new(run), position))
    }

    /// Copies the run in; victims are dropped.
    fn put(&self, header: &RunHeader, source: &RunSource) -> Result<Put> {
        self.put_evicting(header, source, &mut drop)
    }

    fn remove(&self, keys: &[BlockKey]) -> usize {
        let mut directory = self.shared.directory.lock();
        self.shared.note(|tap| L2Event::Remove {
            keys: tap.keys(keys),
        });
        directory.remove(keys).len()
    }
}

impl MemoryRun {
    /// The payload as a source, without a copy; holds the memory, not the pin.
    pub fn source(&self) -> RunSource {
        self.record.source()
    }
}

impl PinnedRun for MemoryRun {
    fn header(&self) -> &RunHeader {
        self.record.header()
    }

    fn read_slices(&self, range: Range<usize>, target: &RunTarget) -> Result<(), ReadFailure> {
        for index in range {
            let from = self.record.pieces(index);
            copy_pieces(
                self.record.region(),
                &from,
                &target.region,
                &target.slices[index],
            );
        }
        Ok(())
    }
}

impl fmt::Debug for MemoryRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MemoryRun").field(&self.record).finish()
    }
}

impl Drop for MemoryRun {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            let mut directory = self.shared.directory.lock();
            let run = self.record.number();
            self.shared.note(|_| L2Event::Unpin { run });
            directory.unpin(slot, &self.record);
        }
    }
}

impl VictimRun {
    /// What it holds.
    pub fn header(&self) -> &RunHeader {
        self.record.header()
    }

    /// The payload as a source, without a copy; the pages are free again when the source is dropped.
    pub fn into_source(self) -> RunSource {
        self.record.source()
    }
}

impl Reservation {
    /// What will be stored.
    pub fn header(&self) -> &RunHeader {
        self.record.header()
    }

    /// The memory to fill; every slice starts on a 4 KiB border. Holds the memory, so that it may outlive the reservation.
    pub fn target(&self) -> RunTarget {
        RunTarget {
            region: Arc::clone(self.record.region()),
            lease: Some(Arc::clone(&self.record) as _),
            slices: self.record.all_pieces(),
        }
    }
}
