//! The commit worker: fills L1 from a cache buffer and writes through to the tiers below, off the caller's path.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::{Condvar, Mutex};

use super::Shared;
use super::copy::{BlockSpan, buffer_to_block};
use super::l1::HoldId;
use super::resident;
use crate::block::BlockId;
use crate::buffer::CacheBuffer;
use crate::error::{Error, Result};
use crate::key::BlockKey;
use crate::layout::RunWindow;
use crate::radix::Evicted;
use crate::run::{RunHeader, RunSource};
use crate::tier::Put;

/// A request's tokens whose KV stands in a buffer.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) namespace: BlockKey,
    pub(super) hold: HoldId,
    pub(super) tokens: Vec<u32>,
    pub(super) buffer: Arc<CacheBuffer>,
    /// Leading tokens whose rows in the buffer are those of L1; told anew in the end.
    pub(super) standing: Arc<AtomicUsize>,
    /// Whether the buffer is to become resident.
    pub(super) resident: bool,
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

/// Owns the worker thread; dropping it drains the queue, within limits.
#[derive(Debug)]
pub(super) struct Committer {
    owner: u32,
    sender: Mutex<Option<Sender<Job>>>,
    pending: Arc<Pending>,
    worker: Option<JoinHandle<()>>,
}

impl Committer {
    pub(super) fn start(shared: Arc<Shared>) -> Result<Self> {
        let (sender, jobs) = crossbeam_channel::unbounded();
        let pending = Arc::new(Pending::default());
        let count = Arc::clone(&pending);
        let worker = std::thread::Builder::new()
            .name("kvlab-commit".to_owned())
            .spawn(move || work(&shared, &jobs, &count))
            .map_err(|error| Error::io("starting the commit worker", error))?;
        Ok(Self {
            owner: std::process::id(),
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
    shared: Arc<Shared>,
    blocks: Vec<BlockId>,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        // Logged without the lock: a log record may wait for Python, which may wait for the lock.
        let finished = self.shared.l1.lock().finish_eviction(&self.blocks);
        if let Err(error) = finished {
            log::error!("evicted blocks could not be freed: {error}");
        }
        self.shared.blocks_freed.notify_all();
    }
}

impl Shared {
    fn commit(self: &Arc<Self>, job: &Job) -> Result<()> {
        let block_tokens = self.layout.block_tokens();
        let whole = job.tokens.len() / block_tokens * block_tokens;
        self.fill_l1(job, whole)?;
        let keys = self.keys(job.namespace, &job.tokens[..whole]);
        let held = {
            let mut l1 = self.l1.lock();
            l1.remember_key(job.hold, &keys)?;
            l1.sequence(job.hold)
                .map_or(0, |(_, tokens)| tokens / block_tokens)
        };
        self.store.forget_l2(&keys[..held.min(keys.len())])?;
        self.write_through(job, &keys)
    }

    fn end_commit(&self, hold: HoldId) -> Result<()> {
        let mut l1 = self.l1.lock();
        l1.set_idle(hold);
        l1.release(hold)
    }

    fn fill_l1(self: &Arc<Self>, job: &Job, whole: usize) -> Result<()> {
        let block_tokens = self.layout.block_tokens();
        self.l1.lock().adopt(job.hold, &job.tokens[..whole])?;
        let appended = self.append(job)?;
        let mut at = appended.from;
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
            l1.publish(job.hold, &job.tokens[..whole])?
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
            let (requested, free) = match l1.append(job.hold, job.tokens.len()) {
                Err(Error::OutOfBlocks { requested, free }) => (requested, free),
                other => return other,
            };
            let evicted = l1.start_eviction(requested.saturating_sub(free));
            if !evicted.is_empty() {
                drop(l1);
                self.demote(evicted);
                continue;
            }
            if l1.in_flight() > 0 {
                // Blocks that wait for the disk: better a short wait than a prefix cut short.
                self.blocks_freed
                    .wait_for(&mut l1, Duration::from_millis(50));
                continue;
            }
            if l1.reclaim_idle()? {
                continue;
            }
            let block_tokens = self.layout.block_tokens();
            let room = l1.room(job.hold).min(job.tokens.len());
            l1.count_refused((job.tokens.len() - room).div_ceil(block_tokens));
            return l1.append(job.hold, room);
        }
    }

    /// Evicts up to `blocks` blocks of L1 to the tiers below.
    pub(super) fn evict(self: &Arc<Self>, blocks: usize) -> Result<usize> {
        let evicted = {
            let mut l1 = self.l1.lock();
            let mut evicted = l1.start_eviction(blocks);
            let mut gone = count(&evicted);
            while gone < blocks && l1.reclaim_idle()? {
                evicted.extend(l1.start_eviction(blocks - gone));
                gone = count(&evicted);
            }
            evicted
        };
        let gone = count(&evicted);
        self.demote(evicted);
        Ok(gone)
    }

    fn demote(self: &Arc<Self>, mut evicted: Vec<Evicted>) {
        if !self.store.tiers().0 {
            // L3 takes a run only behind its parent, and leaves were evicted first.
            evicted.reverse();
        }
        for part in evicted {
            let blocks = part.blocks().iter().copied().map(BlockId).collect();
            let leaving = Arc::new(Leaving {
                shared: Arc::clone(self),
                blocks,
            });
            // A partial block has no key: it goes nowhere.
            let Some(parent) = part.parent_key().copied() else {
                continue;
            };
            let namespace = *part.namespace();
            let keys = self.keys(parent, part.tokens());
            let mut parent = parent;
            let run_blocks = self.layout.max_run_blocks();
            for (keys, blocks) in keys
                .chunks(run_blocks)
                .zip(leaving.blocks.chunks(run_blocks))
            {
                let offsets = blocks
                    .iter()
                    .map(|block| self.offset(*block))
                    .collect::<Vec<_>>();
                let source = RunSource {
                    region: Arc::clone(&self.arena),
                    lease: Some(leaving.clone()),
                    slices: (0..self.layout.layers().len())
                        .map(|layer| self.layout.block_pieces(&offsets, layer))
                        .collect(),
                };
                match self
                    .store
                    .demote(self.header(namespace, parent, keys), source)
                {
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

    /// Writes what L3 lacks of the job's blocks, in runs, until one is refused: nothing behind it could be reached.
    fn write_through(&self, job: &Job, keys: &[BlockKey]) -> Result<()> {
        if !self.store.writes_through() {
            return Ok(());
        }
        let block_tokens = self.layout.block_tokens();
        let stored = self.store.leading_in_l3(keys)?;
        let mut parent = stored
            .checked_sub(1)
            .map_or(job.namespace, |last| keys[last]);
        let mut at = stored;
        for keys in keys[stored..].chunks(self.layout.max_run_blocks()) {
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
            let header = self.header(job.namespace, parent, keys);
            if let Put::Refused(reason) = self.store.write_through(header, source)? {
                log::debug!("{} blocks were not written through: {reason:?}", keys.len());
                break;
            }
            at += keys.len();
            parent = keys.last().copied().unwrap_or(parent);
        }
        Ok(())
    }

    fn header(&self, namespace: BlockKey, parent: BlockKey, keys: &[BlockKey]) -> RunHeader {
        RunHeader {
            namespace,
            parent,
            keys: keys.into(),
            block_tokens: self.layout.block_tokens() as u32,
            slices: self.layout.slice_lengths(keys.len()),
            terms: self.terms(&namespace),
        }
    }

    pub(super) fn offset(&self, block: BlockId) -> usize {
        block.0 as usize * self.layout.block_bytes()
    }
}

fn count(evicted: &[Evicted]) -> usize {
    evicted.iter().map(|part| part.blocks().len()).sum()
}
