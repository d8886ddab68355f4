//! The commit worker: fills L1 from a cache buffer and writes through to the tiers below, off the caller's path.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::sync::mpsc::{self, Receiver, Sender};
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Condvar, Mutex};

use super::Shared;
use super::copy::{BlockSpan, buffer_to_block};
use super::l1::{Grown, HoldId};
use super::lend::Lender;
use super::lend::alike;
use super::resident;
use crate::block::BlockId;
use crate::buffer::CacheBuffer;
use crate::error::{Error, Result};
use crate::key::BlockKey;
use crate::layout::RunWindow;
use crate::radix::Evicted;
use crate::run::{NEVER, RunHeader, RunSource};
use crate::tier::Put;

/// A request's tokens whose KV stands in a buffer.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) namespace: BlockKey,
    pub(super) hold: HoldId,
    pub(super) tokens: Vec<u32>,
    /// When the time of each whole block is over.
    pub(super) expiries: Vec<u64>,
    pub(super) buffer: Arc<CacheBuffer>,
    /// Leading tokens whose rows in the buffer are those of L1; told anew in the end.
    pub(super) standing: Arc<AtomicUsize>,
    /// Whether the buffer is to become resident.
    pub(super) resident: bool,
    /// Leading tokens whose use an earlier commit of the request has counted.
    pub(super) counted: usize,
    /// Which of the leading blocks came out of a lossy codec; none of those behind did.
    pub(super) decoded: Vec<bool>,
    /// Raised when the job is done.
    pub(super) done: Arc<Done>,
}

/// A flag that can be waited for.
#[derive(Debug, Default)]
pub(super) struct Done {
    state: Mutex<bool>,
    raised: Condvar,
}

impl Done {
    pub(super) fn raise(&self) {
        *self.state.lock() = true;
        self.raised.notify_all();
    }

    /// Waits until raised; false if the time ran out first.
    pub(super) fn wait(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.state.lock();
        while !*state {
            if self.raised.wait_until(&mut state, deadline).timed_out() {
                return *state;
            }
        }
        true
    }
}

#[derive(Debug, Default)]
struct Pending {
    count: Mutex<usize>,
    changed: Condvar,
}

/// How long dropping a [`Committer`] waits for its queue.
const DRAIN: Duration = Duration::from_secs(10);

/// Owns the worker thread; dropping it drains the queue and writes L1 back if that is the policy, within limits.
#[derive(Debug)]
pub(super) struct Committer {
    owner: u32,
    shared: Arc<Shared>,
    sender: Mutex<Option<Sender<Job>>>,
    pending: Arc<Pending>,
    worker: Option<JoinHandle<()>>,
}

impl Committer {
    pub(super) fn start(shared: Arc<Shared>) -> Result<Self> {
        let (sender, jobs) = mpsc::channel();
        let pending = Arc::new(Pending::default());
        let (count, worker_shared) = (Arc::clone(&pending), Arc::clone(&shared));
        let worker = thread::Builder::new()
            .name("kvlab-commit".to_owned())
            .spawn(move || work(&worker_shared, &jobs, &count))
            .map_err(|error| Error::io("starting the commit worker", error))?;
        Ok(Self {
            owner: std::process::id(),
            shared,
            sender: Mutex::new(Some(sender)),
            pending,
            worker: Some(worker),
        })
    }

    /// Queues a job. The queue is bounded by the buffers that its jobs hold.
    pub(super) fn submit(&self, job: Job) -> Result<()> {
        let sender = self.sender.lock();
        let sender = sender.as_ref().ok_or(Error::Closed)?;
        *self.pending.count.lock() += 1;
        sender.send(job).map_err(|_| Error::Closed)
    }

    /// Whether jobs are taken no more.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.lock().is_none()
    }

    /// Takes no more jobs.
    pub(super) fn close(&self) {
        *self.sender.lock() = None;
    }

    pub(super) fn pending(&self) -> usize {
        *self.pending.count.lock()
    }

    /// Waits until no job is left.
    pub(super) fn flush(&self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let mut count = self.pending.count.lock();
        while *count > 0 {
            if self
                .pending
                .changed
                .wait_until(&mut count, deadline)
                .timed_out()
                && *count > 0
            {
                return Err(Error::Timeout {
                    what: "committing to L1",
                    seconds: timeout.as_secs_f64(),
                });
            }
        }
        Ok(())
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.close();
        // A forked child has no such thread; a stuck disk must not keep the process from ending.
        if std::process::id() != self.owner || self.flush(DRAIN).is_err() {
            return;
        }
        if let Some(worker) = self.worker.take()
            && worker.join().is_err()
        {
            log::error!("the commit worker panicked; what it had queued is lost");
        }
        // L1 ends here: with write-back, what only it has goes down. A store that is closed asked for it itself.
        match self.shared.store.write_back_above(DRAIN) {
            Ok(()) | Err(Error::Closed) => {}
            Err(error) => log::warn!("what L1 held was not written back: {error}"),
        }
    }
}

fn work(shared: &Arc<Shared>, jobs: &Receiver<Job>, pending: &Pending) {
    for job in jobs {
        if let Err(error) = shared.commit(&job) {
            log::warn!(
                "a commit of {} tokens was dropped: {error}",
                job.tokens.len()
            );
        }
        let Job {
            hold,
            buffer,
            resident,
            done,
            ..
        } = job;
        if resident {
            resident::commit_ends(&buffer);
        }
        if let Err(error) = shared.end_commit(hold) {
            log::error!("a hold could not be released: {error}");
        }
        // The buffer is back in its pool before anyone who waits for this commit goes on.
        drop(buffer);
        done.raise();
        *pending.count.lock() -= 1;
        pending.changed.notify_all();
    }
}

/// Evicted blocks on their way down; dropping the last reference frees them.
struct Leaving {
    lender: Arc<Lender>,
    blocks: Vec<BlockId>,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        // Logged without the lock: a log record may wait for Python, which may wait for the lock.
        let finished = self.lender.l1.lock().finish_eviction(&self.blocks);
        if let Err(error) = finished {
            log::error!("evicted blocks could not be freed: {error}");
        }
        self.lender.blocks_freed.notify_all();
    }
}

impl Shared {
    fn commit(self: &Arc<Self>, job: &Job) -> Result<()> {
        let block_tokens = self.layout.block_tokens();
        let whole = job.tokens.len() / block_tokens * block_tokens;
        let keys = self.keys(job.namespace, &job.tokens[..whole]);
        // First, so that the disk is at work while the blocks are copied: the runs are taken from the buffer, not from L1.
        let written = self.write_through(job, &keys);
        self.fill_l1(job, &keys)?;
        let held = {
            let mut l1 = self.l1.lock();
            l1.remember_key(job.hold, &keys)?;
            l1.sequence(job.hold)
                .map_or(0, |(_, tokens)| tokens / block_tokens)
        };
        self.store.forget_l2(&keys[..held.min(keys.len())])?;
        let due = written?;
        self.share(job, &keys[..due])
    }

    fn end_commit(&self, hold: HoldId) -> Result<()> {
        let mut l1 = self.l1.lock();
        l1.set_idle(hold);
        l1.release(hold)
    }

    fn fill_l1(self: &Arc<Self>, job: &Job, keys: &[BlockKey]) -> Result<()> {
        let block_tokens = self.layout.block_tokens();
        let whole = keys.len() * block_tokens;
        self.l1.lock().adopt(job.hold, &job.tokens[..whole])?;
        let appended = self.append(job)?;
        let mut at = appended.from;
        {
            let mut l1 = self.l1.lock();
            for index in at / block_tokens..appended.to.div_ceil(block_tokens) {
                let decoded = job.decoded.get(index).copied().unwrap_or(false);
                l1.set_decoded(appended.blocks[index], decoded);
            }
        }
        while at < appended.to {
            let first = at % block_tokens;
            let tokens = (block_tokens - first).min(appended.to - at);
            let block = appended.blocks[at / block_tokens];
            let span = BlockSpan {
                offset: self.offset(block),
                first,
                tokens,
                at,
            };
            buffer_to_block(&self.layout, &self.arena, span, &job.buffer);
            at += tokens;
        }
        let (published, before) = {
            let mut l1 = self.l1.lock();
            l1.publish(job.hold, &job.tokens[..whole], keys, &job.expiries)?
        };
        let standing = job.standing.load(Ordering::Acquire);
        if before > standing {
            // L1 has these blocks of another request, computed in other forwards: their rounding may differ from this buffer's.
            resident::cut(&job.buffer, standing);
        } else {
            job.standing
                .store(published.max(standing), Ordering::Release);
        }
        Ok(())
    }

    /// Lengthens the job's sequence, evicting for it; what does not fit even so is left out.
    fn append(self: &Arc<Self>, job: &Job) -> Result<super::l1::Appended> {
        loop {
            let mut l1 = self.l1.lock();
            match l1.grow(job.hold, job.tokens.len())? {
                Grown::Appended(appended) => return Ok(appended),
                Grown::Evicted(evicted) => {
                    drop(l1);
                    self.demote(evicted);
                }
                // Blocks that wait for the disk: better a short wait than a prefix cut short.
                Grown::Draining => {
                    self.blocks_freed
                        .wait_for(&mut l1, Duration::from_millis(50));
                }
            }
        }
    }

    /// Evicts up to `blocks` blocks of L1 to the tiers below.
    pub(super) fn evict(self: &Arc<Self>, blocks: usize) -> Result<usize> {
        let evicted = self.l1.lock().evict(blocks)?;
        let gone = evicted.iter().map(|part| part.blocks().len()).sum();
        self.demote(evicted);
        Ok(gone)
    }

    fn demote(&self, evicted: Vec<Evicted>) {
        for part in evicted {
            let blocks = part.blocks().iter().copied().map(BlockId).collect();
            let leaving = Arc::new(Leaving {
                lender: Arc::clone(&self.lender),
                blocks,
            });
            // A partial block has no key: it goes nowhere.
            let Some(parent) = part.parent_key().copied() else {
                continue;
            };
            let namespace = *part.namespace();
            let keys = self.keys(parent, part.tokens());
            let mut parent = parent;
            let decoded = self.l1.lock().decoded(leaving.blocks.iter());
            for (run, decoded) in alike(&decoded, self.layout.max_run_blocks()) {
                let (keys, blocks) = (&keys[run.clone()], &leaving.blocks[run]);
                let lease = Some(leaving.clone() as _);
                let source = self.lender.source(blocks.iter().copied(), lease);
                let expires = self.l1.lock().earliest_expiry(blocks.iter());
                let lender = &self.lender;
                let header = lender.header(namespace, parent, keys, decoded, expires);
                match self.store.demote(header, source) {
                    Ok(Put::Refused(reason)) => {
                        log::debug!("{} blocks were not demoted: {reason:?}", keys.len());
                        break;
                    }
                    Ok(_) => {}
                    Err(error) => {
                        log::warn!("{} blocks were not demoted: {error}", keys.len());
                        break;
                    }
                }
                parent = keys.last().copied().unwrap_or(parent);
            }
        }
    }

    /// Writes what L3 lacks of the job's blocks and should have by now; how many leading blocks the tiers below should have.
    fn write_through(&self, job: &Job, keys: &[BlockKey]) -> Result<usize> {
        let counted = (job.counted / self.layout.block_tokens()).min(keys.len());
        let due = self.store.due_below(keys, counted)?;
        let (_, has_l3, _) = self.store.tiers();
        if has_l3 {
            let stored = self.store.leading_in_l3(&keys[..due])?;
            self.hand_down(job, keys, stored..due, |header, source| {
                self.store.write_through(header, source)
            })?;
        }
        Ok(due)
    }

    /// Shares what L4 was not seen to have of the job's blocks.
    fn share(&self, job: &Job, keys: &[BlockKey]) -> Result<()> {
        for part in self.store.unshared(keys)? {
            let shared = self.hand_down(job, keys, part, |header, source| {
                self.store.share(header, source)
            })?;
            if !shared {
                break;
            }
        }
        Ok(())
    }

    /// Gives a part of the job's blocks to a tier below, in runs, until one is refused: nothing behind it could be reached. Whether
    /// none was.
    fn hand_down(
        &self,
        job: &Job,
        keys: &[BlockKey],
        part: Range<usize>,
        put: impl Fn(RunHeader, RunSource) -> Result<Put>,
    ) -> Result<bool> {
        let block_tokens = self.layout.block_tokens();
        let before = part.start.checked_sub(1);
        let mut parent = before.map_or(job.namespace, |last| keys[last]);
        let mut at = part.start;
        let mut decoded = job.decoded.clone();
        decoded.resize(keys.len(), false);
        let keys = &keys[part.clone()];
        for (run, decoded) in alike(&decoded[part], self.layout.max_run_blocks()) {
            let keys = &keys[run];
            let tokens = keys.len() * block_tokens;
            let window = RunWindow {
                run_tokens: tokens,
                kept: 0..tokens,
                at: at * block_tokens,
            };
            let source = RunSource {
                region: Arc::clone(job.buffer.region()),
                lease: Some(job.buffer.clone()),
                slices: (0..self.layout.layers().len())
                    .map(|layer| {
                        self.layout
                            .buffer_pieces(job.buffer.layout(), layer, &window)
                    })
                    .collect(),
            };
            let expires = job.expiries.iter().skip(at).take(keys.len());
            let expires = expires.copied().min().unwrap_or(NEVER);
            let lender = &self.lender;
            let header = lender.header(job.namespace, parent, keys, decoded, expires);
            if let Put::Refused(reason) = put(header, source)? {
                log::debug!("{} blocks were not written through: {reason:?}", keys.len());
                return Ok(false);
            }
            at += keys.len();
            parent = keys.last().copied().unwrap_or(parent);
        }
        Ok(true)
    }

    pub(super) fn offset(&self, block: BlockId) -> usize {
        self.lender.offset(block)
    }
}
