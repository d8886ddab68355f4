//! `BlockStore`: block key to bytes, over L2 in host memory, L3 on disk and L4 on servers that machines share.
//!
//! It knows nothing of tokens or models. Runs go down by [`BlockStore::write_through`] (a copy for L3, at once),
//! [`BlockStore::share`] (the same for L4) and [`BlockStore::demote`] (what L1 gives up goes to L2; what L2 gives up goes to the
//! tiers below that lack it), and come up by
//! [`BlockStore::plan`] and [`BlockStore::read`], or ahead of time by [`BlockStore::prefetch`]. Other engines put single
//! opaque blocks.
//!
//! Threads: `io_workers` that read, two that write. No lock is held over I/O, a copy or a wait.

mod above;
mod core;
mod down;
mod inquiry;
mod moves;
mod opaque;
mod open;
mod payload_free;
mod plan;
mod prefetch;
mod read;
mod schedule;
mod sharing;
mod stats;
#[cfg(test)]
mod tests;
mod transfer;
mod up;
mod uses;
mod write;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Condvar, Mutex};

use crate::clock::Clock;
use crate::config::{StopPolicy, StoreConfig, WritePolicy};
use crate::cost::CostBook;
use crate::error::{Error, Result};
use crate::key::BlockKey;
use crate::memory::{WritableBuffer, lend};
use crate::run::{RunHeader, RunSource, Terms};
use crate::sim::capture::Recorder;
use crate::tier::disk::{DiskTier, RecoveryReport};
use crate::tier::{DurableTier, NamespaceUsage, Put, SharedTier};

pub use above::Above;
pub use inquiry::Inquiry;
pub(crate) use payload_free::{PayloadFree, Shape, Size};
pub use plan::{Lookup, Plan, Step};
pub use prefetch::{PrefetchProgress, PrefetchTicket};
pub use read::{ReadFailed, ReadOutcome, ReadRequest, ReadTicket, TierRead};
pub use stats::{PrefetchStats, Refusals, StoreStats, TierStats};

use self::core::Core;
use inquiry::Beyond;
use transfer::Steps;

/// How long dropping the last handle of a store waits for writes.
const DROP_LIMIT: Duration = Duration::from_secs(10);
/// Threads that write: while one waits for the disk, the other computes checksums.
const WRITERS: usize = 2;
/// The most I/O workers that make sense on one disk.
const MAX_WORKERS: usize = 64;

/// A stack of tiers below L1. Cheap to clone; clones are the same store, which closes when the last one is dropped.
#[derive(Clone)]
pub struct BlockStore {
    handle: Arc<Handle>,
}

/// What lies below L2.
#[derive(Default)]
struct Tiers {
    l3: Option<Arc<dyn DurableTier>>,
    /// The disk tier, if that is what L3 is, and what opening it found.
    disk: Option<(Arc<DiskTier>, RecoveryReport)>,
    l4: Option<Arc<dyn SharedTier>>,
}

struct Handle {
    core: Arc<Core>,
    /// The disk tier, if that is what L3 is, and what opening it found.
    disk: Option<(Arc<DiskTier>, RecoveryReport)>,
    owner: u32,
    closed: AtomicBool,
    threads: Mutex<Vec<JoinHandle<()>>>,
    running: Arc<Running>,
}

/// How many threads of a store run.
#[derive(Default)]
struct Running {
    threads: Mutex<usize>,
    ended: Condvar,
}

/// One of them.
struct Alive(Arc<Running>);

impl Running {
    fn start(self: &Arc<Self>) -> Alive {
        *self.threads.lock() += 1;
        Alive(Arc::clone(self))
    }

    /// Waits until none runs; false if `deadline` came first.
    fn wait_ended(&self, deadline: Instant) -> bool {
        let mut threads = self.threads.lock();
        while *threads > 0 {
            if self.ended.wait_until(&mut threads, deadline).timed_out() {
                return *threads == 0;
            }
        }
        true
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        *self.0.threads.lock() -= 1;
        self.0.ended.notify_all();
    }
}

impl BlockStore {
    /// A store over the given L3, or over L2 alone. `config.disk` is not looked at.
    ///
    /// # Errors
    /// [`Error::Config`] for settings that cannot be used, [`Error::Io`] if memory or threads cannot be had.
    pub fn with_l3(config: &StoreConfig, l3: Option<Arc<dyn DurableTier>>) -> Result<Self> {
        Self::with_tiers(config, l3, None)
    }

    /// As [`Self::with_l3`], over a tier that other machines share, too. `config.remote` is not looked at.
    ///
    /// # Errors
    /// As for [`Self::with_l3`].
    pub fn with_tiers(
        config: &StoreConfig,
        l3: Option<Arc<dyn DurableTier>>,
        l4: Option<Arc<dyn SharedTier>>,
    ) -> Result<Self> {
        let tiers = Tiers {
            l3,
            l4,
            ..Tiers::default()
        };
        Self::build(config, tiers, CostBook::in_memory(), WRITERS)
    }

    fn build(config: &StoreConfig, tiers: Tiers, costs: CostBook, writers: usize) -> Result<Self> {
        if config.io_workers == 0 || config.io_workers > MAX_WORKERS {
            return Err(Error::Config {
                name: "io_workers",
                value: config.io_workers.to_string(),
                remedy: format!("use 1 to {MAX_WORKERS}"),
            });
        }
        let mut core = Core::new(config, tiers.l3, tiers.l4, costs)?;
        if writers == 0 {
            core.writer = core.writer.map(write::Writer::at_once);
        }
        let core = Arc::new(core);
        let running = Arc::new(Running::default());
        let handle = Handle {
            core: Arc::clone(&core),
            disk: tiers.disk,
            owner: std::process::id(),
            closed: AtomicBool::new(false),
            threads: Mutex::default(),
            running,
        };
        // From here on an early return drops the handle, which ends the threads that did start.
        for index in 0..config.io_workers + writers {
            let writes = index >= config.io_workers;
            let name = if writes {
                format!("kvlab-write-{}", index - config.io_workers)
            } else {
                format!("kvlab-read-{index}")
            };
            let (core, alive) = (Arc::clone(&core), handle.running.start());
            let thread = thread::Builder::new().name(name).spawn(move || {
                if writes {
                    core.write();
                } else {
                    core.work();
                }
                drop(core);
                drop(alive);
            });
            let thread = thread.map_err(|error| Error::io("starting an I/O thread", error))?;
            handle.threads.lock().push(thread);
        }
        Ok(Self {
            handle: Arc::new(handle),
        })
    }

    /// The store's insides, if it may be used.
    fn core(&self) -> Result<&Arc<Core>> {
        self.handle.check_process()?;
        if self.handle.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        Ok(&self.handle.core)
    }

    /// Whether the store may be used, by this process and at all.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Forked`].
    pub fn check_usable(&self) -> Result<()> {
        self.core().map(|_| ())
    }

    /// Whether this process is the one that opened the store. Takes no lock, so that it is safe to ask in a forked child.
    ///
    /// # Errors
    /// [`Error::Forked`].
    pub fn check_process(&self) -> Result<()> {
        self.handle.check_process()
    }

    /// Where each of these blocks is on this machine; answered from memory, changes nothing.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Forked`].
    pub fn lookup(&self, keys: &[BlockKey]) -> Result<Vec<Lookup>> {
        let core = self.core()?;
        Ok(keys.iter().map(|key| core.lookup(key)).collect())
    }

    /// As [`BlockStore::lookup`]; what is nowhere on this machine is asked for in L4, for at most its time-out.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Forked`].
    pub fn locate(&self, keys: &[BlockKey]) -> Result<Vec<Lookup>> {
        Ok(self.core()?.locate(keys))
    }

    /// The leading consecutive blocks that can be read, pinned; L2 before L3. At the first block that neither has, L4 is asked
    /// once for all that are left, for at most its time-out. Counts as a use of their runs. Waits for
    /// prefetches as their [`StopPolicy`] says. After that, a run that a prefetch is reading into L2 just now is waited for when
    /// it is read; one that a prefetch has not begun is taken over.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Forked`].
    pub fn plan(&self, keys: &[BlockKey]) -> Result<Plan> {
        self.plan_fitting(keys, &|_| true)
    }

    /// As [`BlockStore::plan`]. Runs of L4 for which `fits` is false are misses, counted as corrupt: other machines wrote them, and
    /// reading one into a target of another shape would be an error.
    ///
    /// # Errors
    /// As for [`BlockStore::plan`].
    pub fn plan_fitting(
        &self,
        keys: &[BlockKey],
        fits: &dyn Fn(&RunHeader) -> bool,
    ) -> Result<Plan> {
        Ok(self.core()?.plan(keys, Beyond::Ask(fits)))
    }

    /// As [`BlockStore::plan`], of this machine's tiers alone: L4 is not asked.
    ///
    /// # Errors
    /// As for [`BlockStore::plan`].
    pub fn plan_here(&self, keys: &[BlockKey]) -> Result<Plan> {
        Ok(self.core()?.plan(keys, Beyond::Nothing))
    }

    /// Asks L4, for at most its time-out, for these blocks from the first one on that cannot be read from this machine's tiers; for
    /// a later [`BlockStore::plan_asked`], so that whoever plans need not wait. Counts as no use.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Forked`].
    pub fn inquire(&self, keys: &[BlockKey]) -> Result<Inquiry> {
        Ok(self.core()?.inquire(keys))
    }

    /// As [`BlockStore::plan_fitting`], with what L4 said before: it is not asked. What has left this machine since, and L4 was not asked
    /// for, is a miss.
    ///
    /// # Errors
    /// As for [`BlockStore::plan`].
    pub fn plan_asked(
        &self,
        keys: &[BlockKey],
        asked: &Inquiry,
        fits: &dyn Fn(&RunHeader) -> bool,
    ) -> Result<Plan> {
        Ok(self.core()?.plan(keys, Beyond::Asked(asked, fits)))
    }

    /// Reads runs into their targets on the I/O workers: slice 0 of all runs first, then slice 1, and so on, so that early
    /// layers arrive early. Small runs that lie near each other in L3 are read by one operation. Tickets take turns; what several
    /// of them want of L3 or L4 at the same time is read once. Prefetched runs among the steps are claimed.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a target that does not match its run, [`Error::Closed`], [`Error::Forked`].
    pub fn read(&self, requests: Vec<ReadRequest>) -> Result<ReadTicket> {
        self.core()?.submit(requests, Steps::Chain)
    }

    /// Takes a run that L1 gives up. It is copied into L2 before this returns; what L2 evicts for it goes to L3 if L3 lacks
    /// it, and to L4 if it was not seen there. Without L2, or if L2 refuses, the run itself is queued for them unless it is there
    /// ([`Put::Present`]); the source's lease is then held until it is written to L3, or copied for L4.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if header and source do not match, [`Error::Closed`], [`Error::Forked`].
    pub fn demote(&self, header: RunHeader, source: RunSource) -> Result<Put> {
        crate::tier::memory::check_source(&header, &source)?;
        let core = self.core()?;
        let put = core.take_in(header, source)?;
        if put == Put::Stored || put == Put::Queued {
            core.counters.demotions.add(1);
        }
        Ok(put)
    }

    /// Queues a run for L3 ([`Put::Queued`]). Refused if the queue is at its bound, or if the block before it is neither in
    /// L3 nor queued, so that a chain stops at its first refused run.
    ///
    /// # Errors
    /// As for [`BlockStore::demote`].
    pub fn write_through(&self, header: RunHeader, source: RunSource) -> Result<Put> {
        crate::tier::memory::check_source(&header, &source)?;
        Ok(self.core()?.queue_write(header, source))
    }

    /// Queues a run for L4 ([`Put::Queued`]), unless it waits there already ([`Put::Present`]). Its bytes are copied first, so that
    /// a slow server holds up nobody's memory. What L4 refuses, it counts.
    ///
    /// # Errors
    /// As for [`BlockStore::demote`]; [`Error::Io`] if memory cannot be had.
    pub fn share(&self, header: RunHeader, source: RunSource) -> Result<Put> {
        crate::tier::memory::check_source(&header, &source)?;
        let core = self.core()?;
        core.share(header, source, core.moves.born())
    }

    /// The parts of `keys` that L4 was not seen to have lately, in order; none without L4.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Forked`].
    pub fn unshared(&self, keys: &[BlockKey]) -> Result<Vec<Range<usize>>> {
        let Some(l4) = &self.core()?.l4 else {
            return Ok(Vec::new());
        };
        let known = keys.iter().map(|key| l4.knows(key)).collect::<Vec<_>>();
        let mut parts = Vec::new();
        let mut at = 0;
        for alike in known.chunk_by(|a, b| a == b) {
            if !alike[0] {
                parts.push(at..at + alike.len());
            }
            at += alike.len();
        }
        Ok(parts)
    }

    /// Starts pulling the leading blocks that can be found into L2, where they are held until a plan over them is read, the
    /// ticket is cancelled or `prefetch_timeout` is over. All work is done by the I/O workers; at most half of L2 is held.
    /// Best effort: without L2 or L3, or when L2 has no room, nothing or less is loaded.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Forked`].
    pub fn prefetch(&self, keys: &[BlockKey]) -> Result<PrefetchTicket> {
        let core = self.core()?;
        Ok(core.prefetch(keys, core.patience.policy))
    }

    /// As [`BlockStore::prefetch`], with a policy of its own for the plan that meets it before it is done. Where several
    /// tickets want a run, the most patient one holds.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Forked`].
    pub fn prefetch_with(&self, keys: &[BlockKey], stop: StopPolicy) -> Result<PrefetchTicket> {
        Ok(self.core()?.prefetch(keys, stop))
    }

    /// Whether [`BlockStore::plan`] may have to wait: for L4, or for a prefetch that was ordered with a policy that waits.
    pub fn plan_may_wait(&self) -> bool {
        let core = &self.handle.core;
        core.l4.is_some() || core.may_wait.load(Ordering::Acquire)
    }

    /// Ends the hold of prefetches on these blocks' runs, as reading a plan over them does.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Forked`].
    pub fn claim(&self, keys: &[BlockKey]) -> Result<()> {
        self.core()?.claim(keys);
        Ok(())
    }

    /// Drops from L2 what L1 has taken over: the runs of which `keys` are all that L2 has. Gives back how many.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Forked`].
    pub fn forget_l2(&self, keys: &[BlockKey]) -> Result<usize> {
        Ok(self.core()?.forget_l2(keys))
    }

    /// Empties L2: what L3 lacks is queued for it, waiting for room in the queue until `timeout` is over, and what L4 was not seen to
    /// have is queued for that, as far as there is room; pinned runs stay.
    /// Gives back how many runs left L2.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Forked`].
    pub fn evict_l2(&self, timeout: Duration) -> Result<usize> {
        Ok(self.core()?.evict_l2(Instant::now() + timeout))
    }

    /// Waits until every write accepted before the call is in L3, and has L3 make it durable; and until L4 has written or given up
    /// what it accepted.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Io`], [`Error::Closed`], [`Error::Forked`].
    pub fn flush(&self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        self.flush_l3(timeout)?;
        let left = deadline.saturating_duration_since(Instant::now());
        match &self.core()?.l4 {
            Some(l4) if !l4.flush(left) => Err(timed_out("writing to L4", timeout)),
            _ => Ok(()),
        }
    }

    /// [`BlockStore::flush`], of L3 alone.
    ///
    /// # Errors
    /// As for [`BlockStore::flush`].
    pub fn flush_l3(&self, timeout: Duration) -> Result<()> {
        match &self.core()?.writer {
            None => Ok(()),
            Some(writer) if writer.drain(Instant::now() + timeout) => writer.flush(),
            Some(_) => Err(timed_out("writing to L3", timeout)),
        }
    }

    /// Drops the runs of a namespace, or all, from every tier and from the write queue; they do not come back. Gives back how
    /// many runs went, each tier counted. L4 keeps what it has, which is not this machine's alone: only what waits for it goes. Evictions and prefetches that overlap it in time are dropped with them.
    ///
    /// # Errors
    /// [`Error::Io`] if L3 could not write it down, [`Error::Closed`], [`Error::Forked`].
    pub fn clear(&self, namespace: Option<&BlockKey>) -> Result<usize> {
        self.core()?.clear(namespace)
    }

    /// Drops the runs that hold any of these blocks, as [`BlockStore::clear`] does, and from L4 the blocks for everybody; gives back
    /// how many of the blocks were there.
    ///
    /// # Errors
    /// [`Error::Remote`] if L4 did not do it (this machine's tiers did), [`Error::Closed`], [`Error::Forked`].
    pub fn remove(&self, keys: &[BlockKey]) -> Result<usize> {
        self.core()?.remove(keys)
    }

    /// Whether a block can be read from this machine's tiers, or will be once it is written. L4 is not asked.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Forked`].
    pub fn contains(&self, key: &BlockKey) -> Result<bool> {
        Ok(self.core()?.lookup(key) != Lookup::Miss)
    }

    /// Stores one opaque block, for engines that bring their own keys: in L2 at once, in L3 and L4 by the write policy. Without
    /// `parent` it hangs from nothing; with one it is evicted before its parent, and L3 takes it only with its parent.
    /// [`Put::Stored`] says that it can be read now. A key that is there keeps its bytes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for no bytes or 4 GiB and more, [`Error::Closed`], [`Error::Forked`], [`Error::Io`].
    pub fn put_bytes(&self, key: BlockKey, parent: Option<BlockKey>, bytes: &[u8]) -> Result<Put> {
        self.put_bytes_with(key, parent, bytes, Terms::default())
    }

    /// As [`BlockStore::put_bytes`], on terms of its own: a time to live, a tenant, memory only.
    ///
    /// # Errors
    /// As [`BlockStore::put_bytes`].
    pub fn put_bytes_with(
        &self,
        key: BlockKey,
        parent: Option<BlockKey>,
        bytes: &[u8],
        terms: Terms,
    ) -> Result<Put> {
        opaque::put(self.core()?, key, parent, bytes, terms)
    }

    /// Sets how many bytes the records of a tenant may take in L3, for as long as the store is open; more than that evicts the
    /// tenant's own leaves. None for no limit. Nothing to do without L3.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for tenant 0, [`Error::ReadOnly`], [`Error::Closed`], [`Error::Forked`].
    pub fn set_quota(&self, tenant: u64, quota: Option<u64>) -> Result<()> {
        self.core()?;
        self.disk()
            .map_or(Ok(()), |disk| disk.set_quota(tenant, quota))
    }

    /// What records requests and orders of eviction.
    pub(crate) fn recorder(&self) -> Option<&Recorder> {
        self.handle.core.recorder.as_ref()
    }

    /// The clock by which runs expire.
    pub(crate) fn clock(&self) -> &Clock {
        &self.handle.core.clock
    }

    /// The bytes of an opaque block; none on a miss or damage. What came from L3 or L4 is in L2 afterwards, if there is room.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a block that is part of a model's run, [`Error::Closed`], [`Error::Forked`],
    /// [`Error::Io`] if memory cannot be had.
    pub fn get_bytes(&self, key: &BlockKey) -> Result<Option<Vec<u8>>> {
        let core = self.core()?;
        core.note_request(std::slice::from_ref(key));
        opaque::get(core, key)
    }

    /// [`BlockStore::get_bytes`] of many blocks at once, in the order of `keys`; each is a miss or damaged for itself. Blocks that
    /// lie near each other in L3, as those that were put one after the other do, are read by one operation.
    ///
    /// # Errors
    /// As [`BlockStore::get_bytes`]; nothing was read then.
    pub fn get_many(&self, keys: &[BlockKey]) -> Result<Vec<Option<Vec<u8>>>> {
        let core = self.core()?;
        core.note_request(keys);
        opaque::get_many(core, keys)
    }

    /// As [`BlockStore::get_many`], into memory of the caller's: each block into the head of the buffer at its place. Gives back
    /// the bytes of each block; none for a miss, and what its buffer holds then is unspecified. From L3 it is read straight into
    /// buffers whose address and length are multiples of what direct I/O wants (4,096 always does), else by way of working
    /// memory; L2 does not keep it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for more or fewer buffers than keys, one that is too short for its block, or a block that is
    /// part of a model's run; nothing was read then. [`Error::Closed`], [`Error::Forked`].
    pub fn get_into(
        &self,
        keys: &[BlockKey],
        buffers: &mut [WritableBuffer<'_>],
    ) -> Result<Vec<Option<usize>>> {
        let core = self.core()?;
        core.note_request(keys);
        lend(buffers, |regions| opaque::get_into(core, keys, regions))
    }

    /// What the store holds and has done. Answers after a close, too.
    ///
    /// # Errors
    /// [`Error::Forked`].
    pub fn stats(&self) -> Result<StoreStats> {
        self.handle.check_process()?;
        Ok(self.handle.core.stats())
    }

    /// How many of `keys`, from the first on, L3 has or will have once its queue is written.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Forked`].
    pub fn leading_in_l3(&self, keys: &[BlockKey]) -> Result<usize> {
        Ok(self.core()?.leading_in_l3(keys))
    }

    /// What reads and forwards were learnt to cost. Reads are noted here when their tickets are waited for; it is written down
    /// by [`CostBook::save`] and when the store closes.
    pub fn costs(&self) -> &CostBook {
        &self.handle.core.costs
    }

    /// How many of `keys`, which are a chain from its beginning, are to be written to L3 and L4 now that they were used. The uses
    /// of the first `counted` were counted before.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Forked`].
    pub fn due_below(&self, keys: &[BlockKey], counted: usize) -> Result<usize> {
        Ok(self.core()?.due_below(keys, counted))
    }

    /// Tells the store of a tier above it, whose chains may go on below: what L3 lacks of their beginnings is asked for there.
    pub fn set_above<A: Above + 'static>(&self, above: &Arc<A>) {
        let above: Arc<dyn Above> = Arc::clone(above) as _;
        self.handle.core.above.add(Arc::downgrade(&above));
    }

    /// With write-back, queues all that the tiers above hold and those below lack, waiting for room until `timeout` is over.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Forked`].
    pub fn write_back_above(&self, timeout: Duration) -> Result<()> {
        let core = self.core()?;
        if core.write_policy == WritePolicy::WriteBack {
            core.write_back_above(Instant::now() + timeout);
        }
        Ok(())
    }

    /// Whether L2, L3 and L4 exist.
    pub fn tiers(&self) -> (bool, bool, bool) {
        let core = &self.handle.core;
        (core.l2.is_some(), core.l3.is_some(), core.l4.is_some())
    }

    /// What L3 has of each namespace, by namespace. O(runs).
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Forked`].
    pub fn namespaces(&self) -> Result<Vec<NamespaceUsage>> {
        let l3 = self.core()?.l3.as_ref();
        Ok(l3.map_or_else(Vec::new, |l3| l3.namespaces()))
    }

    /// Checks every structure of the store.
    ///
    /// # Errors
    /// A description of the first thing that is wrong.
    pub fn validate(&self) -> Result<(), String> {
        self.handle.core.validate()
    }

    /// Stops the store: reads that have not begun are cancelled, accepted writes are finished (with write-back, what L2 and
    /// the caches above hold is written first), L3 and L4 are closed. Whatever is called afterwards gives [`Error::Closed`]; closing again waits for what
    /// an earlier close left behind.
    ///
    /// # Errors
    /// [`Error::Timeout`] if the time was over first: what was not written by then is dropped. [`Error::Io`],
    /// [`Error::Forked`].
    pub fn close(&self, timeout: Duration) -> Result<()> {
        self.handle.check_process()?;
        self.handle.close(timeout)
    }
}

fn timed_out(what: &'static str, timeout: Duration) -> Error {
    Error::Timeout {
        what,
        seconds: timeout.as_secs_f64(),
    }
}

impl fmt::Debug for BlockStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (l2, l3, l4) = self.tiers();
        write!(f, "BlockStore(l2: {l2}, l3: {l3}, l4: {l4})")
    }
}

impl Handle {
    fn check_process(&self) -> Result<()> {
        let child = std::process::id();
        if child == self.owner {
            return Ok(());
        }
        Err(Error::Forked {
            owner: self.owner,
            child,
        })
    }

    fn close(&self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let core = &self.core;
        if !self.closed.swap(true, Ordering::AcqRel) && core.write_policy == WritePolicy::WriteBack
        {
            core.write_back(deadline);
        }
        core.scheduler.stop();
        core.cancel_prefetches(|_| true);
        let drained = core.writer.as_ref().is_none_or(|writer| {
            let drained = writer.drain(deadline);
            writer.stop();
            drained
        });
        if !self.running.wait_ended(deadline) {
            return Err(timed_out("closing the store", timeout));
        }
        for thread in std::mem::take(&mut *self.threads.lock()) {
            // A thread's panic was contained where it could harm; there is nothing left to do about it here.
            let _ = thread.join();
        }
        // While the directory is still this process's.
        core.costs.save();
        if let Some(l3) = &core.l3 {
            l3.close()?;
        }
        if let Some(Recorder::Live(capture)) = &core.recorder {
            capture.finish()?;
        }
        // Last: whatever a server does, this machine's tiers are closed by now.
        let left = deadline.saturating_duration_since(Instant::now());
        let shared = core.l4.as_ref().is_none_or(|l4| l4.close(left));
        match (drained, shared) {
            (true, true) => Ok(()),
            (false, _) => Err(timed_out("writing to L3", timeout)),
            (true, false) => Err(timed_out("writing to L4", timeout)),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.check_process().is_err() {
            // The threads live in the parent, and so does the right to write to its files: leave both alone.
            std::mem::forget(Arc::clone(&self.core));
            std::mem::forget(self.disk.take());
            return;
        }
        if let Err(error) = self.close(DROP_LIMIT) {
            log::warn!("a store was dropped and did not close cleanly: {error}");
        }
    }
}
