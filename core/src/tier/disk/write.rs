//! Storing a run: admit, reserve, write, rows, visible. Nothing is visible before its bytes and rows are written.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::index::{Index, Meta, Row};
use super::payload::Form;
use super::record::{header_bytes, record_bytes};
use super::run::{Place, Run};
use super::segment::{FIRST_RECORD, Segment, contents_bytes};
use super::space::{Growth, SealJob};
use super::{Inner, UNSAVED_USES};
use crate::error::{Error, Result};
use crate::key::BlockKey;
use crate::run::{RunHeader, RunSource};
use crate::tier::{Put, Refusal};
use foldhash::fast::RandomState;

/// Records of so many bytes are read without their header while the process that wrote them lives. A smaller one is read together
/// with its header, and its checksums would be a good part of what the directory holds of it.
const SUMS_KEPT_FROM: u64 = 1 << 20;

/// The most expired runs that one put drops beside those in its way.
const SWEPT_AT_ONCE: usize = 16;

/// An admitted put; when dropped, others may put the same keys, and its parent may be evicted again.
struct Ticket<'a> {
    inner: &'a Inner,
    id: u64,
    keys: &'a [BlockKey],
    /// Pinned: an evicted parent would leave what is written now without a way to it.
    parent: Option<Arc<Run>>,
    /// Whose quota the record counts against until it is listed, and its bytes.
    tenant: u64,
    bytes: u64,
    /// The put of the parent, where that is still under way.
    follows: Option<u64>,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        {
            let mut state = self.inner.state.lock();
            state.flights.end(self.id, self.keys);
            state.directory.tenants.end(self.tenant, self.bytes);
        }
        if let Some(parent) = &self.parent {
            self.inner.unpin(parent);
        }
        self.inner.changed.notify_all();
    }
}

enum Admission<'a> {
    Ticket(Ticket<'a>),
    Done(Put),
}

impl Inner {
    /// Stores a run. A second put of any of its blocks waits for the first and then looks again. A put of what follows it
    /// may begin after `admitted` was called: its bytes are then written at the same time, and published in order.
    pub(super) fn put(
        &self,
        header: &RunHeader,
        source: &RunSource,
        admitted: &dyn Fn(),
        form: Form,
    ) -> Result<Put> {
        self.check_owner()?;
        validate(header, source, form)?;
        if self.read_only {
            self.counters.refused(Refusal::Unavailable);
            return Ok(Put::Refused(Refusal::Unavailable));
        }
        let index = self.index()?;
        let header = &RunHeader {
            terms: header.terms.stamped(self.clock.now()),
            ..header.clone()
        };
        self.sweep(&index, &header.keys, SWEPT_AT_ONCE);
        let put = match self.admit(header)? {
            Admission::Done(put) => put,
            Admission::Ticket(mut ticket) => {
                admitted();
                match self.store(&mut ticket, &index, header, source, form) {
                    Ok(()) => Put::Stored,
                    Err(refusal) => Put::Refused(refusal),
                }
            }
        };
        self.seal_full();
        if let Put::Refused(refusal) = put {
            self.counters.refused(refusal);
        }
        if let Err(error) = self.save_uses(&index, UNSAVED_USES) {
            log::warn!("{}: saving uses: {error}", self.path.display());
        }
        Ok(put)
    }

    fn admit<'a>(&'a self, header: &'a RunHeader) -> Result<Admission<'a>> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return Err(Error::Closed);
            }
            if !state.flights.any_of(&header.keys) {
                break;
            }
            self.changed.wait(&mut state);
        }
        let follows = state.flights.of(&header.parent);
        let least = FIRST_RECORD + record_bytes(header) + contents_bytes(1);
        let fits = least + state.index_bytes <= self.capacity;
        let (tenant, bytes) = (header.terms.tenant, record_bytes(header));
        let judged = state
            .directory
            .judge(header, bytes, fits, follows.is_some());
        let parent = match judged {
            Ok(parent) => parent,
            Err(put) => return Ok(Admission::Done(put)),
        };
        let follows = follows.filter(|_| parent.is_none());
        let parent = parent.and_then(|row| state.directory.pin(row.slot));
        let id = state.flights.begin(header.namespace, &header.keys);
        state.directory.tenants.begin(tenant, bytes);
        drop(state);
        Ok(Admission::Ticket(Ticket {
            inner: self,
            id,
            keys: &header.keys,
            parent,
            tenant,
            bytes,
            follows,
        }))
    }

    fn store(
        &self,
        ticket: &mut Ticket<'_>,
        index: &Index,
        header: &RunHeader,
        source: &RunSource,
        form: Form,
    ) -> Result<(), Refusal> {
        // Without an answer from the system, writing decides.
        let free = self.files.free_bytes(&self.path).unwrap_or(u64::MAX);
        if free < self.free_reserve {
            return Err(self.is_full("the free-space reserve is reached"));
        }
        if !self.trim_tenant(index, ticket.tenant) {
            return Err(Refusal::OverQuota);
        }
        let (place, serial) = self.reserve(index, record_bytes(header))?;
        let row = Row {
            serial,
            last_use: serial,
            hits: 0,
            segment: place.segment.id,
            offset: place.extent.offset,
            header: header.clone(),
            header_bytes: header_bytes(header.keys.len(), header.slices.len()) as u32,
            created: match header.terms.born {
                0 => self.clock.now(),
                born => born,
            },
        };
        let written = self
            .write_record(&row, &place, source, form)
            .map_err(|error| self.refuse("writing a run", &error))
            .and_then(|sums| {
                self.await_parent(ticket, header)?;
                index
                    .insert(&row)
                    .map_err(|error| self.refuse("writing the rows of a run", &error.into()))?;
                Ok(sums)
            });
        let sums = match written {
            Ok(sums) => sums,
            Err(refusal) => {
                self.abandon(index, &row, &place);
                return Err(refusal);
            }
        };
        let mut state = self.state.lock();
        if state.flights.is_cancelled(ticket.id) {
            drop(state);
            self.abandon(index, &row, &place);
            return Err(Refusal::Unavailable);
        }
        state.space.finish_write(&place);
        let bytes = place.extent.len;
        let run = state.directory.insert(row, place);
        drop(state);
        if bytes >= SUMS_KEPT_FROM {
            run.sums.get_or_init(|| sums);
        }
        self.counters.written(bytes);
        if self.full.load(Ordering::Relaxed) && self.full.swap(false, Ordering::Relaxed) {
            log::info!(
                "{}: there is room again, runs are stored",
                self.path.display()
            );
        }
        Ok(())
    }

    /// Says once that the disk is full: until there is room, runs are refused and reads go on.
    fn is_full(&self, why: &str) -> Refusal {
        if !self.full.swap(true, Ordering::Relaxed) {
            log::warn!(
                "{}: {why}; runs are refused until there is room",
                self.path.display()
            );
        }
        Refusal::NoSpace
    }

    /// Logs why a run is refused, and says which refusal it is.
    fn refuse(&self, what: &str, error: &io::Error) -> Refusal {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                self.is_full("the disk is full")
            }
            _ => {
                log::warn!("{}: {what}: {error}", self.path.display());
                Refusal::WriteFailed
            }
        }
    }

    /// Waits for the put that the parent is written by. Rows follow the order of the chain.
    fn await_parent(&self, ticket: &mut Ticket<'_>, header: &RunHeader) -> Result<(), Refusal> {
        let Some(put) = ticket.follows else {
            return Ok(());
        };
        let mut state = self.state.lock();
        while state.flights.any_open(&[put]) {
            self.changed.wait(&mut state);
        }
        let row = state.directory.locate(&header.parent);
        ticket.parent = row.and_then(|row| state.directory.pin(row.slot));
        match ticket.parent {
            Some(_) => Ok(()),
            None => Err(Refusal::ParentMissing),
        }
    }

    /// Gives up a reserved record: no row, no header and no bytes of it stay.
    fn abandon(&self, index: &Index, row: &Row, place: &Place) {
        let head = row.header_bytes as usize;
        let cleaned = index
            .remove_unread(&[row.serial])
            .and_then(|()| index.flush())
            .map_err(io::Error::from)
            .and_then(|()| {
                let segment = &place.segment;
                segment.erase_header(place.extent.offset, head, &self.bounces)
            });
        if let Err(error) = cleaned {
            log::warn!(
                "{}: cleaning up after a run that was not stored: {error}",
                place.segment.path().display()
            );
        }
        self.state.lock().space.finish_write(place);
        self.give_back(place, row.serial, head);
    }

    /// Sets aside room for a record, in a new segment if need be, evicting leaves if need be.
    fn reserve(&self, index: &Index, len: u64) -> Result<(Place, u64), Refusal> {
        let mut state = self.state.lock();
        loop {
            if let Some(place) = state.space.reserve(len) {
                let serial = state.directory.tick();
                return Ok((place, serial));
            }
            if state.growing {
                self.changed.wait(&mut state);
                continue;
            }
            state.growing = true;
            state.space.retire();
            drop(state);
            let grown = self.grow(index, len);
            state = self.state.lock();
            state.growing = false;
            self.changed.notify_all();
            grown?;
        }
    }

    /// Makes an active segment with room for a record of `len` bytes.
    fn grow(&self, index: &Index, len: u64) -> Result<(), Refusal> {
        let (growth, bytes) = self.state.lock().space.plan(len, self.segment_bytes);
        let outcome = self
            .make_room(index, bytes)
            .and_then(|()| self.grow_by(index, &growth));
        if let (Err(_), Growth::Resume { segment, .. }) = (&outcome, &growth) {
            let empty = self.state.lock().space.sealed(segment.id, None);
            if let Some(bytes) = empty {
                self.unlink(segment, bytes);
            }
        }
        outcome
    }

    /// Evicts until `bytes` more fit into the capacity, and checks the free-space reserve.
    fn make_room(&self, index: &Index, bytes: u64) -> Result<(), Refusal> {
        let doomed = self.state.lock().space.take_doomed();
        for (segment, bytes) in doomed {
            self.unlink(&segment, bytes);
        }
        let index_bytes = index.bytes();
        let free = self.files.free_bytes(&self.path).unwrap_or(u64::MAX);
        let mut first = true;
        loop {
            let missing = {
                let mut state = self.state.lock();
                state.index_bytes = index_bytes;
                let used = state.space.used() + index_bytes;
                (used + bytes).saturating_sub(self.capacity)
            };
            // What is evicted is free afterwards.
            if first && (free + missing).saturating_sub(bytes) < self.free_reserve {
                return Err(self.is_full("the free-space reserve is reached"));
            }
            first = false;
            if missing == 0 {
                return Ok(());
            }
            if self.evict(missing) == 0 {
                return Err(Refusal::NothingToEvict);
            }
        }
    }

    fn grow_by(&self, index: &Index, growth: &Growth) -> Result<(), Refusal> {
        let refuse = |error: io::Error| self.refuse("making room", &error);
        let (segment, size) = match growth {
            Growth::Create { id, size } => {
                let (id, size) = (*id, *size);
                // Before the file is there: an id is never given out twice.
                index
                    .set_meta(Meta::NextSegment, u64::from(id) + 1)
                    .map_err(|error| refuse(error.into()))?;
                let path = &self.path;
                let made = Segment::create(
                    &self.files,
                    path,
                    self.store,
                    id,
                    size,
                    self.direct,
                    &self.bounces,
                );
                let segment = made.map_err(refuse)?;
                if self.durable {
                    self.files.sync_directory(path).map_err(refuse)?;
                }
                (Arc::new(segment), size)
            }
            Growth::Resume { segment, size } => {
                segment.preallocate(*size).map_err(refuse)?;
                (Arc::clone(segment), *size)
            }
        };
        self.state.lock().space.activate(segment, size);
        Ok(())
    }

    /// Seals the segments that are full and written. Puts do so when they are done, so that no run waits for it.
    pub(super) fn seal_full(&self) {
        loop {
            let Some(job) = self.state.lock().space.next_to_seal() else {
                return;
            };
            self.seal(&job);
        }
    }

    /// Ends a full segment with its table of contents. Every few segments, they are put on stable storage and the checkpoint moves.
    fn seal(&self, job: &SealJob) {
        let id = job.segment.id;
        let size = match job.segment.seal(&job.contents, &self.bounces) {
            Ok(size) => Some(size),
            Err(error) => {
                log::warn!("{}: sealing it: {error}", job.segment.path().display());
                None
            }
        };
        let (empty, due) = {
            let mut state = self.state.lock();
            let empty = state.space.sealed(id, size);
            (empty, state.space.due_for_saving())
        };
        if let Some(bytes) = empty {
            self.unlink(&job.segment, bytes);
        }
        if due.is_empty() {
            return;
        }
        for segment in due {
            if let Err(error) = self.save(&segment) {
                log::warn!("{error}");
            }
        }
        let checkpoint = self.state.lock().space.checkpoint();
        let moved = self.index().and_then(|index| {
            index.sync()?;
            index
                .set_meta(Meta::Checkpoint, u64::from(checkpoint))
                .map_err(|error| self.index_error(error))
        });
        if let Err(error) = moved {
            log::warn!("{}: moving the checkpoint: {error}", self.path.display());
        }
    }

    /// Puts a segment on stable storage. One that cannot be takes nothing more.
    pub(super) fn save(&self, segment: &Segment) -> Result<()> {
        let sealing = self.state.lock().space.sealing(segment.id);
        let saved = segment.sync();
        let mut state = self.state.lock();
        match saved {
            Ok(()) => state.space.saved(segment.id, sealing),
            Err(_) => state.space.fail(segment.id),
        }
        drop(state);
        saved.map_err(|error| Error::io(format!("{}: saving it", segment.path().display()), error))
    }
}

/// Checks that a source has exactly the bytes that a header announces.
fn validate(header: &RunHeader, source: &RunSource, form: Form) -> Result<()> {
    header.validate()?;
    let keys = header.keys.iter().collect::<HashSet<_, RandomState>>();
    if keys.len() != header.keys.len() || keys.contains(&header.parent) {
        return Err(Error::invalid("a run names the same block twice"));
    }
    source.check(header, |len| match form {
        Form::Given => len,
        Form::Stored => header.terms.codec.stored_bytes(len),
    })
}
