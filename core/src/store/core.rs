//! What handles and threads of a store share, and what each of them does with it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::above::Uppers;
use super::moves::{Born, Moves};
use super::plan::{Lookup, Plan, Step, covered};
use super::prefetch::{Admitted, End, Load, Patience, PrefetchTicket, Prefetcher, Source, wanted};
use super::schedule::{Scheduler, Work};
use super::stats::{Counters, StoreStats};
use super::uses::Uses;
use super::write::Writer;
use crate::clock::Clock;
use crate::config::{StopPolicy, StoreConfig, WritePolicy};
use crate::cost::CostBook;
use crate::error::Result;
use crate::key::BlockKey;
use crate::run::{NEVER, RunHeader, RunSource, Terms};
use crate::sim::capture::{self, Capture};
use crate::tier::memory::{MemoryTier, Reservation, VictimRun};
use crate::tier::{DurableTier, PinnedRun, Put, ReadFailure, Refusal, Tier, TierId};

/// The most ancestors that go to L3 with a victim; longer chains are cut off by L3's refusal.
const MAX_ANCESTORS: usize = 4096;

pub(super) struct Core {
    pub(super) l2: Option<MemoryTier>,
    pub(super) l3: Option<Arc<dyn DurableTier>>,
    /// There if L3 is.
    pub(super) writer: Option<Writer>,
    /// There if both L2 and L3 are.
    prefetcher: Option<Arc<Prefetcher>>,
    pub(super) scheduler: Scheduler,
    pub(super) counters: Arc<Counters>,
    pub(super) moves: Moves,
    pub(super) write_policy: WritePolicy,
    pub(super) costs: Arc<CostBook>,
    /// What runs expire by, in every tier.
    pub(super) clock: Clock,
    /// There with `write_through_selective`.
    pub(super) uses: Option<Uses>,
    pub(super) above: Uppers,
    pub(super) patience: Patience,
    /// What records requests and orders of eviction.
    pub(super) capture: Option<Capture>,
    /// Whether a prefetch was ordered that plans wait for.
    pub(super) may_wait: AtomicBool,
}

impl Core {
    pub(super) fn new(
        config: &StoreConfig,
        l3: Option<Arc<dyn DurableTier>>,
        costs: CostBook,
    ) -> Result<Self> {
        let counters = Arc::new(Counters::default());
        let clock = l3.as_ref().map_or_else(Clock::default, |l3| l3.clock());
        let l2 = match config.l2_bytes {
            0 => None,
            bytes => Some(MemoryTier::with_clock(
                bytes,
                capture::policy(
                    config.capture.as_ref(),
                    TierId::L2,
                    0,
                    &config.policy,
                    bytes,
                )?,
                clock.clone(),
            )?),
        };
        let writer = l3
            .clone()
            .map(|l3| Writer::new(l3, config.write_queue_bytes, Arc::clone(&counters)));
        let prefetcher = match (&l2, &l3) {
            (Some(l2), Some(_)) => {
                let limit = l2.usage().capacity / 2;
                Some(Arc::new(Prefetcher::new(limit, config.prefetch_timeout)))
            }
            _ => None,
        };
        Ok(Self {
            l2,
            l3,
            writer,
            prefetcher,
            scheduler: Scheduler::new(config.io_workers),
            counters,
            moves: Moves::default(),
            write_policy: config.write_policy,
            costs: Arc::new(costs),
            clock,
            uses: (config.write_policy == WritePolicy::WriteThroughSelective)
                .then(|| Uses::new(config.selective_uses)),
            above: Uppers::default(),
            patience: Patience::of(config),
            capture: config.capture.clone(),
            may_wait: AtomicBool::new(false),
        })
    }

    /// A writer thread.
    pub(super) fn write(&self) {
        if let Some(writer) = &self.writer {
            writer.run();
        }
    }

    /// An I/O worker.
    pub(super) fn work(&self) {
        loop {
            let deadline = self
                .prefetcher
                .as_ref()
                .and_then(|board| board.sweep(Instant::now(), &self.counters.prefetch));
            match self.scheduler.next(deadline) {
                Work::Read(transfer, job) => transfer.run(&job, &self.counters),
                Work::Load(load) => {
                    self.run_load(&load);
                    self.scheduler.load_done();
                }
                Work::Wake => {}
                Work::Stop => return,
            }
        }
    }

    pub(super) fn lookup(&self, key: &BlockKey) -> Lookup {
        // Pending before the tiers: what leaves the queue meanwhile is found in L3 then.
        let pending = self
            .writer
            .as_ref()
            .is_some_and(|writer| writer.is_pending(key));
        if self.l2.as_ref().is_some_and(|l2| l2.contains(key)) {
            Lookup::Hit(TierId::L2)
        } else if self.l3.as_ref().is_some_and(|l3| l3.contains(key)) {
            Lookup::Hit(TierId::L3)
        } else if pending {
            Lookup::Pending
        } else {
            Lookup::Miss
        }
    }

    /// Whether L3 has a block, or will have it once its queue is written.
    pub(super) fn reaches_l3(&self, key: &BlockKey) -> bool {
        // Pending first: what leaves the queue meanwhile is found in L3 then.
        self.writer
            .as_ref()
            .is_some_and(|writer| writer.is_pending(key))
            || self.l3.as_ref().is_some_and(|l3| l3.contains(key))
    }

    /// How many leading blocks the write policy wants in L3 by now; counts a use of those from `counted` on.
    pub(super) fn due_for_l3(&self, keys: &[BlockKey], counted: usize) -> usize {
        if self.l3.is_none() || self.write_policy == WritePolicy::WriteBack {
            return 0;
        }
        let Some(uses) = &self.uses else {
            return keys.len();
        };
        for key in &keys[counted.min(keys.len())..] {
            uses.count(key);
        }
        let due = |key: &&BlockKey| uses.enough(key) || self.reaches_l3(key);
        keys.iter().take_while(due).count()
    }

    /// Counts a use of a block that was read from L2, and says whether `write_through_selective` wants it in L3 by now.
    pub(super) fn is_due_after_use(&self, key: &BlockKey) -> bool {
        self.uses.as_ref().is_some_and(|uses| uses.count(key))
    }

    pub(super) fn plan(&self, keys: &[BlockKey]) -> Plan {
        if self.may_wait.load(Ordering::Acquire)
            && let Some(board) = &self.prefetcher
        {
            board.await_loads(keys, &self.patience, &self.counters.prefetch);
        }
        let mut plan = Plan::default();
        let mut rest = keys;
        while let Some(key) = rest.first() {
            let Some((tier, run, first)) = self.find(key) else {
                break;
            };
            let blocks = covered(run.header(), first, rest);
            self.counters.tier(tier).hit_blocks.add(blocks as u64);
            rest = rest.get(blocks.max(1)..).unwrap_or_default();
            plan.steps.push(Step {
                tier,
                run,
                first,
                blocks,
            });
        }
        plan
    }

    fn find(&self, key: &BlockKey) -> Option<(TierId, Arc<dyn PinnedRun>, usize)> {
        let in_memory = || {
            let (run, first) = self.l2.as_ref()?.find(key)?;
            Some((TierId::L2, run, first))
        };
        in_memory()
            .or_else(|| {
                let board = self.prefetcher.as_ref()?;
                match board.attach(key, &self.counters.prefetch) {
                    Some((run, first)) => Some((TierId::L2, Arc::new(run) as _, first)),
                    // It may have arrived between the two looks.
                    None => in_memory(),
                }
            })
            .or_else(|| {
                let (run, first) = self.l3.as_ref()?.find(key)?;
                Some((TierId::L3, run, first))
            })
            // A prefetch may hold a run beyond its time.
            .filter(|(_, run, _)| !self.is_over(&run.header().terms))
    }

    pub(super) fn claim(&self, keys: &[BlockKey]) {
        if let Some(board) = &self.prefetcher {
            board.claim(keys, &self.counters.prefetch);
        }
    }

    pub(super) fn claim_steps<'a>(&self, steps: impl Iterator<Item = &'a Step>) {
        if let Some(board) = &self.prefetcher {
            let keys = steps
                .filter(|step| step.tier == TierId::L2)
                .filter_map(|step| step.run.header().keys.get(step.first));
            board.claim(keys, &self.counters.prefetch);
        }
    }

    /// Whether the time of a run is over.
    fn is_over(&self, terms: &Terms) -> bool {
        terms.expires() != NEVER && terms.expires() <= self.clock.now()
    }

    pub(super) fn queue_write(&self, mut header: RunHeader, source: RunSource) -> Put {
        header.terms = header.terms.stamped(self.clock.now());
        if self.is_over(&header.terms) {
            return self.counters.refusals.note(Put::Refused(Refusal::Expired));
        }
        if !header.terms.persist && self.l3.is_some() {
            let put = Put::Refused(Refusal::NotPersisted);
            return self.counters.refusals.note(put);
        }
        match &self.writer {
            Some(writer) => writer.enqueue(header, source),
            None => self
                .counters
                .refusals
                .note(Put::Refused(Refusal::Unavailable)),
        }
    }

    /// Into L2, or else into the queue for L3.
    pub(super) fn take_in(&self, mut header: RunHeader, source: RunSource) -> Result<Put> {
        crate::tier::memory::check_source(&header, &source)?;
        header.terms = header.terms.stamped(self.clock.now());
        if self.is_over(&header.terms) {
            let put = Put::Refused(Refusal::Expired);
            return Ok(self.counters.refusals.note(put));
        }
        let born = self.moves.born();
        match self.take_into_l2(&header, &source)? {
            Put::Refused(_) if self.writer.is_some() => {
                Ok(self.send_down(header, source, born, None))
            }
            Put::Refused(reason) if self.l2.is_none() => {
                Ok(self.counters.refusals.note(Put::Refused(reason)))
            }
            put => Ok(put),
        }
    }

    /// Copies a run into L2; what L2 evicts for it goes to L3 if L3 lacks it.
    pub(super) fn take_into_l2(&self, header: &RunHeader, source: &RunSource) -> Result<Put> {
        let Some(l2) = &self.l2 else {
            return Ok(Put::Refused(Refusal::Unavailable));
        };
        let (born, start) = (self.moves.born(), Instant::now());
        let mut demote = |victim| self.demote_victim(victim, born, None);
        let put = l2.put_evicting(header, source, &mut demote)?;
        if put == Put::Stored {
            self.counters
                .l2
                .wrote(header.payload_bytes(), start.elapsed());
        }
        Ok(self.counters.refusals.note(put))
    }

    /// Room in L2 for a run that a caller is about to fill.
    pub(super) fn reserve(
        &self,
        l2: &MemoryTier,
        header: &RunHeader,
    ) -> Result<Reservation, Refusal> {
        let born = self.moves.born();
        l2.reserve(header, &mut |victim| self.demote_victim(victim, born, None))
    }

    /// Sends a run that L2 evicted on to L3, if L3 lacks it.
    fn demote_victim(&self, victim: VictimRun, born: Born, room_by: Option<Instant>) {
        self.counters.l2.evictions.add(1);
        let header = victim.header().clone();
        let put = match &self.writer {
            Some(_) => self.send_down(header, victim.into_source(), born, room_by),
            None => Put::Refused(Refusal::Unavailable),
        };
        if matches!(put, Put::Refused(_)) {
            self.counters.dropped_victims.add(1);
        }
    }

    /// Queues a run for L3 that the tiers above give up. L3 takes no run without its parent, and leaves are given up first, so
    /// what is missing above the run goes along, root first; it stays where it is, in L2 or above.
    pub(super) fn send_down(
        &self,
        header: RunHeader,
        source: RunSource,
        born: Born,
        room_by: Option<Instant>,
    ) -> Put {
        if header.keys.iter().all(|key| self.reaches_l3(key)) {
            return Put::Present;
        }
        if self
            .uses
            .as_ref()
            .is_some_and(|uses| !header.keys.iter().all(|key| uses.enough(key)))
        {
            return self
                .counters
                .refusals
                .note(Put::Refused(Refusal::TooFewUses));
        }
        let mut runs = self.missing_before(&header);
        runs.push((header, source));
        self.queue_in_order(runs, born, room_by)
    }

    /// Queues the runs of one chain, up to the first refusal; gives back what became of the last.
    fn queue_in_order(
        &self,
        runs: Vec<(RunHeader, RunSource)>,
        born: Born,
        room_by: Option<Instant>,
    ) -> Put {
        let mut last = Put::Present;
        for (header, source) in runs {
            last = self.arrive(born, header, source, room_by);
            if matches!(last, Put::Refused(_)) {
                break;
            }
        }
        last
    }

    /// What L3 lacks of a run's chain before it, as far as L2 and what lies above hold it; the first run comes first.
    fn missing_before(&self, header: &RunHeader) -> Vec<(RunHeader, RunSource)> {
        let mut runs = Vec::new();
        let mut parent = header.parent;
        while parent != header.namespace && !self.reaches_l3(&parent) && runs.len() < MAX_ANCESTORS
        {
            // It may be on its way down from one place to the next: what was missed once is met at the second look.
            let found = self
                .ending_with(&parent)
                .or_else(|| self.ending_with(&parent));
            let Some((first, _)) = found.as_ref().and_then(|found| found.first()) else {
                break;
            };
            parent = first.parent;
            runs.extend(found.into_iter().flatten().rev());
        }
        runs.reverse();
        runs
    }

    /// The run that holds a block, or, from above, the runs up to it; wherever they are, but for L3.
    fn ending_with(&self, key: &BlockKey) -> Option<Vec<(RunHeader, RunSource)>> {
        let l2 = self.l2.as_ref();
        l2.and_then(|l2| l2.find_run(key))
            .map(|(run, _)| (run.header().clone(), run.source()))
            // Another thread evicted it a moment ago.
            .or_else(|| l2.and_then(|l2| l2.find_leaving(key)))
            .map(|run| vec![run])
            .or_else(|| self.above.lend(key, &|key| self.reaches_l3(key)))
    }

    fn arrive(
        &self,
        born: Born,
        header: RunHeader,
        source: RunSource,
        room_by: Option<Instant>,
    ) -> Put {
        let settle = |header, source| {
            self.moves.settle(born, |fresh| {
                if fresh {
                    self.queue_write(header, source)
                } else {
                    Put::Refused(Refusal::Unavailable)
                }
            })
        };
        let (Some(deadline), Some(writer)) = (room_by, &self.writer) else {
            return settle(header, source);
        };
        // Waiting for room comes first, nothing waits under the lock of the moves; others may be quicker then.
        while writer.wait_room(&header, deadline) {
            let put = settle(header.clone(), source.clone());
            if put != Put::Refused(Refusal::QueueFull) {
                return put;
            }
        }
        settle(header, source)
    }

    /// At the end, with write-back: sends down all that L3 lacks, what is pinned and what lies above included.
    pub(super) fn write_back(&self, deadline: Instant) {
        // L2 first, from its oldest run on: what is written last is given up last.
        self.evict_l2(deadline);
        let born = self.moves.born();
        let pinned = self.l2.as_ref().map_or_else(Vec::new, MemoryTier::runs);
        for (header, source) in pinned {
            self.send_down(header, source, born, Some(deadline));
        }
        self.write_back_above(deadline);
    }

    /// Sends down what lies above as far as L3 lacks it; it stays there, too.
    pub(super) fn write_back_above(&self, deadline: Instant) {
        let born = self.moves.born();
        for upper in self.above.all() {
            for end in upper.ends() {
                let runs = Arc::clone(&upper).lend(&end, &|key| self.reaches_l3(key));
                self.queue_in_order(runs, born, Some(deadline));
            }
        }
    }

    /// Empties L2 as far as it is not pinned.
    pub(super) fn evict_l2(&self, deadline: Instant) -> usize {
        let Some(l2) = &self.l2 else { return 0 };
        let mut evicted = 0;
        let born = self.moves.born();
        while let Some(victim) = l2.evict_one() {
            self.demote_victim(victim, born, Some(deadline));
            evicted += 1;
        }
        evicted
    }

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

    fn run_load(&self, load: &Arc<Load>) {
        let (Some(board), Some(l2)) = (&self.prefetcher, &self.l2) else {
            return;
        };
        let counters = &self.counters.prefetch;
        let born = self.moves.born();
        if !board.is_queued(load) {
            return;
        }
        // What was found when the load was ordered may have been removed since, and written anew.
        let found = self.l3.as_ref().and_then(|l3| l3.find(load.wanted()));
        // By keys and sizes: the terms of what comes out of a lossy codec differ.
        let same = |run: &dyn PinnedRun| {
            let (stored, load) = (run.header(), load.header());
            stored.keys == load.keys && stored.slices == load.slices
        };
        let Some((source, _)) = found.filter(|(run, _)| same(&**run)) else {
            board.failed(load, End::Cancelled, ReadFailure::Gone, counters);
            return;
        };
        let Ok(room) = self.reserve(l2, load.header()) else {
            board.failed(load, End::Refused, ReadFailure::Io, counters);
            return;
        };
        if !board.start(load) {
            return;
        }
        let start = Instant::now();
        let target = room.target();
        let slices = 0..load.header().slices.len();
        // A tier that panics must not leave readers of this load waiting for ever.
        let read = || source.read_slices(slices, &target);
        let result = catch_unwind(AssertUnwindSafe(read)).unwrap_or(Err(ReadFailure::Io));
        drop(target);
        match result {
            Ok(()) => {
                let bytes = load.header().payload_bytes();
                self.counters.l3.read(bytes, start.elapsed());
                board.arrived(load, self.commit(l2, room, born), counters);
            }
            Err(failure) => {
                self.counters.l3.failed(failure);
                let end = match failure {
                    ReadFailure::Gone => End::Cancelled,
                    _ => End::Failed,
                };
                board.failed(load, end, failure, counters);
            }
        }
    }

    /// Lists a run that was moved up from L3, unless a clear overlapped the move; readable either way.
    pub(super) fn commit(
        &self,
        l2: &MemoryTier,
        room: Reservation,
        born: Born,
    ) -> crate::tier::memory::MemoryRun {
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

    pub(super) fn clear(&self, namespace: Option<&BlockKey>) -> Result<usize> {
        let _clearing = self.moves.clearing();
        let matches =
            |header: &RunHeader| namespace.is_none_or(|wanted| *wanted == header.namespace);
        self.cancel_prefetches(matches);
        let in_memory = self.l2.as_ref().map_or(0, |l2| l2.clear(namespace));
        if let Some(writer) = &self.writer {
            writer.purge(matches);
        }
        let on_disk = match &self.l3 {
            Some(l3) => l3.clear(namespace)?,
            None => 0,
        };
        Ok(in_memory + on_disk)
    }

    pub(super) fn remove(&self, keys: &[BlockKey]) -> usize {
        let _clearing = self.moves.clearing();
        let found = keys
            .iter()
            .filter(|key| self.lookup(key) != Lookup::Miss)
            .count();
        let matches = |header: &RunHeader| header.keys.iter().any(|key| keys.contains(key));
        self.cancel_prefetches(matches);
        if let Some(l2) = &self.l2 {
            l2.remove(keys);
        }
        if let Some(writer) = &self.writer {
            writer.purge(matches);
        }
        if let Some(l3) = &self.l3 {
            l3.remove(keys);
        }
        found
    }

    pub(super) fn stats(&self) -> StoreStats {
        let mut stats = self.counters.picture();
        if let Some(l2) = &self.l2 {
            let usage = l2.usage();
            stats.l2.capacity = usage.capacity;
            stats.l2.used = usage.used;
            stats.l2.runs = usage.runs;
            stats.l2.blocks = usage.blocks;
        }
        if let Some(l3) = &self.l3 {
            let usage = l3.usage();
            stats.l3.capacity = usage.capacity;
            stats.l3.used = usage.used;
            stats.l3.runs = usage.runs;
            stats.l3.blocks = usage.blocks;
            stats.l3.evictions = usage.evictions;
        }
        if let Some(writer) = &self.writer {
            (stats.write_queue_bytes, stats.write_queue_runs) = writer.backlog();
        }
        if let Some(board) = &self.prefetcher {
            stats.prefetch.held_bytes = board.bytes();
        }
        stats
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        if let Some(l2) = &self.l2 {
            l2.validate().map_err(|error| format!("l2: {error}"))?;
        }
        if let Some(writer) = &self.writer {
            writer
                .validate()
                .map_err(|error| format!("write queue: {error}"))?;
        }
        if let Some(board) = &self.prefetcher {
            board.validate()?;
        }
        Ok(())
    }
}
