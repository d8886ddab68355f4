//! The I/O workers and what they do next: reads of all tickets in turn, and prefetches when there are none or it is their turn.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::sync::{Condvar, Mutex};

use super::prefetch::Load;
use super::transfer::{Job, Transfer};
use crate::tier::neighbours;

/// A prefetch is begun after so many jobs of reads, if one waits. It moves a whole run (at most 16 MiB) and such a job 1.5 MiB:
/// reads keep three quarters of the disk, and prefetches get on however many reads there are.
const READS_PER_LOAD: usize = 32;
/// How many loads are looked at for neighbours of the next one.
const LOADS_AHEAD: usize = 64;

#[derive(Default)]
struct Queue {
    /// Tickets with jobs left. The one in front gives one job and goes to the back.
    reads: VecDeque<Arc<Transfer>>,
    loads: VecDeque<Arc<Load>>,
    /// Workers that are at loads.
    loading: usize,
    /// Jobs of reads since a load was begun.
    reads_since: usize,
    stopped: bool,
}

/// Something for a worker to do.
pub(super) enum Work {
    Read(Arc<Transfer>, Job),
    /// Loads that are read together.
    Load(Vec<Arc<Load>>),
    /// Nothing; time to look at the clock.
    Wake,
    Stop,
}

/// Work that waits for a worker.
pub(super) struct Scheduler {
    queue: Mutex<Queue>,
    ready: Condvar,
    /// The most loads at once: one worker less than there are, so that a read never finds all of them busy with prefetches.
    max_loading: usize,
}

impl Scheduler {
    pub(super) fn new(workers: usize) -> Self {
        Self {
            queue: Mutex::default(),
            ready: Condvar::new(),
            max_loading: workers.saturating_sub(1).max(1),
        }
    }

    pub(super) fn read(&self, transfer: &Arc<Transfer>) {
        let mut queue = self.queue.lock();
        if queue.stopped {
            transfer.cancel();
            return;
        }
        queue.reads.push_back(Arc::clone(transfer));
        drop(queue);
        self.ready.notify_all();
    }

    /// Queues loads; false once the scheduler is stopped. Idle workers look at the clock again in any case.
    pub(super) fn load(&self, loads: Vec<Arc<Load>>) -> bool {
        let mut queue = self.queue.lock();
        let running = !queue.stopped;
        if running {
            queue.loads.extend(loads);
        }
        drop(queue);
        self.ready.notify_all();
        running
    }

    pub(super) fn load_done(&self) {
        self.queue.lock().loading -= 1;
        self.ready.notify_one();
    }

    /// Takes what is next, or waits once for something to happen, at most until `deadline`.
    pub(super) fn next(&self, deadline: Option<Instant>) -> Work {
        // Tickets without work left are dropped after the lock: that may unpin runs and end leases.
        let mut spent = Vec::new();
        let mut queue = self.queue.lock();
        let mut work = queue.take(self.max_loading, &mut spent);
        if work.is_none() {
            match deadline {
                None => self.ready.wait(&mut queue),
                Some(deadline) => {
                    self.ready.wait_until(&mut queue, deadline);
                }
            }
            work = queue.take(self.max_loading, &mut spent);
        }
        drop(queue);
        work.unwrap_or(Work::Wake)
    }

    /// Gives up all that has not begun; workers end after the job they are at.
    pub(super) fn stop(&self) {
        let (reads, loads) = {
            let mut queue = self.queue.lock();
            queue.stopped = true;
            (
                std::mem::take(&mut queue.reads),
                std::mem::take(&mut queue.loads),
            )
        };
        self.ready.notify_all();
        for transfer in &reads {
            transfer.cancel();
        }
        drop((reads, loads));
    }
}

impl Queue {
    fn take(&mut self, max_loading: usize, spent: &mut Vec<Arc<Transfer>>) -> Option<Work> {
        if self.stopped {
            return Some(Work::Stop);
        }
        if self.reads_since >= READS_PER_LOAD
            && let Some(load) = self.take_load(max_loading)
        {
            return Some(load);
        }
        while let Some(transfer) = self.reads.pop_front() {
            match transfer.take_job() {
                Some(job) => {
                    self.reads_since += 1;
                    self.reads.push_back(Arc::clone(&transfer));
                    return Some(Work::Read(transfer, job));
                }
                None => spent.push(transfer),
            }
        }
        self.take_load(max_loading)
    }

    fn take_load(&mut self, max_loading: usize) -> Option<Work> {
        if self.loading >= max_loading {
            return None;
        }
        let ahead = self.loads.iter().take(LOADS_AHEAD);
        let spans = ahead.map(|load| load.span()).collect::<Vec<_>>();
        let mut groups = neighbours(&spans).into_iter();
        let group = groups.find(|group| group.contains(&0))?;
        let loads = group.iter().map(|&place| Arc::clone(&self.loads[place]));
        let loads = loads.collect();
        let mut place = 0..;
        self.loads
            .retain(|_| place.next().is_none_or(|place| !group.contains(&place)));
        self.loading += 1;
        self.reads_since = 0;
        Some(Work::Load(loads))
    }
}
