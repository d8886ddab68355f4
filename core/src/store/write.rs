//! The way down to L3: a queue bounded in bytes, fair between chains, and the threads that empty it.
//!
//! A run is held back until L3 has begun to write the one that it hangs from, and then joins the end of the line. So a chain
//! stands in line with one run (a branching one with one a branch), and others pass it run by run, however long it is.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use foldhash::fast::RandomState;

use crate::sync::{Condvar, Mutex, MutexGuard};

use super::stats::Counters;
use crate::error::Result;
use crate::key::{BlockKey, KeyMap};
use crate::run::{RunHeader, RunSource};
use crate::tier::{DurableTier, Put, Refusal};

/// One part in so many of the queue is kept for chains that have no more than that in it.
const KEPT_PART: u64 = 8;

#[derive(Debug)]
struct WriteJob {
    number: u64,
    chain: u64,
    header: RunHeader,
    source: RunSource,
}

/// A block that is to be written, or is being written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pending {
    /// How many accepted runs name it.
    runs: u32,
    chain: u64,
    /// L3 has begun to write it, so that what hangs from it may follow.
    begun: bool,
}

#[derive(Debug, Default)]
struct State {
    /// Runs that may be written, in this order.
    line: VecDeque<WriteJob>,
    /// Runs that are held back, by the block that they hang from.
    held: KeyMap<Vec<WriteJob>>,
    /// Headers and chains of the runs that are being written, by their numbers.
    writing: BTreeMap<u64, (RunHeader, u64)>,
    /// Numbers of all runs accepted and not done. They are given in the order of acceptance.
    open: BTreeSet<u64>,
    next_number: u64,
    /// Payload bytes of all of them.
    bytes: u64,
    /// Of them: those of each chain. A chain is named by its first run's number.
    chains: HashMap<u64, u64, RandomState>,
    pending: KeyMap<Pending>,
    stopped: bool,
}

/// The write queue of a store with L3.
pub(super) struct Writer {
    l3: Arc<dyn DurableTier>,
    counters: Arc<Counters>,
    limit: u64,
    /// Whoever puts a run into the queue writes it, too, before going on; there are no threads.
    at_once: bool,
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
            at_once: false,
            state: Mutex::default(),
            work: Condvar::new(),
            progressed: Condvar::new(),
        }
    }

    /// A queue that needs no threads: what is put into it is written before that returns.
    pub(super) fn at_once(self) -> Self {
        Self {
            at_once: true,
            ..self
        }
    }

    pub(super) fn is_pending(&self, key: &BlockKey) -> bool {
        self.state.lock().pending.contains_key(key)
    }

    /// Payload bytes and runs that wait or are being written.
    pub(super) fn backlog(&self) -> (u64, usize) {
        let state = self.state.lock();
        (state.bytes, state.open.len())
    }

    /// Accepts a run, or says why not.
    pub(super) fn enqueue(&self, header: RunHeader, source: RunSource) -> Put {
        let put = self.try_enqueue(header, source);
        if self.at_once {
            while let Some(job) = self.take() {
                self.write(job);
            }
        }
        self.counters.refusals.note(put)
    }

    /// Waits for room for a run; false if there is none until `deadline`, or never will be.
    pub(super) fn wait_room(&self, header: &RunHeader, deadline: Instant) -> bool {
        let bytes = header.payload_bytes();
        if bytes > self.limit {
            return false;
        }
        self.wait_while(self.state.lock(), deadline, |state| {
            !state.has_room(self.limit, &header.parent, bytes) && !state.stopped
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
        if header.terms.decoded {
            return Put::Refused(Refusal::Decoded);
        }
        if header.parent != header.namespace && !known(&header.parent) {
            return Put::Refused(Refusal::ParentMissing);
        }
        if !state.has_room(self.limit, &header.parent, bytes) {
            return Put::Refused(Refusal::QueueFull);
        }
        state.accept(header, source, bytes);
        drop(state);
        self.work.notify_one();
        Put::Queued
    }

    /// A writer thread: writes until stopped.
    pub(super) fn run(&self) {
        while let Some(job) = self.next() {
            self.write(job);
        }
    }

    fn write(&self, job: WriteJob) {
        let start = Instant::now();
        let admitted = || self.begun(&job.header);
        // A tier that panics must not end all writing.
        let put = catch_unwind(AssertUnwindSafe(|| {
            self.l3.put_ahead(&job.header, &job.source, &admitted)
        }));
        let put = match put {
            Ok(Ok(put)) => put,
            Ok(Err(error)) => {
                log::warn!("a run was not written to L3: {error}");
                Put::Refused(Refusal::Unavailable)
            }
            Err(_) => Put::Refused(Refusal::WriteFailed),
        };
        if put == Put::Stored {
            let bytes = job.header.payload_bytes();
            self.counters.l3.wrote(bytes, start.elapsed());
        }
        self.counters.refusals.note(put);
        // The lease ends before anyone is told, so that a flush leaves no memory pinned.
        drop(job.source);
        let mut state = self.state.lock();
        state.writing.remove(&job.number);
        state.forget(job.number, &job.header, job.chain);
        drop(state);
        self.work.notify_all();
        self.progressed.notify_all();
    }

    /// The run that is to be written next, if any waits. The lock ends here, not after its use in a loop's condition.
    fn take(&self) -> Option<WriteJob> {
        self.state.lock().take()
    }

    fn next(&self) -> Option<WriteJob> {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.take() {
                return Some(job);
            }
            if state.stopped {
                return None;
            }
            self.work.wait(&mut state);
        }
    }

    /// L3 has begun to write a run: what hangs from it may follow.
    fn begun(&self, header: &RunHeader) {
        let mut state = self.state.lock();
        for key in &header.keys {
            if let Some(pending) = state.pending.get_mut(key) {
                pending.begun = true;
            }
            state.release(key);
        }
        drop(state);
        self.work.notify_all();
    }

    /// Waits until all that was accepted before the call has been written or refused; false if `deadline` came first.
    pub(super) fn drain(&self, deadline: Instant) -> bool {
        let state = self.state.lock();
        let until = state.next_number;
        self.wait_while(state, deadline, |state| {
            state.open.first().is_some_and(|number| *number < until)
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

    /// Drops the waiting runs that match and waits for those being written that do.
    pub(super) fn purge(&self, matches: impl Fn(&RunHeader) -> bool) {
        let mut state = self.state.lock();
        let dropped = state.drop_waiting(&matches);
        let writing = state.writing.iter();
        let writing = writing
            .filter(|(_, (header, _))| matches(header))
            .map(|(number, _)| *number)
            .collect::<Vec<_>>();
        while writing.iter().any(|number| state.open.contains(number)) {
            self.progressed.wait(&mut state);
        }
        drop(state);
        self.work.notify_all();
        self.progressed.notify_all();
        // Leases end outside the lock.
        drop(dropped);
    }

    /// Refuses everything from now on, drops what waits; the threads end after the runs they are at.
    pub(super) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        let dropped = state.drop_waiting(|_| true);
        for _ in &dropped {
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
        let waiting = state.line.iter().chain(state.held.values().flatten());
        let waiting = waiting.map(|job| (job.number, &job.header, job.chain));
        let writing = state.writing.iter();
        let writing = writing.map(|(number, (header, chain))| (*number, header, *chain));
        let (mut open, mut bytes) = (BTreeSet::new(), 0);
        let mut chains: HashMap<u64, u64, RandomState> = HashMap::default();
        let mut pending: KeyMap<u32> = KeyMap::default();
        for (number, header, chain) in waiting.chain(writing) {
            open.insert(number);
            bytes += header.payload_bytes();
            *chains.entry(chain).or_insert(0) += header.payload_bytes();
            for key in &header.keys {
                *pending.entry(*key).or_insert(0) += 1;
            }
        }
        if bytes != state.bytes || bytes > self.limit || chains != state.chains {
            return Err(format!(
                "{bytes} bytes wait, {} are counted, {} allowed; by chain {chains:?}, counted {:?}",
                state.bytes, self.limit, state.chains
            ));
        }
        let counted = state.pending.iter();
        let counted = counted.map(|(key, pending)| (*key, pending.runs));
        if open != state.open || pending != counted.collect() {
            return Err("runs and pending keys differ from the queue".to_owned());
        }
        if let Some(key) = state.held.keys().find(|key| !pending.contains_key(*key)) {
            return Err(format!("runs wait for {key}, which nobody writes"));
        }
        Ok(())
    }
}

impl State {
    /// Whether a run that hangs from `parent` is to be accepted. A long chain may not fill the queue to the last: others
    /// would be refused for as long as it is being written.
    fn has_room(&self, limit: u64, parent: &BlockKey, bytes: u64) -> bool {
        let chain = self.pending.get(parent).map(|pending| pending.chain);
        let of_chain = chain.and_then(|chain| self.chains.get(&chain));
        let kept = limit / KEPT_PART;
        let after = self.bytes + bytes;
        let is_small = of_chain.unwrap_or(&0) + bytes <= kept;
        after <= limit && (is_small || after <= limit - kept || self.bytes == 0)
    }

    fn accept(&mut self, header: RunHeader, source: RunSource, bytes: u64) {
        let number = self.next_number;
        self.next_number += 1;
        let parent = self.pending.get(&header.parent).copied();
        let chain = parent.map_or(number, |parent| parent.chain);
        for key in &header.keys {
            let pending = self.pending.entry(*key).or_default();
            pending.runs += 1;
            pending.chain = chain;
        }
        self.bytes += bytes;
        *self.chains.entry(chain).or_insert(0) += bytes;
        self.open.insert(number);
        let job = WriteJob {
            number,
            chain,
            header,
            source,
        };
        if parent.is_some_and(|parent| !parent.begun) {
            self.held.entry(job.header.parent).or_default().push(job);
        } else {
            self.line.push_back(job);
        }
    }

    /// The run that is to be written next.
    fn take(&mut self) -> Option<WriteJob> {
        let job = self.line.pop_front()?;
        let writing = (job.header.clone(), job.chain);
        self.writing.insert(job.number, writing);
        Some(job)
    }

    /// What hangs from a block need not wait for it any more.
    fn release(&mut self, key: &BlockKey) {
        self.line.extend(self.held.remove(key).unwrap_or_default());
    }

    /// Takes an accepted run out of the sums. What hangs from it is for L3 to judge.
    fn forget(&mut self, number: u64, header: &RunHeader, chain: u64) {
        let bytes = header.payload_bytes();
        self.open.remove(&number);
        self.bytes -= bytes;
        if let Some(of_chain) = self.chains.get_mut(&chain) {
            *of_chain -= bytes;
            if *of_chain == 0 {
                self.chains.remove(&chain);
            }
        }
        for key in &header.keys {
            if let Some(pending) = self.pending.get_mut(key) {
                pending.runs -= 1;
                if pending.runs == 0 {
                    self.pending.remove(key);
                    self.release(key);
                }
            }
        }
    }

    /// Takes the matching runs that wait out of the queue.
    fn drop_waiting(&mut self, matches: impl Fn(&RunHeader) -> bool) -> Vec<WriteJob> {
        let matches = |job: &WriteJob| matches(&job.header);
        let line = std::mem::take(&mut self.line);
        let (mut dropped, kept): (Vec<_>, Vec<_>) = line.into_iter().partition(matches);
        self.line = kept.into();
        for (parent, jobs) in std::mem::take(&mut self.held) {
            let (out, kept): (Vec<_>, Vec<_>) = jobs.into_iter().partition(matches);
            dropped.extend(out);
            if !kept.is_empty() {
                self.held.insert(parent, kept);
            }
        }
        for job in &dropped {
            self.forget(job.number, &job.header, job.chain);
        }
        dropped
    }
}
