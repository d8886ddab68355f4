//! What who orders a prefetch gets.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sync::Mutex;

use super::Prefetcher;
use super::load::Load;
use crate::store::stats::Counters;

/// How far a prefetch is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefetchProgress {
    /// Blocks that were found below L1 and fit into what prefetch may hold.
    pub wanted: usize,
    /// Of them: in L2 now, or read from there since.
    pub loaded: usize,
    /// Payload bytes of the runs that were loaded.
    pub bytes: u64,
}

/// A prefetch under way. Dropping it changes nothing: what it asked for is still loaded and held for its time.
pub struct PrefetchTicket {
    shared: Option<(Arc<Prefetcher>, Arc<Counters>)>,
    /// With the wanted blocks of each.
    loads: Vec<(Arc<Load>, usize)>,
    disowned: Mutex<bool>,
}

impl PrefetchTicket {
    pub(in crate::store) fn new(
        shared: Option<(Arc<Prefetcher>, Arc<Counters>)>,
        loads: Vec<(Arc<Load>, usize)>,
    ) -> Self {
        Self {
            shared,
            loads,
            disowned: Mutex::new(false),
        }
    }

    /// How far it is.
    pub fn progress(&self) -> PrefetchProgress {
        let mut progress = PrefetchProgress::default();
        for (load, blocks) in &self.loads {
            progress.wanted += blocks;
            if load.inner.lock().loaded {
                progress.loaded += blocks;
                progress.bytes += load.header.payload_bytes();
            }
        }
        progress
    }

    /// Waits until nothing of it is under way; false if the time was over first.
    pub fn wait(&self, timeout: Duration) -> bool {
        let Some((prefetcher, _)) = &self.shared else {
            return true;
        };
        let deadline = Instant::now() + timeout;
        let mut board = prefetcher.board.lock();
        loop {
            let mut loads = self.loads.iter();
            let busy = loads.any(|(load, _)| load.inner.lock().is_under_way());
            if !busy {
                return true;
            }
            if prefetcher
                .changed
                .wait_until(&mut board, deadline)
                .timed_out()
            {
                return false;
            }
        }
    }

    /// Gives it up: what has not begun is not loaded, what was loaded is held no more, unless another ticket wants it.
    pub fn cancel(&self) {
        let Some((prefetcher, counters)) = &self.shared else {
            return;
        };
        if std::mem::replace(&mut *self.disowned.lock(), true) {
            return;
        }
        let loads = self.loads.iter().map(|(load, _)| Arc::clone(load));
        prefetcher.disown(&loads.collect::<Vec<_>>(), &counters.prefetch);
    }
}

impl fmt::Debug for PrefetchTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrefetchTicket({:?})", self.progress())
    }
}
