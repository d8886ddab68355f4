//! The way up ahead of time: prefetched runs from L3 into L2.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::core::Core;
use super::moves::Born;
use super::prefetch::{Admitted, End, Load, PrefetchTicket, Prefetcher, Source, wanted};
use crate::config::StopPolicy;
use crate::key::BlockKey;
use crate::run::{RunHeader, RunTarget};
use crate::tier::memory::{MemoryRun, MemoryTier, Reservation};
use crate::tier::{DurableTier, PinnedRun, ReadFailure};

/// A load that a worker has begun.
struct Begun {
    load: Arc<Load>,
    source: Arc<dyn PinnedRun>,
    target: RunTarget,
    room: Reservation,
}

impl Core {
    pub(super) fn prefetch(&self, keys: &[BlockKey], stop: StopPolicy) -> PrefetchTicket {
        let (Some(board), Some(l2), Some(l3)) = (&self.prefetcher, &self.l2, &self.l3) else {
            return PrefetchTicket::new(None, Vec::new());
        };
        if stop != StopPolicy::BestEffort {
            self.may_wait.store(true, Ordering::Release);
        }
        let (mut loads, mut queued) = (Vec::new(), Vec::new());
        let mut rest = keys;
        while let Some(key) = rest.first() {
            let Some((load, to_read)) = self.load_of(board, l2, l3.as_ref(), key, stop) else {
                break;
            };
            queued.extend(to_read.then(|| Arc::clone(&load)));
            let blocks = wanted(&load, rest);
            rest = rest.get(blocks.max(1)..).unwrap_or_default();
            loads.push((load, blocks));
        }
        if !self.scheduler.load(queued) {
            self.cancel_prefetches(|_| true);
        }
        PrefetchTicket::new(Some((Arc::clone(board), Arc::clone(&self.counters))), loads)
    }

    /// The load that brings or holds a block, and whether a worker has to be given it; none if the block is nowhere or too
    /// much is held already.
    fn load_of(
        &self,
        board: &Prefetcher,
        l2: &MemoryTier,
        l3: &dyn DurableTier,
        key: &BlockKey,
        stop: StopPolicy,
    ) -> Option<(Arc<Load>, bool)> {
        if let Some(load) = board.join(key, stop) {
            return Some((load, false));
        }
        let source = match l2.find_run(key) {
            Some((run, _)) => Source::Memory(run),
            None => Source::Disk(l3.find(key)?.0),
        };
        match board.admit(key, source, stop, &self.counters.prefetch) {
            Admitted::Joined(load) | Admitted::Held(load) => Some((load, false)),
            Admitted::Queued(load) => Some((load, true)),
            Admitted::Full => None,
        }
    }

    /// Reads loads that lie near each other on disk into L2.
    pub(super) fn run_loads(&self, loads: Vec<Arc<Load>>) {
        let born = self.moves.born();
        let begun = loads.into_iter().filter_map(|load| self.begin_load(load));
        let begun = begun.collect::<Vec<_>>();
        let start = Instant::now();
        let reads = begun.iter().map(|load| (&load.source, &load.target));
        let reads = reads.collect::<Vec<_>>();
        // A tier that panics must not leave readers of these loads waiting for ever.
        let read = || match &reads[..] {
            [] => Vec::new(),
            [(source, target)] => {
                vec![source.read_slices(0..source.header().slices.len(), target)]
            }
            [(first, _), ..] => first.read_together(&reads),
        };
        let results = catch_unwind(AssertUnwindSafe(read))
            .unwrap_or_else(|_| vec![Err(ReadFailure::Io); begun.len()]);
        // Time is counted once for what was read at once.
        let mut took = Some(start.elapsed());
        for (begun, result) in begun.into_iter().zip(results) {
            self.end_load(begun, result, born, &mut took);
        }
    }

    /// Makes room for a load; none if it was given up meanwhile or cannot be done.
    fn begin_load(&self, load: Arc<Load>) -> Option<Begun> {
        let (board, l2) = (self.prefetcher.as_ref()?, self.l2.as_ref()?);
        let counters = &self.counters.prefetch;
        if !board.is_queued(&load) {
            return None;
        }
        // What was found when the load was ordered may have been removed since, and written anew.
        let found = self.l3.as_ref().and_then(|l3| l3.find(load.wanted()));
        // By keys and sizes: the terms of what comes out of a lossy codec differ.
        let same = |run: &dyn PinnedRun| {
            let (stored, load) = (run.header(), load.header());
            stored.keys == load.keys && stored.slices == load.slices
        };
        let Some((source, _)) = found.filter(|(run, _)| same(&**run)) else {
            board.failed(&load, End::Cancelled, ReadFailure::Gone, counters);
            return None;
        };
        let Ok(room) = self.reserve(l2, load.header()) else {
            board.failed(&load, End::Refused, ReadFailure::Io, counters);
            return None;
        };
        let target = room.target();
        board.start(&load).then_some(Begun {
            load,
            source,
            target,
            room,
        })
    }

    fn end_load(
        &self,
        begun: Begun,
        result: Result<(), ReadFailure>,
        born: Born,
        took: &mut Option<Duration>,
    ) {
        let (Some(board), Some(l2)) = (&self.prefetcher, &self.l2) else {
            return;
        };
        let counters = &self.counters.prefetch;
        let Begun { load, room, .. } = begun;
        match result {
            Ok(()) => {
                let bytes = load.header().payload_bytes();
                let took = took.take().unwrap_or_default();
                self.counters.l3.read(bytes, took);
                board.arrived(&load, self.commit(l2, room, born), counters);
            }
            Err(failure) => {
                self.counters.l3.failed(failure);
                let end = match failure {
                    ReadFailure::Gone => End::Cancelled,
                    _ => End::Failed,
                };
                board.failed(&load, end, failure, counters);
            }
        }
    }

    /// Lists a run that was moved up from L3, unless a clear overlapped the move; readable either way.
    pub(super) fn commit(&self, l2: &MemoryTier, room: Reservation, born: Born) -> MemoryRun {
        self.moves.settle(born, |fresh| {
            if fresh {
                l2.commit(room).1
            } else {
                l2.detach(room)
            }
        })
    }

    pub(super) fn cancel_prefetches(&self, matches: impl Fn(&RunHeader) -> bool) {
        if let Some(board) = &self.prefetcher {
            board.cancel(matches, &self.counters.prefetch);
        }
    }
}
