//! Read tickets: many runs into their targets, layer by layer, in small jobs that any worker may take.

use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sync::{Condvar, Mutex, MutexGuard};

use super::plan::Step;
use super::stats::Counters;
use crate::cost::CostBook;
use crate::error::Result;
use crate::run::{RunHeader, RunTarget};
use crate::tier::memory::check_target;
use crate::tier::{ReadFailure, TierId};

/// Payload bytes that a job reads at least, if its run has them. Consecutive slices lie side by side on disk, and single
/// slices (a few hundred KiB) are too small for it; larger jobs would make the first layers arrive later.
const JOB_BYTES: u64 = 3 << 19;

/// A step of a plan and where its run goes.
#[derive(Debug)]
pub struct ReadRequest {
    /// What to read.
    pub step: Step,
    /// Where to; it must match the run's header.
    pub target: RunTarget,
}

/// Why a slice did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadFailed {
    /// A run's bytes could not be used.
    #[error("the bytes of a run could not be used: {0:?}")]
    Failed(ReadFailure),
    /// The ticket was cancelled, or the store closed.
    #[error("the read was cancelled")]
    Cancelled,
    /// The slice was not there in time; the read goes on.
    #[error("the slice did not arrive in time")]
    Timeout,
}

/// What one tier gave to a read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierRead {
    /// Blocks wanted of it, in steps that arrived.
    pub blocks: usize,
    /// Payload bytes read, whole runs.
    pub bytes: u64,
    /// Microseconds between the start of its first job and the end of its last.
    pub micros: u64,
}

/// How a read ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadOutcome {
    /// Leading steps that arrived whole and verified; what later ones wrote is unspecified.
    pub steps_ok: usize,
    /// From host memory.
    pub l2: TierRead,
    /// From disk.
    pub l3: TierRead,
    /// When the last byte that did arrive was verified; none if none did.
    pub end: Option<Instant>,
    /// What stopped it, if not all steps arrived.
    pub failure: Option<ReadFailed>,
}

#[derive(Clone, Debug)]
pub(super) struct Job {
    step: usize,
    slices: Range<usize>,
}

#[derive(Debug)]
struct Progress {
    /// Jobs before this one were taken.
    next: usize,
    in_flight: usize,
    /// For each step: slices that have not arrived.
    missing: Vec<usize>,
    /// For each slice index: steps of which it has not arrived.
    waiting: Vec<usize>,
    /// The first step that failed, and how.
    failed: Option<(usize, ReadFailure)>,
    cancelled: bool,
    /// When a tier's first job began and its last one ended, and the bytes between.
    spans: [Option<(Instant, Instant, u64)>; 2],
}

/// The work behind a ticket, shared with the workers.
pub(super) struct Transfer {
    /// Taken out when the ticket is dropped, so that pins and leases end then, whoever still holds the transfer.
    requests: Mutex<Vec<Arc<ReadRequest>>>,
    /// For each step: its tier and the blocks wanted of it.
    steps: Vec<(TierId, usize)>,
    jobs: Vec<Job>,
    progress: Mutex<Progress>,
    changed: Condvar,
}

impl Transfer {
    /// # Errors
    /// [`crate::Error::InvalidArgument`] for a target that does not match its run.
    pub(super) fn new(requests: Vec<ReadRequest>) -> Result<Self> {
        let mut jobs = Vec::new();
        let mut waiting = Vec::new();
        let mut missing = Vec::new();
        for (step, request) in requests.iter().enumerate() {
            let header = request.step.run.header();
            check_target(header, &request.target)?;
            let slices = header.slices.len();
            waiting.resize(slices.max(waiting.len()), 0);
            waiting[..slices].iter_mut().for_each(|steps| *steps += 1);
            missing.push(slices);
            jobs.extend(groups(header).map(|slices| Job { step, slices }));
        }
        jobs.sort_by_key(|job| (job.slices.start, job.step));
        Ok(Self {
            steps: requests
                .iter()
                .map(|request| (request.step.tier, request.step.blocks))
                .collect(),
            requests: Mutex::new(requests.into_iter().map(Arc::new).collect()),
            jobs,
            progress: Mutex::new(Progress {
                next: 0,
                in_flight: 0,
                missing,
                waiting,
                failed: None,
                cancelled: false,
                spans: [None; 2],
            }),
            changed: Condvar::new(),
        })
    }

    /// The next job that still makes sense; none once all are taken.
    pub(super) fn take_job(&self) -> Option<Job> {
        let mut progress = self.progress.lock();
        while let Some(job) = self.jobs.get(progress.next) {
            if progress.cancelled {
                return None;
            }
            progress.next += 1;
            if progress.failed.is_none_or(|(step, _)| job.step < step) {
                progress.in_flight += 1;
                return Some(job.clone());
            }
        }
        None
    }

    pub(super) fn run(&self, job: &Job, counters: &Counters) {
        let request = Arc::clone(&self.requests.lock()[job.step]);
        let ReadRequest { step, target } = &*request;
        let lens = &step.run.header().slices[job.slices.clone()];
        let bytes = lens.iter().map(|&len| u64::from(len)).sum::<u64>();
        let start = Instant::now();
        // A tier that panics must not leave the ticket waiting for ever.
        let read = || step.run.read_slices(job.slices.clone(), target);
        let result = catch_unwind(AssertUnwindSafe(read)).unwrap_or(Err(ReadFailure::Io));
        let end = Instant::now();
        match result {
            Ok(()) => counters.tier(step.tier).read(bytes, end - start),
            Err(failure) => counters.tier(step.tier).failed(failure),
        }
        let tier = step.tier;
        drop(request);
        self.finish(job, tier, result, (start, end, bytes));
    }

    fn finish(
        &self,
        job: &Job,
        tier: TierId,
        result: Result<(), ReadFailure>,
        (start, end, bytes): (Instant, Instant, u64),
    ) {
        let mut progress = self.progress.lock();
        progress.in_flight -= 1;
        match result {
            Ok(()) => {
                progress.missing[job.step] -= job.slices.len();
                for slice in job.slices.clone() {
                    progress.waiting[slice] -= 1;
                }
                let span = &mut progress.spans[usize::from(tier == TierId::L3)];
                *span = Some(match *span {
                    None => (start, end, bytes),
                    Some((first, last, sum)) => (first.min(start), last.max(end), sum + bytes),
                });
            }
            Err(failure) => {
                if progress.failed.is_none_or(|(step, _)| job.step < step) {
                    progress.failed = Some((job.step, failure));
                }
            }
        }
        drop(progress);
        self.changed.notify_all();
    }

    /// Gives up the jobs that no worker has taken.
    pub(super) fn cancel(&self) {
        self.progress.lock().cancelled = true;
        self.changed.notify_all();
    }

    #[cfg(test)]
    pub(super) fn is_cancelled(&self) -> bool {
        self.progress.lock().cancelled
    }

    /// Whether nothing runs and nothing will.
    fn is_over(&self, progress: &Progress) -> bool {
        let rest = self.jobs.get(progress.next..).unwrap_or_default();
        progress.in_flight == 0
            && (progress.cancelled
                || rest
                    .iter()
                    .all(|job| progress.failed.is_some_and(|(step, _)| job.step >= step)))
    }

    fn wait_over(&self) -> MutexGuard<'_, Progress> {
        let mut progress = self.progress.lock();
        while !self.is_over(&progress) {
            self.changed.wait(&mut progress);
        }
        progress
    }
}

/// Cuts a run's slices into jobs of at least [`JOB_BYTES`].
fn groups(header: &RunHeader) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at;
        let mut bytes = 0;
        while bytes < JOB_BYTES
            && let Some(&len) = header.slices.get(at)
        {
            bytes += u64::from(len);
            at += 1;
        }
        (at > start).then_some(start..at)
    })
}

impl Progress {
    fn failure(&self) -> Option<ReadFailed> {
        match self.failed {
            Some((_, failure)) => Some(ReadFailed::Failed(failure)),
            None if self.cancelled => Some(ReadFailed::Cancelled),
            None => None,
        }
    }
}

/// A read under way. Dropping it gives up what has not begun and waits for what has, so that the targets are written to
/// no more.
pub struct ReadTicket {
    pub(super) transfer: Arc<Transfer>,
    /// Learns how long it took, once.
    costs: Mutex<Option<Arc<CostBook>>>,
}

impl ReadTicket {
    pub(super) fn new(transfer: Arc<Transfer>, costs: Arc<CostBook>) -> Self {
        Self {
            transfer,
            costs: Mutex::new(Some(costs)),
        }
    }

    /// Waits until slice `index` (a layer) of all runs has arrived and was verified.
    ///
    /// # Errors
    /// [`ReadFailed`]: any failure of the ticket ends the wait, even in other slices. A slice that no run has is there.
    pub fn wait_slice(&self, index: usize, timeout: Duration) -> Result<(), ReadFailed> {
        let deadline = Instant::now() + timeout;
        let mut progress = self.transfer.progress.lock();
        loop {
            if progress.waiting.get(index).is_none_or(|steps| *steps == 0) {
                return Ok(());
            }
            if let Some(failed) = progress.failure() {
                return Err(failed);
            }
            let changed = &self.transfer.changed;
            if changed.wait_until(&mut progress, deadline).timed_out() {
                return Err(ReadFailed::Timeout);
            }
        }
    }

    /// Waits until nothing is under way any more.
    pub fn wait(&self) -> ReadOutcome {
        let progress = self.transfer.wait_over();
        let missing = &progress.missing;
        let steps_ok = missing.iter().take_while(|slices| **slices == 0).count();
        let mut outcome = ReadOutcome {
            steps_ok,
            ..ReadOutcome::default()
        };
        if steps_ok < missing.len() {
            outcome.failure = progress.failure();
        }
        outcome.end = progress.spans.iter().flatten().map(|span| span.1).max();
        for (index, tier) in [&mut outcome.l2, &mut outcome.l3].into_iter().enumerate() {
            if let Some((start, end, bytes)) = progress.spans[index] {
                tier.bytes = bytes;
                tier.micros = (end - start).as_micros() as u64;
            }
        }
        drop(progress);
        for (tier, blocks) in &self.transfer.steps[..steps_ok] {
            match tier {
                TierId::L3 => outcome.l3.blocks += blocks,
                TierId::L1 | TierId::L2 => outcome.l2.blocks += blocks,
            }
        }
        // A read that was cut short says nothing of what a whole one takes.
        if outcome.failure.is_none()
            && let Some(costs) = self.costs.lock().take()
        {
            let seen =
                |tier, read: TierRead| (tier, read.bytes, Duration::from_micros(read.micros));
            costs.note_read(&[seen(TierId::L2, outcome.l2), seen(TierId::L3, outcome.l3)]);
        }
        outcome
    }

    /// Gives up what has not begun; [`ReadTicket::wait`] then ends as soon as the jobs under way do.
    pub fn cancel(&self) {
        self.transfer.cancel();
    }
}

impl fmt::Debug for ReadTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let progress = self.transfer.progress.lock();
        write!(
            f,
            "ReadTicket({} of {} jobs taken)",
            progress.next,
            self.transfer.jobs.len()
        )
    }
}

impl Drop for ReadTicket {
    fn drop(&mut self) {
        self.transfer.cancel();
        drop(self.transfer.wait_over());
        let requests = std::mem::take(&mut *self.transfer.requests.lock());
        drop(requests);
    }
}
