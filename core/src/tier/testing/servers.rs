//! An L4 for tests.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::{FakeRun, Gate, Journal, Shelf, Stored, gather};
use crate::error::{Error, Result};
use crate::key::BlockKey;
use crate::run::{RunHeader, RunSource};
use crate::sync::Mutex;
use crate::tier::{PinnedRun, Put, Refusal, RemoteStats, ServerHealth, SharedTier};

/// What the servers of a shared tier say that is not so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// The block is at another position of its run.
    Position,
    /// A run of other blocks is the block's.
    Blocks,
    /// The run's slices have other lengths.
    Lengths,
    /// Some blocks get no answer at all.
    Silence,
}

/// An L4 in memory for tests: machines that are given the same servers find each other's runs; slow, hung, down, full, broken or
/// lying on demand. What is queued is written at once, unless it hangs.
#[derive(Debug)]
pub(crate) struct FakeServers {
    shelf: Arc<Mutex<Shelf>>,
    known: Mutex<HashSet<BlockKey>>,
    queue: Mutex<Vec<(RunHeader, RunSource)>>,
    /// Payload bytes that may wait.
    limit: u64,
    /// Lookups wait here.
    pub(crate) finds: Gate,
    /// Reads wait here.
    pub(crate) reads: Arc<Gate>,
    /// Nothing is answered or written.
    pub(crate) hung: AtomicBool,
    /// So many reads to come fail, and the runs stay.
    pub(crate) failing: Arc<AtomicUsize>,
    pub(crate) lie: Mutex<Option<Lie>>,
    pub(crate) lookups: AtomicUsize,
    pub(crate) refused: AtomicUsize,
    pub(crate) closed: AtomicBool,
    pub(crate) journal: Journal,
}

impl FakeServers {
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Self::over(Arc::default(), limit)
    }

    /// The same servers, as another machine sees them.
    pub(crate) fn elsewhere(&self) -> Arc<Self> {
        Self::over(Arc::clone(&self.shelf), self.limit)
    }

    fn over(shelf: Arc<Mutex<Shelf>>, limit: u64) -> Arc<Self> {
        Arc::new(Self {
            shelf,
            known: Mutex::default(),
            queue: Mutex::default(),
            limit,
            finds: Gate::default(),
            reads: Arc::default(),
            hung: AtomicBool::new(false),
            failing: Arc::default(),
            lie: Mutex::default(),
            lookups: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            journal: Arc::default(),
        })
    }

    pub(crate) fn keys(&self) -> HashSet<BlockKey> {
        self.shelf.lock().rows.keys().copied().collect()
    }

    /// Makes the run that holds a block unreadable.
    pub(crate) fn damage(&self, key: &BlockKey) {
        let shelf = self.shelf.lock();
        shelf.rows[key].broken.store(true, Ordering::SeqCst);
    }

    /// As when the servers are flushed.
    pub(crate) fn lose_all(&self) {
        *self.shelf.lock() = Shelf::default();
    }

    fn is_hung(&self) -> bool {
        self.hung.load(Ordering::SeqCst)
    }

    fn write_queued(&self) {
        for (header, source) in std::mem::take(&mut *self.queue.lock()) {
            let slices = source.slices.iter();
            let slices = slices.map(|pieces| gather(&source.region, pieces));
            let run = Arc::new(Stored {
                slices: slices.collect(),
                header,
                broken: AtomicBool::new(false),
            });
            let mut shelf = self.shelf.lock();
            for key in &run.header.keys {
                shelf.rows.entry(*key).or_insert_with(|| Arc::clone(&run));
            }
            shelf.runs.push(run);
        }
    }

    fn lied(&self, key: &BlockKey, run: &Arc<Stored>, first: usize) -> (Arc<Stored>, usize) {
        let altered = |change: &dyn Fn(&mut RunHeader)| {
            let mut header = run.header.clone();
            change(&mut header);
            Arc::new(Stored {
                header,
                slices: run.slices.clone(),
                broken: AtomicBool::new(false),
            })
        };
        match *self.lie.lock() {
            Some(Lie::Position) => (Arc::clone(run), first + 1),
            Some(Lie::Blocks) => {
                let other = BlockKey(key.0.map(|byte| !byte));
                (altered(&|header| header.keys.fill(other)), first)
            }
            Some(Lie::Lengths) => {
                let longer = run.header.slices.iter().map(|len| len + 4);
                let longer = longer.collect::<Vec<_>>();
                let change = |header: &mut RunHeader| header.slices = longer.clone().into();
                (altered(&change), first)
            }
            Some(Lie::Silence) | None => (Arc::clone(run), first),
        }
    }
}

impl SharedTier for FakeServers {
    fn find(&self, keys: &[BlockKey]) -> Vec<Option<(Arc<dyn PinnedRun>, usize)>> {
        self.lookups.fetch_add(1, Ordering::SeqCst);
        self.finds.pass();
        if self.is_hung() {
            return keys.iter().map(|_| None).collect();
        }
        let find = |key: &BlockKey| {
            let run = Arc::clone(self.shelf.lock().rows.get(key)?);
            self.known.lock().insert(*key);
            let first = run.header.keys.iter().position(|stored| stored == key)?;
            let (run, first) = self.lied(key, &run, first);
            let run = FakeRun {
                run,
                shelf: Arc::clone(&self.shelf),
                gate: Arc::clone(&self.reads),
                panics: Arc::default(),
                failing: Arc::clone(&self.failing),
                journal: Arc::clone(&self.journal),
            };
            Some((Arc::new(run) as _, first))
        };
        let silent = *self.lie.lock() == Some(Lie::Silence);
        let answered = if silent { keys.len() / 2 } else { keys.len() };
        let mut known = self.known.lock();
        known.retain(|key| !keys.contains(key));
        drop(known);
        keys[..answered].iter().map(find).collect()
    }

    fn knows(&self, key: &BlockKey) -> bool {
        self.known.lock().contains(key)
    }

    fn admits(&self, header: &RunHeader) -> Put {
        let queued = self.queue.lock();
        let waiting = queued.iter().map(|(header, _)| header.payload_bytes());
        let refusal = if self.closed.load(Ordering::SeqCst) {
            Refusal::Unavailable
        } else if !header.terms.persist {
            Refusal::NotPersisted
        } else if header.terms.decoded {
            Refusal::Decoded
        } else if waiting.sum::<u64>() + header.payload_bytes() > self.limit {
            Refusal::QueueFull
        } else {
            return Put::Queued;
        };
        self.refused.fetch_add(1, Ordering::SeqCst);
        Put::Refused(refusal)
    }

    fn share(&self, header: RunHeader, source: RunSource) -> Result<Put> {
        assert!(source.lease.is_none(), "a server may hold up this memory");
        self.known.lock().extend(&header.keys);
        self.queue.lock().push((header, source));
        if !self.is_hung() {
            self.write_queued();
        }
        Ok(Put::Queued)
    }

    fn remove(&self, keys: &[BlockKey]) -> Result<usize> {
        if self.is_hung() {
            return Err(Error::Remote {
                address: "redis://fake".to_owned(),
                reason: "it does not answer".to_owned(),
            });
        }
        self.known.lock().retain(|key| !keys.contains(key));
        let mut shelf = self.shelf.lock();
        let found = keys.iter().filter_map(|key| shelf.rows.get(key).cloned());
        let found = found.collect::<Vec<_>>();
        for run in &found {
            shelf.drop_run(run);
        }
        Ok(found.len())
    }

    fn forget(&self, namespace: Option<&BlockKey>) {
        let other =
            |header: &RunHeader| namespace.is_some_and(|wanted| *wanted != header.namespace);
        self.queue.lock().retain(|(header, _)| other(header));
        self.known.lock().clear();
    }

    fn flush(&self, timeout: Duration) -> bool {
        if !self.is_hung() {
            self.write_queued();
        }
        let written = self.queue.lock().is_empty();
        if !written {
            std::thread::sleep(timeout);
        }
        written
    }

    fn close(&self, timeout: Duration) -> bool {
        self.closed.store(true, Ordering::SeqCst);
        self.flush(timeout)
    }

    fn stats(&self) -> RemoteStats {
        RemoteStats::default()
    }

    fn health(&self) -> Vec<ServerHealth> {
        Vec::new()
    }
}
