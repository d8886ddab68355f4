//! A plan that meets a load under way: its reader waits where the run lands.

use std::ops::Range;
use std::sync::Arc;

use crate::sync::{Condvar, Mutex};

use super::load::Load;
use crate::run::{RunHeader, RunTarget};
use crate::tier::memory::MemoryRun;
use crate::tier::{PinnedRun, ReadFailure};

/// Where a reader waits for a run that is being loaded.
#[derive(Debug, Default)]
pub(super) struct Arrival {
    run: Mutex<Option<Result<Arc<MemoryRun>, ReadFailure>>>,
    set: Condvar,
}

impl Arrival {
    pub(super) fn set(&self, run: Result<Arc<MemoryRun>, ReadFailure>) {
        *self.run.lock() = Some(run);
        self.set.notify_all();
    }

    fn wait(&self) -> Result<Arc<MemoryRun>, ReadFailure> {
        let mut run = self.run.lock();
        loop {
            match &*run {
                Some(run) => return run.clone(),
                None => self.set.wait(&mut run),
            }
        }
    }
}

/// A run that a prefetch is reading into L2 just now: reading it waits for that, and then copies.
#[derive(Debug)]
pub(in crate::store) struct LoadingRun {
    pub(super) load: Arc<Load>,
    pub(super) arrival: Arc<Arrival>,
}

impl PinnedRun for LoadingRun {
    fn header(&self) -> &RunHeader {
        &self.load.header
    }

    fn read_slices(&self, range: Range<usize>, target: &RunTarget) -> Result<(), ReadFailure> {
        self.arrival.wait()?.read_slices(range, target)
    }
}
