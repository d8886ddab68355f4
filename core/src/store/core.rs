//! What handles and threads of a store share, and what each of them does with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::above::Uppers;
use super::inquiry::{Beyond, Fits, Inquiry};
use super::moves::Moves;
use super::plan::{Lookup, Plan, Step, covered};
use super::prefetch::{Patience, Prefetcher};
use super::schedule::{Scheduler, Work};
use super::sharing::Sharing;
use super::stats::{Counters, StoreStats};
use super::uses::Uses;
use super::write::Writer;
use crate::clock::Clock;
use crate::config::{StoreConfig, WritePolicy};
use crate::cost::CostBook;
use crate::error::Result;
use crate::key::BlockKey;
use crate::run::{NEVER, RunHeader, Terms};
use crate::sim::capture::{self, Recorder};
use crate::tier::memory::MemoryTier;
use crate::tier::{DurableTier, PinnedRun, ReadFailure, SharedTier, Tier, TierId};

/// A run that holds a block, with the block's position in it.
type Found = (TierId, Arc<dyn PinnedRun>, usize);

pub(super) struct Core {
    pub(super) l2: Option<MemoryTier>,
    pub(super) l3: Option<Arc<dyn DurableTier>>,
    pub(super) l4: Option<Arc<dyn SharedTier>>,
    /// There if L3 is.
    pub(super) writer: Option<Writer>,
    /// There if both L2 and L3 are.
    pub(super) prefetcher: Option<Arc<Prefetcher>>,
    pub(super) scheduler: Scheduler,
    pub(super) sharing: Arc<Sharing>,
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
    pub(super) recorder: Option<Recorder>,
    /// Whether a prefetch was ordered that plans wait for.
    pub(super) may_wait: AtomicBool,
}

impl Core {
    pub(super) fn new(
        config: &StoreConfig,
        l3: Option<Arc<dyn DurableTier>>,
        l4: Option<Arc<dyn SharedTier>>,
        costs: CostBook,
    ) -> Result<Self> {
        let clock = l3.as_ref().map_or_else(Clock::default, |l3| l3.clock());
        let recorder = config.capture.clone().map(Recorder::Live);
        let l2 = match config.l2_bytes {
            0 => None,
            bytes => {
                let (policy, tap) =
                    capture::policy(recorder.as_ref(), TierId::L2, 0, &config.policy, bytes, 0)?;
                Some(MemoryTier::captured(bytes, policy, clock.clone(), tap)?)
            }
        };
        let core = Self::over(config, l2, l3, costs, clock);
        Ok(Self {
            l4,
            recorder,
            ..core
        })
    }

    /// A core of these tiers, without an L4, of which the configuration says nothing more.
    pub(super) fn over(
        config: &StoreConfig,
        l2: Option<MemoryTier>,
        l3: Option<Arc<dyn DurableTier>>,
        costs: CostBook,
        clock: Clock,
    ) -> Self {
        let counters = Arc::new(Counters::default());
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
        Self {
            l2,
            l3,
            l4: None,
            writer,
            prefetcher,
            scheduler: Scheduler::new(config.io_workers),
            sharing: Arc::default(),
            counters,
            moves: Moves::default(),
            write_policy: config.write_policy,
            costs: Arc::new(costs),
            clock,
            uses: (config.write_policy == WritePolicy::WriteThroughSelective)
                .then(|| Uses::new(config.selective_uses)),
            above: Uppers::default(),
            patience: Patience::of(config),
            recorder: None,
            may_wait: AtomicBool::new(false),
        }
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
                Work::Read(transfer, job) => transfer.run(job, &self.counters, &self.sharing),
                Work::Load(loads) => {
                    self.run_loads(loads);
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

    /// As [`Self::lookup`] of each; what is nowhere here is asked for in L4.
    pub(super) fn locate(&self, keys: &[BlockKey]) -> Vec<Lookup> {
        let mut found = keys.iter().map(|key| self.lookup(key)).collect::<Vec<_>>();
        let places = (0..keys.len()).filter(|place| found[*place] == Lookup::Miss);
        let places = places.collect::<Vec<_>>();
        if !places.is_empty() {
            let wanted = places.iter().map(|place| keys[*place]).collect::<Vec<_>>();
            let asked = self.ask(&wanted);
            for place in places {
                let answer = asked.get(&keys[place]);
                if answer.is_some_and(|(run, _)| !self.is_over(&run.header().terms)) {
                    found[place] = Lookup::Hit(TierId::L4);
                }
            }
        }
        found
    }

    /// Whether L3 has a block, or will have it once its queue is written.
    pub(super) fn reaches_l3(&self, key: &BlockKey) -> bool {
        // Pending first: what leaves the queue meanwhile is found in L3 then.
        self.writer
            .as_ref()
            .is_some_and(|writer| writer.is_pending(key))
            || self.l3.as_ref().is_some_and(|l3| l3.contains(key))
    }

    /// How many of `keys`, from the first on, L3 has or will have once its queue is written.
    pub(super) fn leading_in_l3(&self, keys: &[BlockKey]) -> usize {
        keys.iter().take_while(|key| self.reaches_l3(key)).count()
    }

    /// Drops from L2 what L1 has taken over: the runs of which `keys` are all that L2 has; how many.
    pub(super) fn forget_l2(&self, keys: &[BlockKey]) -> usize {
        self.claim(keys);
        self.l2.as_ref().map_or(0, |l2| l2.remove_covered(keys))
    }

    /// Opaque blocks are asked for: a request, of blocks of a token each.
    pub(super) fn note_request(&self, keys: &[BlockKey]) {
        if let Some(Recorder::Live(capture)) = &self.recorder {
            let names = keys.iter().map(|key| capture.name(key.short()));
            capture.request(0, 1, names.collect(), None);
        }
    }

    /// How many leading blocks the write policy wants in L3 and L4 by now; counts a use of those from `counted` on.
    pub(super) fn due_below(&self, keys: &[BlockKey], counted: usize) -> usize {
        let nowhere = self.l3.is_none() && self.l4.is_none();
        if nowhere || self.write_policy == WritePolicy::WriteBack {
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

    /// Counts a use of a block that was read from L2, and says whether `write_through_selective` wants it below by now.
    pub(super) fn is_due_after_use(&self, key: &BlockKey) -> bool {
        self.uses.as_ref().is_some_and(|uses| uses.count(key))
    }

    /// Waits for prefetches of these blocks as their tickets ask.
    fn await_prefetches(&self, keys: &[BlockKey]) {
        if self.may_wait.load(Ordering::Acquire)
            && let Some(board) = &self.prefetcher
        {
            board.await_loads(keys, &self.patience, &self.counters.prefetch);
        }
    }

    /// Each of these blocks for itself, pinned; none for a miss. L4 is asked once, for what nothing nearer has; its runs that do
    /// not fit are misses.
    pub(super) fn plan_each(&self, keys: &[BlockKey], fits: Fits<'_>) -> Vec<Option<Step>> {
        self.await_prefetches(keys);
        let mut found = keys.iter().map(|key| self.find(key)).collect::<Vec<_>>();
        if self.l4.is_some() && found.iter().any(Option::is_none) {
            let places = (0..keys.len()).filter(|place| found[*place].is_none());
            let places = places.collect::<Vec<_>>();
            let wanted = places.iter().map(|place| keys[*place]).collect::<Vec<_>>();
            let asked = self.ask(&wanted);
            for place in places {
                found[place] = self.answer(&asked, &keys[place..=place], fits);
            }
        }
        let step = |(tier, run, first): Found| {
            self.counters.tier(tier).hit_blocks.add(1);
            Step {
                tier,
                run,
                first,
                blocks: 1,
            }
        };
        found.into_iter().map(|found| found.map(step)).collect()
    }

    /// The leading consecutive blocks that can be read. L4 is asked once at most, for all that is left at the first block that
    /// nothing nearer has; its runs that do not fit are misses.
    pub(super) fn plan(&self, keys: &[BlockKey], beyond: Beyond<'_>) -> Plan {
        self.await_prefetches(keys);
        let mut plan = Plan::default();
        let mut asked: Option<Inquiry> = None;
        let mut at = 0;
        while at < keys.len() {
            let rest = &keys[at..];
            let found = self.find(&rest[0]).or_else(|| match beyond {
                Beyond::Nothing => None,
                Beyond::Ask(fits) => {
                    let asked = asked.get_or_insert_with(|| self.ask(rest));
                    self.answer(asked, rest, fits)
                }
                Beyond::Asked(asked, fits) => self.answer(asked, rest, fits),
            });
            let Some((tier, run, first)) = found else {
                break;
            };
            let blocks = covered(run.header(), first, rest);
            self.counters.tier(tier).hit_blocks.add(blocks as u64);
            at += blocks.max(1);
            plan.steps.push(Step {
                tier,
                run,
                first,
                blocks,
            });
        }
        plan
    }

    /// What L4 has of these blocks.
    fn ask(&self, keys: &[BlockKey]) -> Inquiry {
        let l4 = self.l4.as_deref();
        l4.map_or_else(Inquiry::default, |l4| Inquiry::of(l4, keys))
    }

    /// What L4 has of these blocks from the first one on that nothing nearer has.
    pub(super) fn inquire(&self, keys: &[BlockKey]) -> Inquiry {
        let is_here = |key: &BlockKey| matches!(self.lookup(key), Lookup::Hit(_));
        let here = keys.iter().take_while(|key| is_here(key)).count();
        if here == keys.len() {
            return Inquiry::default();
        }
        self.ask(&keys[here..])
    }

    /// What L4 said of the first of `rest`, if it can be used.
    fn answer(&self, asked: &Inquiry, rest: &[BlockKey], fits: Fits<'_>) -> Option<Found> {
        let (run, first) = asked.get(&rest[0])?;
        let header = run.header();
        if self.is_over(&header.terms) {
            return None;
        }
        if header.validate().is_err() || covered(header, first, rest) == 0 || !fits(header) {
            self.counters.l4.failed(ReadFailure::Corrupt);
            return None;
        }
        Some((TierId::L4, run, first))
    }

    /// A block in one of the tiers of this machine.
    fn find(&self, key: &BlockKey) -> Option<Found> {
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
    pub(super) fn is_over(&self, terms: &Terms) -> bool {
        terms.expires() != NEVER && terms.expires() <= self.clock.now()
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
        if let Some(l4) = &self.l4 {
            l4.forget(namespace);
        }
        Ok(in_memory + on_disk)
    }

    pub(super) fn remove(&self, keys: &[BlockKey]) -> Result<usize> {
        let _clearing = self.moves.clearing();
        let (here, elsewhere) = keys
            .iter()
            .copied()
            .partition::<Vec<BlockKey>, _>(|key| self.lookup(key) != Lookup::Miss);
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
        let mut found = here.len();
        if let Some(l4) = &self.l4 {
            // Two calls, so that what is in several tiers counts once.
            if !here.is_empty() {
                l4.remove(&here)?;
            }
            if !elsewhere.is_empty() {
                found += l4.remove(&elsewhere)?;
            }
        }
        Ok(found)
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
            stats.l3.joined_reads = usage.joined_reads;
            stats.l3.memory_waits = usage.memory_waits;
        }
        if let Some(l4) = &self.l4 {
            let remote = l4.stats();
            stats.l4.writes = remote.writes;
            stats.l4.write_bytes = remote.write_bytes;
            stats.l4.write_micros = remote.write_micros;
            stats.remote = Some(remote);
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
