//! Prefetch: runs pulled from L3 into L2 before anyone asks, and held there until claimed, cancelled or timed out.
//!
//! A worker that runs a load needs nobody else to finish it, so a reader may wait for one.

mod arrival;
mod load;
mod ticket;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sync::{Condvar, Mutex};

use super::stats::PrefetchCounters;
use crate::config::{StopPolicy, StoreConfig};
use crate::key::{BlockKey, KeyMap};
use crate::run::RunHeader;
use crate::tier::memory::{MemoryRun, MemoryTier};
use crate::tier::{PinnedRun, ReadFailure};

use arrival::Arrival;
pub(super) use arrival::LoadingRun;
pub(super) use load::{End, Load, wanted};
use load::{Inner, Phase};
pub use ticket::{PrefetchProgress, PrefetchTicket};

/// How long plans wait for prefetches.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Patience {
    /// Where a ticket has no policy of its own.
    pub(in crate::store) policy: StopPolicy,
    base: Duration,
    per_token: Duration,
}

impl Patience {
    pub(in crate::store) fn of(config: &StoreConfig) -> Self {
        Self {
            policy: config.prefetch_policy,
            base: config.prefetch_wait,
            per_token: config.prefetch_wait_per_token,
        }
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
pub(in crate::store) struct Prefetcher {
    board: Mutex<Board>,
    changed: Condvar,
    /// The most bytes of L2 that may be held.
    limit: u64,
    timeout: Duration,
}

/// Where a run that a ticket wants was found.
pub(in crate::store) enum Source {
    Memory(MemoryRun),
    Disk(Arc<dyn PinnedRun>),
}

/// What became of an attempt to put a run on the board.
pub(in crate::store) enum Admitted {
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
    pub(in crate::store) fn new(limit: u64, timeout: Duration) -> Self {
        Self {
            board: Mutex::default(),
            changed: Condvar::new(),
            limit,
            timeout,
        }
    }

    /// The load that covers a block, for one more ticket.
    pub(in crate::store) fn join(&self, key: &BlockKey, stop: StopPolicy) -> Option<Arc<Load>> {
        let board = self.board.lock();
        let load = board.by_key.get(key)?;
        load.inner.lock().adopt(stop);
        Some(Arc::clone(load))
    }

    /// Puts a run on the board. `key` is the block of it that is wanted first.
    pub(in crate::store) fn admit(
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
        let span = disk.as_ref().and_then(|run| run.span());
        let load = Arc::new(Load {
            header,
            span,
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
    pub(in crate::store) fn await_loads(
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
    pub(in crate::store) fn attach(
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
    pub(in crate::store) fn claim<'a>(
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
    pub(in crate::store) fn is_queued(&self, load: &Load) -> bool {
        let _board = self.board.lock();
        load.inner.lock().phase == Phase::Queued
    }

    /// Begins a load; false if it was given up meanwhile. Its worker has a pin of its own from here on.
    pub(in crate::store) fn start(&self, load: &Load) -> bool {
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
    pub(in crate::store) fn arrived(
        &self,
        load: &Arc<Load>,
        run: MemoryRun,
        counters: &PrefetchCounters,
    ) {
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
    pub(in crate::store) fn failed(
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
    pub(in crate::store) fn cancel(
        &self,
        matches: impl Fn(&RunHeader) -> bool,
        counters: &PrefetchCounters,
    ) {
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
    pub(in crate::store) fn sweep(
        &self,
        now: Instant,
        counters: &PrefetchCounters,
    ) -> Option<Instant> {
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
    pub(in crate::store) fn bytes(&self) -> u64 {
        self.board.lock().bytes
    }

    /// Checks sums, phases and the limit.
    pub(in crate::store) fn validate(&self) -> Result<(), String> {
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
