//! The way down to L3: a queue bounded in bytes and the one thread that empties it.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::stats::Counters;
use crate::error::Result;
use crate::key::{BlockKey, KeyMap};
use crate::run::{RunHeader, RunSource};
use crate::tier::{DurableTier, Put, Refusal};

#[derive(Debug)]
struct WriteJob {
    number: u64,
    header: RunHeader,
    source: RunSource,
    bytes: u64,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<WriteJob>,
    /// The header of the run that is being written, with its number.
    current: Option<(u64, RunHeader)>,
    /// Payload bytes of `jobs` and `current`.
    bytes: u64,
    /// Numbers are given in the order of the queue.
    next_number: u64,
    /// Keys of `jobs` and `current`, with how many of them name it.
    pending: KeyMap<u32>,
    stopped: bool,
}

/// The write queue of a store with L3.
pub(super) struct Writer {
    l3: Arc<dyn DurableTier>,
    counters: Arc<Counters>,
    limit: u64,
    state: Mutex<State>,
    work: Condvar,
    progressed: Condvar,
}

impl Writer {
    pub(super) fn new(l3: Arc<dyn DurableTier>, limit: u64, counters: Arc<Counters>) -> Self {
        Self {
            l3,
            counters,
            limit,
            state: Mutex::default(),
            work: Condvar::new(),
            progressed: Condvar::new(),
        }
    }

    pub(super) fn is_pending(&self, key: &BlockKey) -> bool {
        self.state.lock().pending.contains_key(key)
    }

    /// Payload bytes and runs that wait or are being written.
    pub(super) fn backlog(&self) -> (u64, usize) {
        let state = self.state.lock();
        let runs = state.jobs.len() + usize::from(state.current.is_some());
        (state.bytes, runs)
    }

    /// Accepts a run, or says why not.
    pub(super) fn enqueue(&self, header: RunHeader, source: RunSource) -> Put {
        let put = self.try_enqueue(header, source);
        self.counters.refusals.note(put)
    }

    /// Waits for room for so many bytes; false if there is none until `deadline`, or never will be.
    pub(super) fn wait_room(&self, bytes: u64, deadline: Instant) -> bool {
        if bytes > self.limit {
            return false;
        }
        self.wait_while(self.state.lock(), deadline, |state| {
            state.bytes + bytes > self.limit && !state.stopped
        })
    }

    fn try_enqueue(&self, header: RunHeader, source: RunSource) -> Put {
        let bytes = header.payload_bytes();
        let mut state = self.state.lock();
        if state.stopped {
            return Put::Refused(Refusal::Unavailable);
        }
        // Pending is asked before L3: a write ends by becoming visible there first and leaving the queue then.
        let known = |key: &BlockKey| state.pending.contains_key(key) || self.l3.contains(key);
        if header.keys.iter().all(known) {
            return Put::Present;
        }
        if header.parent != header.namespace && !known(&header.parent) {
            return Put::Refused(Refusal::ParentMissing);
        }
        if state.bytes + bytes > self.limit {
            return Put::Refused(Refusal::QueueFull);
        }
        for key in &header.keys {
            *state.pending.entry(*key).or_insert(0) += 1;
        }
        state.bytes += bytes;
        let number = state.next_number;
        state.next_number += 1;
        state.jobs.push_back(WriteJob {
            number,
            header,
            source,
            bytes,
        });
        drop(state);
        self.work.notify_one();
        Put::Queued
    }

    /// The writer thread: writes until stopped.
    pub(super) fn run(&self) {
        while let Some(job) = self.next() {
            let start = Instant::now();
            // A tier that panics must not end all writing.
            let put = catch_unwind(AssertUnwindSafe(|| self.l3.put(&job.header, &job.source)));
            let put = match put {
                Ok(Ok(put)) => put,
                Ok(Err(error)) => {
                    log::warn!("a run was not written to L3: {error}");
                    Put::Refused(Refusal::Unavailable)
                }
                Err(_) => Put::Refused(Refusal::WriteFailed),
            };
            if put == Put::Stored {
                self.counters.l3.wrote(job.bytes, start.elapsed());
            }
            self.counters.refusals.note(put);
            // The lease ends before anyone is told, so that a flush leaves no memory pinned.
            drop(job.source);
            let mut state = self.state.lock();
            state.current = None;
            state.forget(&job.header, job.bytes);
            drop(state);
            self.progressed.notify_all();
        }
    }

    fn next(&self) -> Option<WriteJob> {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                state.current = Some((job.number, job.header.clone()));
                return Some(job);
            }
            if state.stopped {
                return None;
            }
            self.work.wait(&mut state);
        }
    }

    /// Waits until all that was accepted before the call has been written or refused; false if `deadline` came first.
    pub(super) fn drain(&self, deadline: Instant) -> bool {
        let state = self.state.lock();
        let until = state.next_number;
        self.wait_while(state, deadline, |state| {
            let first = state.jobs.front().map(|job| job.number);
            let current = state.current.as_ref().map(|(number, _)| *number);
            current.or(first).is_some_and(|number| number < until)
        })
    }

    fn wait_while(
        &self,
        mut state: MutexGuard<'_, State>,
        deadline: Instant,
        condition: impl Fn(&State) -> bool,
    ) -> bool {
        while condition(&state) {
            if self.progressed.wait_until(&mut state, deadline).timed_out() {
                return !condition(&state);
            }
        }
        true
    }

    /// Drops the waiting runs that match and waits for the one being written, if it matches.
    pub(super) fn purge(&self, matches: impl Fn(&RunHeader) -> bool) {
        let mut dropped = Vec::new();
        let mut state = self.state.lock();
        for job in std::mem::take(&mut state.jobs) {
            if matches(&job.header) {
                state.forget(&job.header, job.bytes);
                dropped.push(job);
            } else {
                state.jobs.push_back(job);
            }
        }
        let writing = match &state.current {
            Some((number, header)) if matches(header) => Some(*number),
            _ => None,
        };
        while writing.is_some() && state.current.as_ref().map(|(number, _)| *number) == writing {
            self.progressed.wait(&mut state);
        }
        drop(state);
        self.progressed.notify_all();
        // Leases end outside the lock.
        drop(dropped);
    }

    /// Refuses everything from now on, drops what waits; the thread ends after the run it is at.
    pub(super) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        let dropped = std::mem::take(&mut state.jobs);
        for job in &dropped {
            state.forget(&job.header, job.bytes);
            let put = Put::Refused(Refusal::Unavailable);
            self.counters.refusals.note(put);
        }
        drop(state);
        self.work.notify_all();
        self.progressed.notify_all();
        drop(dropped);
    }

    /// Makes everything that L3 acknowledged durable.
    pub(super) fn flush(&self) -> Result<()> {
        self.l3.flush()
    }

    /// Checks the queue's sums.
    pub(super) fn validate(&self) -> Result<(), String> {
        let state = self.state.lock();
        let queued = state.jobs.iter().map(|job| job.bytes).sum::<u64>();
        let current = state.current.as_ref();
        let writing = current.map_or(0, |(_, header)| header.payload_bytes());
        let headers = state.jobs.iter().map(|job| &job.header);
        let mut pending: KeyMap<u32> = KeyMap::default();
        for key in headers
            .chain(current.map(|(_, header)| header))
            .flat_map(|header| &header.keys)
        {
            *pending.entry(*key).or_insert(0) += 1;
        }
        if queued + writing != state.bytes || state.bytes > self.limit {
            return Err(format!(
                "{queued} + {writing} bytes wait, {} are counted, {} allowed",
                state.bytes, self.limit
            ));
        }
        if pending != state.pending {
            return Err("pending keys differ from the queue".to_owned());
        }
        Ok(())
    }
}

impl State {
    fn forget(&mut self, header: &RunHeader, bytes: u64) {
        self.bytes -= bytes;
        for key in &header.keys {
            if let Some(count) = self.pending.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    self.pending.remove(key);
                }
            }
        }
    }
}
