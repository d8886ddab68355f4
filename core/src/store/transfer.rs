//! The work behind a read ticket: parts of runs, several of which are read together where they are neighbours on disk.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use crate::sync::{Condvar, Mutex, MutexGuard};

use super::read::{ReadFailed, ReadRequest};
use super::sharing::{Sharing, Wanted};
use super::stats::Counters;
use crate::error::Result;
use crate::run::RunHeader;
use crate::tier::memory::{check_target, copy_pieces};
use crate::tier::{ReadFailure, TOGETHER_BYTES, TierId, neighbours};

/// Payload bytes that a job reads at least, if its run has them. Consecutive slices lie side by side on disk, and single
/// slices (a few hundred KiB) are too small for it; larger jobs would make the first layers arrive later.
const JOB_BYTES: u64 = TOGETHER_BYTES;

/// What the steps of a transfer are to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Steps {
    /// Each is of use only with all before it.
    Chain,
    /// Each stands for itself.
    Single,
}

/// Slices of one step that are read at once.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) step: usize,
    pub(super) slices: Range<usize>,
}

/// Parts for a worker to read at once, as far as nobody else has begun them by then: one, or neighbours.
#[derive(Debug)]
pub(super) struct Job(Vec<usize>);

/// When a part was read.
type Times = (Instant, Instant);

#[derive(Debug)]
pub(super) struct Progress {
    /// Jobs before this one were taken.
    pub(super) next: usize,
    /// For each part: whether a worker has begun it, for this ticket or for another one that wanted it, too.
    begun: Vec<bool>,
    /// Parts begun and not ended.
    in_flight: usize,
    /// For each step: slices that have not arrived.
    pub(super) missing: Vec<usize>,
    /// For each slice index: steps of which it has not arrived.
    pub(super) waiting: Vec<usize>,
    /// The first step that failed, and how.
    failed: Option<(usize, ReadFailure)>,
    cancelled: bool,
    /// For L2, L3 and L4: when its first job began and its last one ended, and the bytes between.
    pub(super) spans: [Option<(Instant, Instant, u64)>; 3],
}

/// The work behind a ticket, shared with the workers.
pub(super) struct Transfer {
    /// Taken out when the ticket is dropped, so that pins and leases end then, whoever still holds the transfer.
    requests: Mutex<Vec<Arc<ReadRequest>>>,
    /// For each step: its tier and the blocks wanted of it.
    pub(super) steps: Vec<(TierId, usize)>,
    kind: Steps,
    /// Those of a job stand together.
    parts: Vec<Part>,
    /// What each part is to others that read the same; none if it cannot be shared.
    wanted: Vec<Option<Wanted>>,
    /// Parts of each job, in the order in which jobs are begun.
    jobs: Vec<Range<usize>>,
    progress: Mutex<Progress>,
    pub(super) changed: Condvar,
}

impl Transfer {
    /// # Errors
    /// [`crate::Error::InvalidArgument`] for a target that does not match its run.
    pub(super) fn new(requests: Vec<ReadRequest>, kind: Steps) -> Result<Self> {
        let mut waiting = Vec::new();
        let mut missing = Vec::new();
        let mut jobs = Vec::new();
        // Runs that are one part, and where they lie: neighbours among them make one job.
        let (mut small, mut spans) = (Vec::new(), Vec::new());
        for (step, request) in requests.iter().enumerate() {
            let run = &request.step.run;
            check_target(run.header(), &request.target)?;
            let slices = run.header().slices.len();
            waiting.resize(slices.max(waiting.len()), 0);
            waiting[..slices].iter_mut().for_each(|steps| *steps += 1);
            missing.push(slices);
            for slices in groups(run.header()) {
                if slices.len() == run.header().slices.len() {
                    small.push(Part { step, slices });
                    spans.push(run.span());
                } else {
                    jobs.push(vec![Part { step, slices }]);
                }
            }
        }
        let together = neighbours(&spans).into_iter();
        jobs.extend(together.map(|group| {
            let parts = group.into_iter().map(|index| small[index].clone());
            parts.collect::<Vec<_>>()
        }));
        jobs.sort_by_key(|parts| {
            let order = parts.iter().map(|part| (part.slices.start, part.step));
            order.min()
        });
        let mut parts = Vec::new();
        let jobs = jobs.into_iter().map(|job| {
            let start = parts.len();
            parts.extend(job);
            start..parts.len()
        });
        let jobs = jobs.collect();
        let wanted = |part: &Part| Wanted::of(&requests[part.step].step, &part.slices);
        Ok(Self {
            steps: requests
                .iter()
                .map(|request| (request.step.tier, request.step.blocks))
                .collect(),
            kind,
            wanted: parts.iter().map(wanted).collect(),
            progress: Mutex::new(Progress {
                next: 0,
                begun: vec![false; parts.len()],
                in_flight: 0,
                missing,
                waiting,
                failed: None,
                cancelled: false,
                spans: [None; 3],
            }),
            parts,
            jobs,
            requests: Mutex::new(requests.into_iter().map(Arc::new).collect()),
            changed: Condvar::new(),
        })
    }

    pub(super) fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock()
    }

    pub(super) fn jobs(&self) -> usize {
        self.jobs.len()
    }

    /// Each part that others may want, too.
    pub(super) fn wanted(&self) -> impl Iterator<Item = (usize, Wanted)> {
        let wanted = self.wanted.iter().enumerate();
        wanted.filter_map(|(part, wanted)| Some((part, (*wanted)?)))
    }

    pub(super) fn wanted_of(&self, part: usize) -> Option<Wanted> {
        self.wanted[part]
    }

    /// The request that a part belongs to, and its slices. Not to be called once the ticket may be gone: only for what is begun.
    pub(super) fn request(&self, part: usize) -> (Arc<ReadRequest>, Range<usize>) {
        let Part { step, slices } = &self.parts[part];
        (Arc::clone(&self.requests.lock()[*step]), slices.clone())
    }

    /// The next job, for one worker to run; none once all are taken.
    pub(super) fn take_job(&self) -> Option<Job> {
        let mut progress = self.progress.lock();
        while let Some(job) = self.jobs.get(progress.next) {
            if progress.cancelled {
                return None;
            }
            progress.next += 1;
            let mut parts = job.clone().collect::<Vec<_>>();
            parts.retain(|part| !progress.begun[*part] && !self.is_useless(&progress, *part));
            if !parts.is_empty() {
                return Some(Job(parts));
            }
        }
        None
    }

    /// Begins one part. False if it is begun already or not wanted any more; if true, it has to be ended by [`Self::finish`].
    pub(super) fn begin(&self, part: usize) -> bool {
        let mut progress = self.progress.lock();
        if progress.begun[part] || progress.cancelled || self.is_useless(&progress, part) {
            return false;
        }
        progress.begun[part] = true;
        progress.in_flight += 1;
        true
    }

    /// Whether a step before this part's has failed, so that nobody can use it.
    fn is_useless(&self, progress: &Progress, part: usize) -> bool {
        let failed = progress.failed.filter(|_| self.kind == Steps::Chain);
        failed.is_some_and(|(step, _)| self.parts[part].step >= step)
    }

    /// Does a job, and what others want of the same bytes.
    pub(super) fn run(self: Arc<Self>, job: Job, counters: &Counters, sharing: &Sharing) {
        let own = job.0.into_iter().map(|part| (Arc::clone(&self), part));
        let mut seats = own.collect::<Vec<_>>();
        drop(self);
        seats.retain(|(transfer, part)| sharing.begin(transfer, *part));
        while !seats.is_empty() {
            let start = Instant::now();
            let requests = seats
                .iter()
                .map(|(transfer, part)| transfer.request(*part))
                .collect::<Vec<_>>();
            // A tier that panics must not leave the ticket waiting for ever.
            let read = || read(&requests);
            let results = catch_unwind(AssertUnwindSafe(read))
                .unwrap_or_else(|_| vec![Err(ReadFailure::Io); requests.len()]);
            let times = (start, Instant::now());
            let mut again = Vec::new();
            // Time is counted once for what was read at once.
            let mut took = Some(times.1 - times.0);
            for (((transfer, part), (request, slices)), result) in
                seats.into_iter().zip(requests).zip(results)
            {
                let tier = counters.tier(request.step.tier);
                let followers = sharing.end(&transfer, part, result.is_ok());
                match result {
                    Ok(()) => {
                        let bytes = request.bytes(&slices);
                        tier.read(bytes, took.take().unwrap_or_default());
                        // Before the ticket that read it learns of it: its owner may change the memory then.
                        for (follower, part) in followers {
                            follower.copy(part, &request);
                            tier.shared_reads.add(1);
                            follower.finish(part, result, (start, Instant::now()));
                        }
                    }
                    Err(failure) => {
                        tier.failed(failure);
                        // It may have been the fault of this one: the others try for themselves.
                        again.extend(followers);
                    }
                }
                drop(request);
                transfer.finish(part, result, times);
            }
            again.retain(|(transfer, part)| sharing.retry(transfer, *part));
            seats = again;
        }
    }

    /// Copies what another request read of the same run to where this one wants it.
    fn copy(&self, part: usize, from: &ReadRequest) {
        let (request, slices) = self.request(part);
        let target = &request.target;
        for slice in slices {
            let (source, to) = (&from.target.slices[slice], &target.slices[slice]);
            copy_pieces(&from.target.region, source, &target.region, to);
        }
    }

    fn finish(&self, part: usize, result: Result<(), ReadFailure>, (start, end): Times) {
        let Part { step, slices } = &self.parts[part];
        let (request, _) = self.request(part);
        let (tier, bytes) = (request.step.tier, request.bytes(slices));
        // The last user of a target's memory lets go of it before its owner hears of it.
        drop(request);
        let mut progress = self.progress.lock();
        progress.in_flight -= 1;
        match result {
            Ok(()) => {
                progress.missing[*step] -= slices.len();
                for slice in slices.clone() {
                    progress.waiting[slice] -= 1;
                }
                let span = &mut progress.spans[match tier {
                    TierId::L1 | TierId::L2 => 0,
                    TierId::L3 => 1,
                    TierId::L4 => 2,
                }];
                *span = Some(match *span {
                    None => (start, end, bytes),
                    Some((first, last, sum)) => (first.min(start), last.max(end), sum + bytes),
                });
            }
            Err(failure) => {
                if progress.failed.is_none_or(|(first, _)| *step < first) {
                    progress.failed = Some((*step, failure));
                }
            }
        }
        drop(progress);
        self.changed.notify_all();
    }

    /// Gives up the parts that no worker has begun.
    pub(super) fn cancel(&self) {
        self.progress.lock().cancelled = true;
        self.changed.notify_all();
    }

    #[cfg(test)]
    pub(super) fn is_cancelled(&self) -> bool {
        self.progress.lock().cancelled
    }

    /// Whether nothing runs and nothing will.
    pub(super) fn is_over(&self, progress: &Progress) -> bool {
        let mut parts = 0..self.parts.len();
        progress.in_flight == 0
            && (progress.cancelled
                || parts.all(|part| progress.begun[part] || self.is_useless(progress, part)))
    }

    pub(super) fn wait_over(&self) -> MutexGuard<'_, Progress> {
        let mut progress = self.progress.lock();
        while !self.is_over(&progress) {
            self.changed.wait(&mut progress);
        }
        progress
    }

    /// Takes the requests, once it is over.
    pub(super) fn release(&self) -> Vec<Arc<ReadRequest>> {
        std::mem::take(&mut *self.requests.lock())
    }
}

/// Reads slices of requests: of one, or several whole runs together.
fn read(requests: &[(Arc<ReadRequest>, Range<usize>)]) -> Vec<Result<(), ReadFailure>> {
    match requests {
        [] => Vec::new(),
        [(request, slices)] => {
            let run = &request.step.run;
            vec![run.read_slices(slices.clone(), &request.target)]
        }
        [(first, _), ..] => {
            let reads = requests
                .iter()
                .map(|(request, _)| (&request.step.run, &request.target));
            first.step.run.read_together(&reads.collect::<Vec<_>>())
        }
    }
}

/// Cuts a run's slices into parts of at least [`JOB_BYTES`].
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
    pub(super) fn failure(&self) -> Option<ReadFailed> {
        match self.failed {
            Some((_, failure)) => Some(ReadFailed::Failed(failure)),
            None if self.cancelled => Some(ReadFailed::Cancelled),
            None => None,
        }
    }
}
