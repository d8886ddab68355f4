//! Prefetch: runs pulled from L3 into L2 before anyone asks, and held there until claimed, cancelled or timed out.
//!
//! Each load is of one run and goes `Queued -> Running -> Held -> Claimed`; from every phase there is a way out. A worker
//! that runs a load needs nobody else to finish it, so a reader may wait for one.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sync::{Condvar, Mutex};

use super::plan::covered;
use super::stats::{Counter, PrefetchCounters};
use crate::config::{StopPolicy, StoreConfig};
use crate::key::{BlockKey, KeyMap};
use crate::run::{RunHeader, RunTarget};
use crate::tier::memory::{MemoryRun, MemoryTier};
use crate::tier::{PinnedRun, ReadFailure};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Queued,
    Running,
    Held,
    /// Over; the load is on the board no more.
    Over,
}

/// How a load ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Claimed,
    Stolen,
    Cancelled,
    TimedOut,
    Failed,
    Refused,
}

impl End {
    fn counter(self, counters: &PrefetchCounters) -> &Counter {
        match self {
            Self::Claimed => &counters.claimed,
            Self::Stolen => &counters.stolen,
            Self::Cancelled => &counters.cancelled,
            Self::TimedOut => &counters.timed_out,
            Self::Failed => &counters.failed,
            Self::Refused => &counters.refused,
        }
    }
}

#[derive(Debug)]
struct Inner {
    phase: Phase,
    loaded: bool,
    /// Tickets that want it.
    owners: usize,
    /// The most patient of their policies.
    stop: StopPolicy,
    /// The run in L3, while it has to be read.
    source: Option<Arc<dyn PinnedRun>>,
    /// The run in L2, while it is held.
    held: Option<Arc<MemoryRun>>,
    waiters: Vec<Arc<Arrival>>,
}

impl Inner {
    /// One more ticket.
    fn adopt(&mut self, stop: StopPolicy) {
        self.owners += 1;
        self.stop = self.stop.max(stop);
    }

    fn is_under_way(&self) -> bool {
        matches!(self.phase, Phase::Queued | Phase::Running)
    }
}

/// How long plans wait for prefetches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Where a ticket has no policy of its own.
    pub(super) policy: StopPolicy,
    base: Duration,
    per_token: Duration,
}

impl Patience {
    pub(super) fn of(config: &StoreConfig) -> Self {
        Self {
            policy: config.prefetch_policy,
            base: config.prefetch_wait,
            per_token: config.prefetch_wait_per_token,
        }
    }
}

/// One run on its way into L2. Its state changes only under the board's lock.
#[derive(Debug)]
pub(super) struct Load {
    header: RunHeader,
    /// The block of it that was asked for first.
    wanted: BlockKey,
    arena_bytes: u64,
    inner: Mutex<Inner>,
}

impl Load {
    pub(super) fn header(&self) -> &RunHeader {
        &self.header
    }

    pub(super) fn wanted(&self) -> &BlockKey {
        &self.wanted
    }
}

#[derive(Debug, Default)]
struct Board {
    by_key: KeyMap<Arc<Load>>,
    /// Bytes of L2 held or on their way.
    bytes: u64,
    /// When holds end, in order: the time they get is the same for all.
    deadlines: VecDeque<(Instant, Arc<Load>)>,
}

/// What must be dropped outside the lock: pins whose end may cost I/O or other locks.
type Released = (Option<Arc<dyn PinnedRun>>, Option<Arc<MemoryRun>>);

/// The prefetch side of a store with L2 and L3.
pub(super) struct Prefetcher {
    board: Mutex<Board>,
    changed: Condvar,
    /// The most bytes of L2 that may be held.
    limit: u64,
    timeout: Duration,
}

/// Where a run that a ticket wants was found.
pub(super) enum Source {
    Memory(MemoryRun),
    Disk(Arc<dyn PinnedRun>),
}

/// What became of an attempt to put a run on the board.
pub(super) enum Admitted {
    /// Somebody loads it already.
    Joined(Arc<Load>),
    /// In L2, now held.
    Held(Arc<Load>),
    /// To be given to a worker.
    Queued(Arc<Load>),
    /// Half of L2 is held already.
    Full,
}

impl Prefetcher {
    pub(super) fn new(limit: u64, timeout: Duration) -> Self {
        Self {
            board: Mutex::default(),
            changed: Condvar::new(),
            limit,
            timeout,
        }
    }

    /// The load that covers a block, for one more ticket.
    pub(super) fn join(&self, key: &BlockKey, stop: StopPolicy) -> Option<Arc<Load>> {
        let board = self.board.lock();
        let load = board.by_key.get(key)?;
        load.inner.lock().adopt(stop);
        Some(Arc::clone(load))
    }

    /// Puts a run on the board. `key` is the block of it that is wanted first.
    pub(super) fn admit(
        &self,
        key: &BlockKey,
        source: Source,
        stop: StopPolicy,
        counters: &PrefetchCounters,
    ) -> Admitted {
        let (header, phase) = match &source {
            Source::Memory(run) => (run.header().clone(), Phase::Held),
            Source::Disk(run) => (run.header().decoded(), Phase::Queued),
        };
        let (disk, memory) = match source {
            Source::Memory(run) => (None, Some(Arc::new(run))),
            Source::Disk(run) => (Some(run), None),
        };
        let arena_bytes = MemoryTier::arena_bytes(&header);
        let load = Arc::new(Load {
            header,
            wanted: *key,
            arena_bytes,
            inner: Mutex::new(Inner {
                phase,
                loaded: phase == Phase::Held,
                owners: 1,
                stop,
                source: disk,
                held: memory,
                waiters: Vec::new(),
            }),
        });
        let mut board = self.board.lock();
        if let Some(other) = board.by_key.get(key) {
            other.inner.lock().adopt(stop);
            let other = Arc::clone(other);
            drop(board);
            return Admitted::Joined(other);
        }
        if board.bytes + arena_bytes > self.limit {
            drop(board);
            return Admitted::Full;
        }
        board.bytes += arena_bytes;
        for key in &load.header.keys {
            board
                .by_key
                .entry(*key)
                .or_insert_with(|| Arc::clone(&load));
        }
        counters.issued.add(1);
        if phase == Phase::Queued {
            return Admitted::Queued(load);
        }
        counters.loaded.add(1);
        let deadline = Instant::now() + self.timeout;
        board.deadlines.push_back((deadline, Arc::clone(&load)));
        Admitted::Held(load)
    }

    /// Takes a load off the board.
    fn retire(
        &self,
        board: &mut Board,
        load: &Arc<Load>,
        end: End,
        counters: &PrefetchCounters,
    ) -> Released {
        let mut inner = load.inner.lock();
        if inner.phase == Phase::Over {
            return (None, None);
        }
        inner.phase = Phase::Over;
        board.bytes -= load.arena_bytes;
        for key in &load.header.keys {
            if board
                .by_key
                .get(key)
                .is_some_and(|other| Arc::ptr_eq(other, load))
            {
                board.by_key.remove(key);
            }
        }
        end.counter(counters).add(1);
        self.changed.notify_all();
        (inner.source.take(), inner.held.take())
    }

    /// For a plan, before it looks: waits for the loads of these blocks as their tickets' policies say.
    pub(super) fn await_loads(
        &self,
        keys: &[BlockKey],
        patience: &Patience,
        counters: &PrefetchCounters,
    ) {
        let mut board = self.board.lock();
        let mut loads: Vec<Arc<Load>> = Vec::new();
        let mut tokens = 0;
        for load in keys.iter().filter_map(|key| board.by_key.get(key)) {
            if loads.last().is_none_or(|last| !Arc::ptr_eq(last, load)) {
                let header = &load.header;
                tokens += header.keys.len() as u32 * header.block_tokens;
                loads.push(Arc::clone(load));
            }
        }
        let deadline = Instant::now() + patience.base + patience.per_token * tokens;
        let mut waited = false;
        loop {
            let late = Instant::now() >= deadline;
            let mut most = StopPolicy::BestEffort;
            for load in &loads {
                let inner = load.inner.lock();
                if inner.is_under_way() {
                    most = most.max(inner.stop);
                }
            }
            let expired = most == StopPolicy::Timeout && late;
            if most == StopPolicy::BestEffort || expired {
                counters.waits.add(u64::from(waited));
                counters.expired_waits.add(u64::from(expired));
                break;
            }
            waited = true;
            if most == StopPolicy::Timeout {
                self.changed.wait_until(&mut board, deadline);
            } else {
                self.changed.wait(&mut board);
            }
        }
        drop(board);
    }

    /// For a plan: the block's run if a worker is reading it just now. A load that has not begun is taken off the board.
    pub(super) fn attach(
        &self,
        key: &BlockKey,
        counters: &PrefetchCounters,
    ) -> Option<(LoadingRun, usize)> {
        let mut board = self.board.lock();
        let load = Arc::clone(board.by_key.get(key)?);
        let phase = load.inner.lock().phase;
        let released = match phase {
            Phase::Running => {
                let arrival = Arc::new(Arrival::default());
                load.inner.lock().waiters.push(Arc::clone(&arrival));
                let first = load.header.keys.iter().position(|stored| stored == key)?;
                return Some((LoadingRun { load, arrival }, first));
            }
            Phase::Queued => self.retire(&mut board, &load, End::Stolen, counters),
            Phase::Held | Phase::Over => (None, None),
        };
        drop(board);
        drop(released);
        None
    }

    /// Ends the holds on these blocks' runs: their reader has pinned them, or has its own copy.
    pub(super) fn claim<'a>(
        &self,
        keys: impl IntoIterator<Item = &'a BlockKey>,
        counters: &PrefetchCounters,
    ) {
        let mut board = self.board.lock();
        let mut released = Vec::new();
        for key in keys {
            if let Some(load) = board.by_key.get(key).cloned()
                && load.inner.lock().phase != Phase::Queued
            {
                released.push(self.retire(&mut board, &load, End::Claimed, counters));
            }
        }
        drop(board);
    }

    /// Whether a worker should make room for this load.
    pub(super) fn is_queued(&self, load: &Load) -> bool {
        let _board = self.board.lock();
        load.inner.lock().phase == Phase::Queued
    }

    /// Begins a load; false if it was given up meanwhile. Its worker has a pin of its own from here on.
    pub(super) fn start(&self, load: &Load) -> bool {
        let board = self.board.lock();
        let mut inner = load.inner.lock();
        if inner.phase != Phase::Queued {
            return false;
        }
        inner.phase = Phase::Running;
        let pin = inner.source.take();
        drop((inner, board));
        drop(pin);
        true
    }

    /// Ends a load's transfer: the run is held from now on, unless nobody wants it any more.
    pub(super) fn arrived(&self, load: &Arc<Load>, run: MemoryRun, counters: &PrefetchCounters) {
        let run = Arc::new(run);
        let mut board = self.board.lock();
        let mut inner = load.inner.lock();
        inner.loaded = true;
        for waiter in std::mem::take(&mut inner.waiters) {
            waiter.set(Ok(Arc::clone(&run)));
        }
        counters.loaded.add(1);
        if inner.phase == Phase::Running {
            inner.phase = Phase::Held;
            inner.held = Some(run);
            let deadline = Instant::now() + self.timeout;
            board.deadlines.push_back((deadline, Arc::clone(load)));
        }
        self.changed.notify_all();
    }

    /// Ends a load that brought nothing.
    pub(super) fn failed(
        &self,
        load: &Arc<Load>,
        end: End,
        failure: ReadFailure,
        counters: &PrefetchCounters,
    ) {
        let mut board = self.board.lock();
        for waiter in std::mem::take(&mut load.inner.lock().waiters) {
            waiter.set(Err(failure));
        }
        let released = self.retire(&mut board, load, end, counters);
        drop(board);
        drop(released);
    }

    /// One ticket less for each of these loads; the last one gives the load up.
    fn disown(&self, loads: &[Arc<Load>], counters: &PrefetchCounters) {
        let mut board = self.board.lock();
        let mut released = Vec::new();
        for load in loads {
            let mut inner = load.inner.lock();
            inner.owners = inner.owners.saturating_sub(1);
            let last = inner.owners == 0;
            drop(inner);
            if last {
                released.push(self.retire(&mut board, load, End::Cancelled, counters));
            }
        }
        drop(board);
    }

    /// Gives up all loads whose runs match.
    pub(super) fn cancel(&self, matches: impl Fn(&RunHeader) -> bool, counters: &PrefetchCounters) {
        let mut board = self.board.lock();
        let loads = board
            .by_key
            .values()
            .filter(|load| matches(&load.header))
            .cloned()
            .collect::<Vec<_>>();
        let released = loads
            .iter()
            .map(|load| self.retire(&mut board, load, End::Cancelled, counters))
            .collect::<Vec<_>>();
        drop(board);
        drop(released);
    }

    /// Ends the holds whose time is over; says when the next one's will be.
    pub(super) fn sweep(&self, now: Instant, counters: &PrefetchCounters) -> Option<Instant> {
        let mut board = self.board.lock();
        let mut released = Vec::new();
        let next = loop {
            let Some((deadline, load)) = board.deadlines.front().cloned() else {
                break None;
            };
            let over = load.inner.lock().phase == Phase::Over;
            if !over && deadline > now {
                break Some(deadline);
            }
            board.deadlines.pop_front();
            released.push(self.retire(&mut board, &load, End::TimedOut, counters));
        };
        drop(board);
        next
    }

    /// Bytes of L2 that are held or on their way.
    pub(super) fn bytes(&self) -> u64 {
        self.board.lock().bytes
    }

    /// Checks sums, phases and the limit.
    pub(super) fn validate(&self) -> Result<(), String> {
        let board = self.board.lock();
        let mut loads: Vec<&Arc<Load>> = Vec::new();
        for load in board.by_key.values() {
            if !loads.iter().any(|other| Arc::ptr_eq(other, load)) {
                loads.push(load);
            }
        }
        let bytes = loads.iter().map(|load| load.arena_bytes).sum::<u64>();
        if bytes != board.bytes || bytes > self.limit {
            return Err(format!(
                "prefetch holds {bytes} bytes, {} are counted, {} allowed",
                board.bytes, self.limit
            ));
        }
        for load in loads {
            let inner = load.inner.lock();
            let sound = match inner.phase {
                Phase::Queued => inner.source.is_some() && inner.held.is_none(),
                Phase::Running => inner.source.is_none() && inner.held.is_none(),
                Phase::Held => inner.source.is_none() && inner.held.is_some(),
                Phase::Over => false,
            };
            if !sound {
                return Err(format!("a load is in a state that cannot be: {inner:?}"));
            }
        }
        Ok(())
    }
}

/// Where a reader waits for a run that is being loaded.
#[derive(Debug, Default)]
struct Arrival {
    run: Mutex<Option<Result<Arc<MemoryRun>, ReadFailure>>>,
    set: Condvar,
}

impl Arrival {
    fn set(&self, run: Result<Arc<MemoryRun>, ReadFailure>) {
        *self.run.lock() = Some(run);
        self.set.notify_all();
    }

    fn wait(&self) -> Result<Arc<MemoryRun>, ReadFailure> {
        let mut run = self.run.lock();
        loop {
            match &*run {
                Some(run) => return run.clone(),
                None => self.set.wait(&mut run),
            }
        }
    }
}

/// A run that a prefetch is reading into L2 just now: reading it waits for that, and then copies.
#[derive(Debug)]
pub(super) struct LoadingRun {
    load: Arc<Load>,
    arrival: Arc<Arrival>,
}

impl PinnedRun for LoadingRun {
    fn header(&self) -> &RunHeader {
        &self.load.header
    }

    fn read_slices(&self, range: Range<usize>, target: &RunTarget) -> Result<(), ReadFailure> {
        self.arrival.wait()?.read_slices(range, target)
    }
}

/// How far a prefetch is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefetchProgress {
    /// Blocks that were found below L1 and fit into what prefetch may hold.
    pub wanted: usize,
    /// Of them: in L2 now, or read from there since.
    pub loaded: usize,
    /// Payload bytes of the runs that were loaded.
    pub bytes: u64,
}

/// A prefetch under way. Dropping it changes nothing: what it asked for is still loaded and held for its time.
pub struct PrefetchTicket {
    shared: Option<(Arc<Prefetcher>, Arc<super::stats::Counters>)>,
    /// With the wanted blocks of each.
    loads: Vec<(Arc<Load>, usize)>,
    disowned: Mutex<bool>,
}

impl PrefetchTicket {
    pub(super) fn new(
        shared: Option<(Arc<Prefetcher>, Arc<super::stats::Counters>)>,
        loads: Vec<(Arc<Load>, usize)>,
    ) -> Self {
        Self {
            shared,
            loads,
            disowned: Mutex::new(false),
        }
    }

    /// How far it is.
    pub fn progress(&self) -> PrefetchProgress {
        let mut progress = PrefetchProgress::default();
        for (load, blocks) in &self.loads {
            progress.wanted += blocks;
            if load.inner.lock().loaded {
                progress.loaded += blocks;
                progress.bytes += load.header.payload_bytes();
            }
        }
        progress
    }

    /// Waits until nothing of it is under way; false if the time was over first.
    pub fn wait(&self, timeout: Duration) -> bool {
        let Some((prefetcher, _)) = &self.shared else {
            return true;
        };
        let deadline = Instant::now() + timeout;
        let mut board = prefetcher.board.lock();
        loop {
            let mut loads = self.loads.iter();
            let busy = loads.any(|(load, _)| load.inner.lock().is_under_way());
            if !busy {
                return true;
            }
            if prefetcher
                .changed
                .wait_until(&mut board, deadline)
                .timed_out()
            {
                return false;
            }
        }
    }

    /// Gives it up: what has not begun is not loaded, what was loaded is held no more, unless another ticket wants it.
    pub fn cancel(&self) {
        let Some((prefetcher, counters)) = &self.shared else {
            return;
        };
        if std::mem::replace(&mut *self.disowned.lock(), true) {
            return;
        }
        let loads = self.loads.iter().map(|(load, _)| Arc::clone(load));
        prefetcher.disown(&loads.collect::<Vec<_>>(), &counters.prefetch);
    }
}

impl fmt::Debug for PrefetchTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrefetchTicket({:?})", self.progress())
    }
}

/// How many leading blocks of `keys` a load covers.
pub(super) fn wanted(load: &Load, keys: &[BlockKey]) -> usize {
    let first = keys
        .first()
        .and_then(|key| load.header.keys.iter().position(|stored| stored == key));
    first.map_or(0, |first| covered(&load.header, first, keys))
}
