//! The replay of a workload over tiers.

use super::metrics::{Outcome, Overlapped};
use super::overlap::{Overlap, Schedule};
use super::policy::{Context, Departure, PagePolicy};
use super::residency::Residency;
use super::tier::TierSpec;
use super::workload::{Page, PageId, TierIndex, Workload};
use crate::error::{Error, Result};

/// Which rules a move follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// A page that is promoted is no candidate of the demotions that make room for it, and leaves its tier as it arrives: it is
    /// in one tier at a time. If it takes the room that a demotion needs, and nothing else could leave, they change places.
    #[default]
    Exact,
    /// kv-hierarchy-lab's: room is made while the page still stands in its tier as a candidate. A demotion can then push it one
    /// tier down, where it stays behind while it arrives in the first: it lies in two tiers, and takes room in both. Where that
    /// does not happen, the results are those of [`Exact`](Self::Exact).
    Compat,
}

/// What a workload is replayed on.
#[derive(Clone, Debug, PartialEq)]
pub struct Hierarchy {
    /// The tiers, the fastest first.
    pub tiers: Vec<TierSpec>,
    /// Whether pages are fetched ahead.
    pub prefetch: bool,
    /// How many of a policy's proposals are followed at each access.
    pub max_prefetches: usize,
    /// Which rules a move follows.
    pub engine: Engine,
    /// Whether transfers overlap with compute.
    pub overlap: Option<Overlap>,
}

impl Hierarchy {
    /// Tiers without prefetch and overlap, with exact rules.
    pub fn new(tiers: Vec<TierSpec>) -> Self {
        Self {
            tiers,
            prefetch: false,
            max_prefetches: 2,
            engine: Engine::Exact,
            overlap: None,
        }
    }
}

/// Replays a workload from its beginning to its end with a fresh policy.
///
/// # Errors
/// What [`Simulation::new`] and [`Simulation::run`] refuse.
pub fn simulate(
    hierarchy: &Hierarchy,
    workload: &Workload,
    policy: &mut dyn PagePolicy,
) -> Result<Outcome> {
    policy.replay(hierarchy, workload)
}

/// A replay.
#[derive(Debug)]
pub struct Simulation<'a, P: PagePolicy + ?Sized = dyn PagePolicy> {
    hierarchy: &'a Hierarchy,
    workload: &'a Workload,
    policy: &'a mut P,
    residency: Residency,
    /// Prefetched pages that were not used yet.
    pending: Vec<bool>,
    schedule: Option<Schedule>,
    outcome: Outcome,
    /// What the policy wants fetched ahead; kept for its memory.
    wanted: Vec<PageId>,
    step: u64,
    row: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Demand,
    Prefetch,
}

/// What a policy sees, made from fields so that the policy can be called with it.
macro_rules! context {
    ($simulation:expr) => {
        Context {
            step: $simulation.step,
            pages: $simulation.workload.pages(),
            residency: &$simulation.residency,
        }
    };
}

impl<'a, P: PagePolicy + ?Sized> Simulation<'a, P> {
    /// A replay that has not begun; pages that start in a tier are put there.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for tiers or pages that cannot be, pages larger than a tier, or too many that start in one.
    pub fn new(
        hierarchy: &'a Hierarchy,
        workload: &'a Workload,
        policy: &'a mut P,
    ) -> Result<Self> {
        let tiers = &hierarchy.tiers;
        TierSpec::check(tiers)?;
        workload.check_against(tiers)?;
        let pages = workload.pages().len();
        if let Some(Overlap { compute_ms }) = hierarchy.overlap
            && !(compute_ms.is_finite() && compute_ms >= 0.0)
        {
            return Err(Error::invalid(format!(
                "compute_ms = {compute_ms}; use 0 or more milliseconds"
            )));
        }
        policy.reserve(pages, tiers.len());
        let schedule = |overlap| Schedule::new(overlap, tiers, pages);
        let mut simulation = Self {
            hierarchy,
            workload,
            policy,
            residency: Residency::new(tiers, pages),
            pending: vec![false; pages],
            schedule: hierarchy.overlap.map(schedule),
            outcome: Outcome {
                found: vec![0; tiers.len()],
                ..Outcome::default()
            },
            wanted: Vec::new(),
            step: workload.accesses().first().map_or(0, |access| access.step),
            row: 0,
        };
        simulation.place_initial()?;
        Ok(simulation)
    }

    fn place_initial(&mut self) -> Result<()> {
        for (id, page) in self.workload.pages().iter().enumerate() {
            let Some(tier) = page.tier else { continue };
            if !self.residency.fits(tier, page.bytes) {
                return Err(Error::invalid(format!(
                    "the pages that start in tier {:?} are larger than its {} bytes from page {id} on; start fewer there",
                    self.hierarchy.tiers[tier].name, self.hierarchy.tiers[tier].capacity_bytes
                )));
            }
            self.outcome.inserted_bytes += page.bytes;
            self.enter(tier, id as PageId);
            self.policy.on_insert(&context!(self), id as PageId, tier);
        }
        Ok(())
    }

    /// Replays what is left of the trace.
    ///
    /// # Errors
    /// What the policy raised, or [`Error::InvalidArgument`] for a page that it chose but cannot.
    pub fn run(mut self) -> Result<Outcome> {
        while self.advance()? {}
        Ok(self.finish())
    }

    /// Replays one row; false at the end of the trace.
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    pub fn advance(&mut self) -> Result<bool> {
        let Some(&access) = self.workload.accesses().get(self.row) else {
            return Ok(false);
        };
        self.row += 1;
        self.step = access.step;
        if !access.hint {
            self.access(access.page)?;
        } else if self.hierarchy.prefetch {
            self.prefetch(access.page)?;
        }
        Ok(true)
    }

    /// The counts so far; prefetched pages that were not used are wasted.
    pub fn finish(self) -> Outcome {
        let tiers = 0..self.residency.tiers();
        let mut outcome = self.outcome;
        outcome.peak_bytes = tiers
            .clone()
            .map(|tier| self.residency.peak_bytes(tier))
            .collect();
        outcome.resident_bytes = tiers.map(|tier| self.residency.used_bytes(tier)).collect();
        outcome.wasted_prefetches += self.pending.iter().filter(|&&pending| pending).count() as u64;
        outcome.overlapped = self.schedule.map(|schedule| Overlapped {
            elapsed_ms: schedule.elapsed_ms(),
            waited_ms: schedule.waited_ms,
            queued_ms: schedule.queued_ms,
            late_prefetches: schedule.late_prefetches,
        });
        outcome
    }

    fn access(&mut self, page: PageId) -> Result<()> {
        let found = self.residency.find(page);
        self.policy.on_access(&context!(self), page, found);
        self.outcome.accesses += 1;
        if let Some(tier) = found {
            self.outcome.found[tier] += 1;
        }
        if found == Some(0) {
            let cost = self.hierarchy.tiers[0].read_ms + self.page(page).decode_ms;
            self.outcome.total_ms += cost;
            if let Some(schedule) = &mut self.schedule {
                schedule.hit(page, cost);
            }
        } else {
            self.outcome.misses += 1;
            self.policy.on_miss(&context!(self), page);
            let from = self.fetch(page, found)?;
            self.promote(page, from, Purpose::Demand)?;
        }
        if std::mem::take(&mut self.pending[page as usize]) {
            self.outcome.useful_prefetches += 1;
        }
        if self.hierarchy.prefetch {
            self.follow_policy(page)?;
        }
        if let Some(schedule) = &mut self.schedule {
            schedule.compute();
        }
        Ok(())
    }

    fn follow_policy(&mut self, page: PageId) -> Result<()> {
        self.wanted.clear();
        self.policy
            .maybe_prefetch(&context!(self), page, &mut self.wanted);
        self.wanted.truncate(self.hierarchy.max_prefetches);
        for at in 0..self.wanted.len() {
            let next = self.wanted[at];
            if next as usize >= self.pending.len() {
                return Err(Error::invalid(format!(
                    "the policy wants page {next} prefetched, but there are {} pages",
                    self.pending.len()
                )));
            }
            self.prefetch(next)?;
        }
        Ok(())
    }

    fn prefetch(&mut self, page: PageId) -> Result<()> {
        let found = self.residency.find(page);
        if found == Some(0) {
            return Ok(());
        }
        let from = self.fetch(page, found)?;
        if !std::mem::replace(&mut self.pending[page as usize], true) {
            self.outcome.prefetches += 1;
            self.promote(page, from, Purpose::Prefetch)?;
        }
        Ok(())
    }

    /// The tier that a page comes from: one that is in none is put into the last.
    fn fetch(&mut self, page: PageId, found: Option<TierIndex>) -> Result<TierIndex> {
        if let Some(tier) = found {
            return Ok(tier);
        }
        let last = self.residency.tiers() - 1;
        self.outcome.cold_misses += 1;
        self.outcome.inserted_bytes += self.page(page).bytes;
        self.make_room(last, page)?;
        self.enter(last, page);
        self.policy.on_insert(&context!(self), page, last);
        Ok(last)
    }

    /// Moves a page to the first tier, where it is not.
    fn promote(&mut self, page: PageId, from: TierIndex, purpose: Purpose) -> Result<()> {
        let bytes = self.page(page).bytes;
        match self.hierarchy.engine {
            Engine::Exact => {
                self.residency.hold(from, page, bytes);
                self.policy
                    .left(&context!(self), page, from, Departure::Promoted);
                self.make_room(0, page)?;
                self.residency.release(from);
            }
            Engine::Compat => {
                self.make_room(0, page)?;
                if self.residency.contains(from, page) {
                    self.residency.remove(from, page, bytes);
                    self.policy
                        .left(&context!(self), page, from, Departure::Promoted);
                } else {
                    self.outcome.double_residencies += 1;
                }
            }
        }
        self.enter(0, page);
        let cost = self.transfer_ms(from, 0, page);
        self.outcome.total_ms += cost;
        match purpose {
            Purpose::Demand => self.outcome.demand_bytes += bytes,
            Purpose::Prefetch => self.outcome.prefetch_bytes += bytes,
        }
        if let Some(schedule) = &mut self.schedule {
            match purpose {
                Purpose::Demand => schedule.promote(from, 0, cost),
                Purpose::Prefetch => schedule.prefetch(page, from, 0, cost),
            }
        }
        self.policy.on_insert(&context!(self), page, 0);
        self.policy.on_promote(&context!(self), page, from);
        Ok(())
    }

    fn make_room(&mut self, tier: TierIndex, incoming: PageId) -> Result<()> {
        let bytes = self.page(incoming).bytes;
        while !self.residency.fits(tier, bytes) {
            if self.residency.len(tier) == 0 {
                // All that is taken belongs to the page that is being promoted.
                self.residency.release(tier);
                continue;
            }
            let context = context!(self);
            let victim = self
                .policy
                .select_eviction_candidate(&context, tier, incoming)?;
            let known = (victim as usize) < self.pending.len();
            if !known || !self.residency.contains(tier, victim) {
                return Err(Error::invalid(format!(
                    "the policy chose page {victim} to leave tier {:?}, where it is not; choose one of the candidates",
                    self.hierarchy.tiers[tier].name
                )));
            }
            self.evict(tier, victim)?;
        }
        Ok(())
    }

    /// Moves a victim one tier down, or drops it.
    fn evict(&mut self, tier: TierIndex, page: PageId) -> Result<()> {
        let bytes = self.page(page).bytes;
        self.residency.remove(tier, page, bytes);
        self.policy
            .left(&context!(self), page, tier, Departure::Evicted);
        self.outcome.evictions += 1;
        self.policy.on_evict(&context!(self), page, tier);
        if tier == 0 && std::mem::take(&mut self.pending[page as usize]) {
            self.outcome.wasted_prefetches += 1;
        }
        let below = tier + 1;
        if below == self.residency.tiers() {
            self.outcome.dropped += 1;
            self.outcome.dropped_bytes += bytes;
            return Ok(());
        }
        self.make_room(below, page)?;
        // With `Engine::Compat` it may be there already.
        if !self.residency.contains(below, page) {
            self.enter(below, page);
        }
        let cost = self.transfer_ms(tier, below, page);
        self.outcome.total_ms += cost;
        self.outcome.demand_bytes += bytes;
        if let Some(schedule) = &mut self.schedule {
            schedule.transfer(tier, below, cost);
        }
        Ok(())
    }

    fn enter(&mut self, tier: TierIndex, page: PageId) {
        let bytes = self.page(page).bytes;
        self.residency.add(tier, page, bytes);
        self.policy.entered(&context!(self), page, tier);
    }

    fn transfer_ms(&self, from: TierIndex, to: TierIndex, page: PageId) -> f64 {
        let (from, to) = (&self.hierarchy.tiers[from], &self.hierarchy.tiers[to]);
        let page = self.page(page);
        let bytes_per_ms = from.bytes_per_ms.min(to.bytes_per_ms).max(1.0);
        from.read_ms + to.write_ms + page.bytes as f64 / bytes_per_ms + page.decode_ms
    }

    fn page(&self, page: PageId) -> Page {
        self.workload.pages()[page as usize]
    }

    /// Checks that the tiers are sound and within their capacities; with [`Engine::Exact`] also that each page is in one tier at
    /// most, and that what came in is what is there or was dropped.
    ///
    /// # Errors
    /// A description of the first thing that is wrong.
    pub fn validate(&self) -> std::result::Result<(), String> {
        self.residency.validate(self.workload.pages())?;
        if self.hierarchy.engine == Engine::Compat {
            return Ok(());
        }
        let doubles = self.residency.doubles();
        if doubles > 0 {
            return Err(format!("{doubles} pages are in more than one tier"));
        }
        let tiers = 0..self.residency.tiers();
        let resident: u64 = tiers.map(|tier| self.residency.used_bytes(tier)).sum();
        let Outcome {
            inserted_bytes,
            dropped_bytes,
            ..
        } = self.outcome;
        if inserted_bytes != dropped_bytes + resident {
            return Err(format!(
                "{inserted_bytes} bytes came in, {dropped_bytes} were dropped, {resident} are there"
            ));
        }
        Ok(())
    }
}
