//! The way to the servers: a queue bounded in bytes, and the thread that empties it and looks after servers that were down.

use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::Inner;
use super::names::{Entry, RunName, entry_name};
use super::shards::{Shards, Share};
use super::value::{MAX_VALUE_BYTES, encode, value_bytes};
use super::values::{Answer, Failure, ValuesError};
use crate::error::Result;
use crate::key::{BlockKey, KeyMap};
use crate::run::{NEVER, RunHeader, RunSource, Terms};
use crate::tier::{Put, Refusal};

#[derive(Debug)]
struct Job {
    number: u64,
    header: RunHeader,
    source: RunSource,
}

#[derive(Debug, Default)]
struct State {
    line: VecDeque<Job>,
    /// The run that is being written.
    writing: Option<(u64, RunHeader)>,
    /// Numbers of all runs accepted and not done.
    open: BTreeSet<u64>,
    next_number: u64,
    /// Payload bytes of all of them.
    bytes: u64,
    /// How many of them name a block.
    pending: KeyMap<u32>,
    stopped: bool,
    /// A server is left alone from now on.
    look: bool,
    /// The thread has ended.
    ended: bool,
}

/// The write queue of a shared tier.
#[derive(Debug)]
pub(super) struct Queue {
    limit: u64,
    state: Mutex<State>,
    work: Condvar,
    progressed: Condvar,
}

/// What became of a run that was to be written.
enum Written {
    /// So many bytes were.
    Bytes(u64),
    /// All of it was there.
    Present,
    Refused(Refusal),
}

impl State {
    /// Takes a run out of the sums.
    fn done(&mut self, number: u64, header: &RunHeader) {
        self.open.remove(&number);
        self.bytes -= header.payload_bytes();
        for key in &header.keys {
            if let Some(runs) = self.pending.get_mut(key) {
                *runs -= 1;
                if *runs == 0 {
                    self.pending.remove(key);
                }
            }
        }
    }
}

impl Queue {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit,
            state: Mutex::default(),
            work: Condvar::new(),
            progressed: Condvar::new(),
        }
    }

    /// Payload bytes and runs that wait or are being written.
    pub(super) fn backlog(&self) -> (u64, usize) {
        let state = self.state.lock();
        (state.bytes, state.open.len())
    }

    /// Whether a block waits to be written, or is being written.
    pub(super) fn has(&self, key: &BlockKey) -> bool {
        self.state.lock().pending.contains_key(key)
    }

    /// What [`Self::accept`] would make of a run.
    fn judge(&self, state: &State, header: &RunHeader, known: impl Fn(&BlockKey) -> bool) -> Put {
        let bytes = header.payload_bytes();
        if state.stopped {
            return Put::Refused(Refusal::Unavailable);
        }
        let there = |key: &BlockKey| state.pending.contains_key(key) || known(key);
        if header.keys.iter().all(there) {
            return Put::Present;
        }
        if bytes > self.limit {
            return Put::Refused(Refusal::TooLarge);
        }
        if state.bytes + bytes > self.limit {
            return Put::Refused(Refusal::QueueFull);
        }
        Put::Queued
    }

    fn accept(
        &self,
        header: RunHeader,
        source: RunSource,
        known: impl Fn(&BlockKey) -> bool,
    ) -> Put {
        let mut state = self.state.lock();
        let put = self.judge(&state, &header, known);
        if put != Put::Queued {
            return put;
        }
        let number = state.next_number;
        state.next_number += 1;
        state.open.insert(number);
        state.bytes += header.payload_bytes();
        for key in &header.keys {
            *state.pending.entry(*key).or_insert(0) += 1;
        }
        state.line.push_back(Job {
            number,
            header,
            source,
        });
        drop(state);
        self.work.notify_one();
        Put::Queued
    }

    /// Takes the runs that match and wait out of the queue, and waits for one that matches and is being written. How many it took out.
    pub(super) fn purge(&self, matches: impl Fn(&RunHeader) -> bool) -> usize {
        let mut state = self.state.lock();
        let dropped = Self::drop_waiting(&mut state, &matches);
        while let Some((number, _)) = state.writing.as_ref().filter(|(_, header)| matches(header)) {
            let number = *number;
            while state.open.contains(&number) {
                self.progressed.wait(&mut state);
            }
        }
        drop(state);
        self.progressed.notify_all();
        // Leases end outside the lock.
        dropped.len()
    }

    fn drop_waiting(state: &mut State, matches: impl Fn(&RunHeader) -> bool) -> Vec<Job> {
        let line = std::mem::take(&mut state.line);
        let (dropped, kept): (Vec<_>, Vec<_>) =
            line.into_iter().partition(|job| matches(&job.header));
        state.line = kept.into();
        for job in &dropped {
            state.done(job.number, &job.header);
        }
        dropped
    }

    /// Waits until what was accepted before the call is done; false if the time ran out.
    pub(super) fn drain(&self, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        let until = state.next_number;
        self.wait(&mut state, deadline, |state| {
            state.open.first().is_none_or(|number| *number >= until)
        })
    }

    /// Ends the writing: what still waits is dropped. How many runs that were, and whether the thread ended in time.
    pub(super) fn stop(&self, deadline: Instant) -> (usize, bool) {
        let mut state = self.state.lock();
        state.stopped = true;
        let dropped = Self::drop_waiting(&mut state, |_| true);
        self.work.notify_all();
        let ended = self.wait(&mut state, deadline, |state| state.ended);
        drop(state);
        self.progressed.notify_all();
        (dropped.len(), ended)
    }

    fn wait(
        &self,
        state: &mut MutexGuard<'_, State>,
        deadline: Instant,
        done: impl Fn(&State) -> bool,
    ) -> bool {
        while !done(state) {
            if self.progressed.wait_until(state, deadline).timed_out() {
                return done(state);
            }
        }
        true
    }

    /// The next run, or none when there is something else to do at `until`.
    fn next(&self, until: Option<Instant>) -> Next {
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return Next::Stop;
            }
            if let Some(job) = state.line.pop_front() {
                state.writing = Some((job.number, job.header.clone()));
                return Next::Write(job);
            }
            if std::mem::take(&mut state.look) {
                return Next::Probe;
            }
            match until {
                None => self.work.wait(&mut state),
                Some(until) if until <= Instant::now() => return Next::Probe,
                Some(until) => drop(self.work.wait_until(&mut state, until)),
            }
        }
    }

    /// Has the thread ask anew when it is to look after servers.
    pub(super) fn look(&self) {
        self.state.lock().look = true;
        self.work.notify_all();
    }

    fn finished(&self, number: u64, header: &RunHeader) {
        let mut state = self.state.lock();
        state.writing = None;
        state.done(number, header);
        drop(state);
        self.progressed.notify_all();
    }

    fn ended(&self) {
        self.state.lock().ended = true;
        self.progressed.notify_all();
    }
}

enum Next {
    Write(Job),
    Probe,
    Stop,
}

impl Inner {
    /// What would become of a run now.
    pub(super) fn admits(&self, header: &RunHeader) -> Put {
        let known = |key: &BlockKey| self.shards.known.has(key);
        let put = match self.refuses(header) {
            Some(refusal) => Put::Refused(refusal),
            None => self.queue.judge(&self.queue.state.lock(), header, known),
        };
        if let Put::Refused(refusal) = put {
            self.shards.counters.refused(refusal);
        }
        put
    }

    pub(super) fn share(&self, header: RunHeader, source: RunSource) -> Result<Put> {
        header.validate()?;
        source.check(&header, |len| len)?;
        let terms = header.terms.stamped(self.clock.now());
        let header = RunHeader { terms, ..header };
        let known = |key: &BlockKey| self.shards.known.has(key);
        let put = match self.refuses(&header) {
            Some(refusal) => Put::Refused(refusal),
            None => self.queue.accept(header, source, known),
        };
        match put {
            Put::Refused(refusal) => self.shards.counters.refused(refusal),
            Put::Present => self.shards.counters.present.add(1),
            _ => {}
        }
        Ok(put)
    }

    /// Why a run is not even queued, if it is not.
    fn refuses(&self, header: &RunHeader) -> Option<Refusal> {
        let terms = header.terms.stamped(self.clock.now());
        if !terms.persist {
            return Some(Refusal::NotPersisted);
        }
        if terms.decoded {
            return Some(Refusal::Decoded);
        }
        if self.ttl(&terms).is_none() {
            return Some(Refusal::Expired);
        }
        if value_bytes(header, self.key.is_some()) > MAX_VALUE_BYTES {
            return Some(Refusal::TooLarge);
        }
        let home = RunName::of(header).and_then(|name| self.shards.home_to_write(&name.last));
        home.is_none().then_some(Refusal::Unavailable)
    }

    /// How much longer a run lives; none if it does not.
    fn ttl(&self, terms: &Terms) -> Option<Duration> {
        match terms.expires() {
            NEVER => Some(self.ttl),
            at => at
                .checked_sub(self.clock.now())
                .filter(|left| *left > 0)
                .map(Duration::from_secs),
        }
    }

    /// The thread: writes, and looks after servers that were down, until it is stopped.
    pub(super) fn work(self: &Arc<Self>) {
        let mut value = Vec::new();
        loop {
            let due = self.shards.probe();
            match self.queue.next(due) {
                Next::Write(job) => self.write(job, &mut value),
                Next::Probe => {}
                Next::Stop => break,
            }
        }
        self.queue.ended();
    }

    fn write(self: &Arc<Self>, job: Job, value: &mut Vec<u8>) {
        let start = Instant::now();
        // Whatever a server's client does, writing goes on.
        let written = catch_unwind(AssertUnwindSafe(|| self.write_run(&job, value)));
        let written = written.unwrap_or(Written::Refused(Refusal::WriteFailed));
        let counters = &self.shards.counters;
        counters.write_micros.took(start.elapsed());
        match written {
            Written::Bytes(bytes) => {
                counters.writes.add(1);
                counters.write_bytes.add(bytes);
            }
            Written::Present => counters.present.add(1),
            Written::Refused(refusal) => counters.refused(refusal),
        }
        // The lease ends before anyone is told, so that a flush leaves no memory pinned.
        let Job {
            number,
            header,
            source,
        } = job;
        drop(source);
        self.queue.finished(number, &header);
    }

    fn write_run(self: &Arc<Self>, job: &Job, value: &mut Vec<u8>) -> Written {
        match self.try_write(job, value) {
            Ok(written) => written,
            Err(error) => {
                log::debug!("a run was not written: {error}");
                Written::Refused(match error.failure {
                    Failure::OutOfMemory => Refusal::NoSpace,
                    _ => Refusal::WriteFailed,
                })
            }
        }
    }

    fn try_write(self: &Arc<Self>, job: &Job, value: &mut Vec<u8>) -> Answer<Written> {
        let Job { header, source, .. } = job;
        let Some(ttl) = self.ttl(&header.terms) else {
            return Ok(Written::Refused(Refusal::Expired));
        };
        let home = RunName::of(header).and_then(|name| Some((name, self.shards.home(&name.last)?)));
        let Some((name, home)) = home else {
            return Ok(Written::Refused(Refusal::Unavailable));
        };
        if self.holds(&header.keys) {
            self.shards.known.add(&header.keys);
            return Ok(Written::Present);
        }
        let cipher = self.cipher(&header.namespace);
        if cipher.is_none() && self.key.is_some() {
            return Ok(Written::Refused(Refusal::WriteFailed));
        }
        encode(header, source, cipher.as_ref(), self.clock.now(), value).map_err(|error| {
            ValuesError::new(Failure::Other, format!("encoding a run: {error}"))
        })?;
        let run = name.value(&self.prefix);
        let bytes = value.len() as u64;
        let by = self.shards.deadline(bytes);
        self.shards.put(home, &[(&run, value)], ttl, by)?;
        // Only now do entries lead to it.
        let entries = Entry::all(header).map(|(key, entry)| {
            let name = entry_name(&self.prefix, &key);
            (key, name, entry.encode())
        });
        let entries = entries.collect::<Vec<_>>();
        let by = self.shards.deadline(0);
        let shares = self.shards.split(entries.iter().map(|(key, ..)| key));
        let set = Shards::each(shares, |Share { server, items }| {
            let own = items.iter().map(|&item| {
                let (_, name, entry) = &entries[item];
                (name.as_slice(), entry.as_slice())
            });
            self.shards.put(server, &own.collect::<Vec<_>>(), ttl, by)
        });
        set.into_iter().collect::<Answer<()>>()?;
        self.shards.known.add(&header.keys);
        Ok(Written::Bytes(bytes))
    }

    /// Deletes the entries of blocks, and the runs that these lead to, from all servers; how many blocks there were.
    pub(super) fn remove(&self, keys: &[BlockKey]) -> Result<usize> {
        let names = |header: &RunHeader| header.keys.iter().any(|key| keys.contains(key));
        let dropped = self.queue.purge(names);
        for _ in 0..dropped {
            self.shards.counters.refused(Refusal::Unavailable);
        }
        self.shards.known.forget(keys);
        let entries = self.entries(keys, self.shards.deadline(0));
        let runs = entries.into_iter().flatten().map(|entry| entry.run);
        let runs = runs.collect::<BTreeSet<_>>();
        let blocks = keys.iter().map(|key| entry_name(&self.prefix, key));
        // Values may lie where others passed a server over: all of them are told.
        let all = blocks.chain(runs.iter().map(|run| run.value(&self.prefix)));
        let all = all.collect::<Vec<_>>();
        let by = self.shards.deadline(0);
        let removed = Shards::each(self.shards.all(), |share| {
            let removed = self.shards.remove(share.server, &all, by);
            removed.map_err(|error| self.shards.error(share.server, &error))
        });
        let removed = removed.into_iter().collect::<Result<Vec<_>>>()?;
        let there = |block: usize| {
            removed
                .iter()
                .any(|server| server.get(block) == Some(&true))
        };
        Ok((0..keys.len()).filter(|&block| there(block)).count())
    }

    /// Drops what waits to be written of a namespace, or all.
    pub(super) fn forget(&self, namespace: Option<&BlockKey>) {
        let of = |header: &RunHeader| namespace.is_none_or(|wanted| *wanted == header.namespace);
        for _ in 0..self.queue.purge(of) {
            self.shards.counters.refused(Refusal::Unavailable);
        }
        self.shards.known.clear();
    }

    pub(super) fn stop(&self, deadline: Instant) -> bool {
        let (dropped, ended) = self.queue.stop(deadline);
        for _ in 0..dropped {
            self.shards.counters.refused(Refusal::Unavailable);
        }
        ended
    }
}
