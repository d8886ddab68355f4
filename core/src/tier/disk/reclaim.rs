//! Giving bytes back: eviction, deletes by the user, damaged runs. Rows go first, then readers are waited for, then the bytes go.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::directory::Gone;
use super::files::OpenMode;
use super::index::Index;
use super::run::{Place, Run};
use super::segment::{Segment, file_name};
use super::space::Release;
use super::{Inner, State};
use crate::error::{Error, Result};
use crate::key::BlockKey;
use crate::policy::Slot;
use crate::tier::ReadFailure;

impl State {
    /// Takes a run out of the directory that nobody deleted, but that is of no use any more.
    fn leave(&mut self, slot: Slot) -> Option<Gone> {
        let gone = self.directory.remove(slot)?;
        self.note_leaving(std::slice::from_ref(&gone));
        Some(gone)
    }

    /// The bytes of runs that nobody deleted stay for a while.
    fn note_leaving(&mut self, gone: &[Gone]) {
        let runs = gone
            .iter()
            .map(|gone| (gone.run.serial, Arc::clone(&gone.run)));
        self.leaving.extend(runs);
    }

    /// Runs that left the directory and may still be on disk.
    fn leaving_of(&self, wanted: impl Fn(&Run) -> bool) -> Vec<Arc<Run>> {
        let leaving = self.leaving.values();
        leaving.filter(|run| wanted(run)).cloned().collect()
    }
}

impl Inner {
    /// Evicts leaves of `bytes` bytes or more, if there are as many; the bytes that went.
    pub(super) fn evict(&self, bytes: u64) -> u64 {
        let (Ok(()), Ok(index)) = (self.check_owner(), self.index()) else {
            return 0;
        };
        let gone = {
            let mut state = self.state.lock();
            let gone = state.directory.evict(bytes);
            state.note_leaving(&gone);
            gone
        };
        let mut freed = 0;
        for Gone { run, expired, .. } in &gone {
            let len = run.place.extent.len;
            freed += len;
            if *expired {
                self.counters.expired(1);
            } else {
                self.counters.evicted(len);
            }
        }
        self.forget_evicted(&index, &gone);
        freed
    }

    fn forget_evicted(&self, index: &Index, gone: &[Gone]) {
        if !gone.is_empty()
            && let Err(error) = self.forget(index, gone)
        {
            log::warn!(
                "{}: rows of evicted runs stay until the next open: {error}",
                self.path.display()
            );
        }
    }

    /// Drops expired runs: those that hold any of these blocks, and at most `others` others; how many.
    pub(super) fn sweep(&self, index: &Index, keys: &[BlockKey], others: usize) -> usize {
        let mut gone = Vec::new();
        {
            let mut state = self.state.lock();
            for slot in state.directory.expired_holders(keys) {
                gone.extend(state.leave(slot));
            }
            for _ in 0..others {
                let Some(slot) = state.directory.expired() else {
                    break;
                };
                gone.extend(state.leave(slot));
            }
        }
        self.counters.expired(gone.len());
        self.forget_evicted(index, &gone);
        gone.len()
    }

    /// Evicts leaves of a tenant until it is within its quota; false if it is not and nothing of it can go.
    pub(super) fn trim_tenant(&self, index: &Index, tenant: u64) -> bool {
        let (gone, within) = {
            let mut state = self.state.lock();
            let (gone, within) = state.directory.trim(tenant);
            state.note_leaving(&gone);
            (gone, within)
        };
        for Gone { run, .. } in &gone {
            self.counters.evicted(run.place.extent.len);
            self.counters.evicted_for_quota();
        }
        self.forget_evicted(index, &gone);
        within
    }

    /// Sets what the runs of a tenant may take; what is over goes now, if it can.
    pub(super) fn set_quota(&self, tenant: u64, quota: Option<u64>) -> Result<()> {
        self.check_owner()?;
        if tenant == 0 {
            return Err(Error::invalid(
                "runs of tenant 0 belong to nobody and have no quota; give the session a salt",
            ));
        }
        let index = self.index()?;
        self.state.lock().directory.set_quota(tenant, quota);
        self.trim_tenant(&index, tenant);
        Ok(())
    }

    /// Deletes runs that hold any of these blocks; how many.
    pub(super) fn remove(&self, keys: &[BlockKey]) -> usize {
        let (Ok(()), Ok(index)) = (self.check_owner(), self.index()) else {
            return 0;
        };
        let mut gone = Vec::new();
        let leaving = {
            let mut state = self.state.lock();
            let flights = state.flights.cancel_keys(keys);
            while state.flights.any_open(&flights) {
                self.changed.wait(&mut state);
            }
            for key in keys {
                for slot in state.directory.holders(key) {
                    gone.extend(state.directory.remove(slot));
                }
            }
            state.leaving_of(|run| keys.iter().any(|key| run.header.keys.contains(key)))
        };
        if let Err(error) = self.erase(&index, &gone, &leaving) {
            log::error!("{}: deleting runs: {error}", self.path.display());
        }
        gone.len()
    }

    /// Deletes the runs of a namespace, or all; how many.
    pub(super) fn clear(&self, namespace: Option<&BlockKey>) -> Result<usize> {
        self.check_owner()?;
        let index = self.index()?;
        let mut gone = Vec::new();
        let leaving = {
            let mut state = self.state.lock();
            let flights = state.flights.cancel_namespace(namespace);
            while state.flights.any_open(&flights) {
                self.changed.wait(&mut state);
            }
            for slot in state.directory.of_namespace(namespace) {
                gone.extend(state.directory.remove(slot));
            }
            state.leaving_of(|run| namespace.is_none_or(|wanted| run.header.namespace == *wanted))
        };
        self.erase(&index, &gone, &leaving)?;
        Ok(gone.len())
    }

    /// Deletes on disk what the user deleted: when this returns, neither rows nor headers are left. That goes for runs that
    /// left the store before and are still on disk, too.
    fn erase(&self, index: &Index, gone: &[Gone], leaving: &[Arc<Run>]) -> Result<()> {
        self.counters.removed(gone.len());
        let runs = || gone.iter().map(|gone| &gone.run).chain(leaving);
        let mut outcome = if gone.is_empty() && leaving.is_empty() {
            Ok(())
        } else {
            self.drop_rows(index, runs())
        };
        for run in runs() {
            run.deleted.store(true, Ordering::Release);
            let segment = &run.place.segment;
            let erased = segment.erase_header(
                run.place.extent.offset,
                run.header_bytes as usize,
                &self.bounces,
            );
            if let Err(error) = erased {
                let context = format!("{}: erasing a deleted run", segment.path().display());
                outcome = Err(Error::io(context, error));
            }
        }
        self.give_back_unread(gone);
        outcome
            .and(self.remove_left_alone())
            .and(self.save_reclaimed())
    }

    /// Removes this store's segments that could not be read when it was opened: they may hold what was deleted, and would bring it
    /// back at the next open.
    fn remove_left_alone(&self) -> Result<()> {
        let left = std::mem::take(&mut *self.left_alone.lock());
        let mode = OpenMode {
            create: false,
            direct: false,
            read_only: false,
        };
        let mut outcome = Ok(());
        for id in left {
            let opened =
                Segment::open(&self.files, &self.path, self.store, id, mode, &self.bounces);
            match opened.and_then(|segment| segment.remove()) {
                Ok(()) => self.unlinked.store(true, Ordering::Release),
                // Another's, or too short for a header: nothing of this store is in it.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::InvalidData
                            | io::ErrorKind::UnexpectedEof
                            | io::ErrorKind::NotFound
                    ) => {}
                Err(error) => {
                    self.left_alone.lock().push(id);
                    let file = self.path.join(file_name(id));
                    let context = format!("{}: it may hold what was deleted", file.display());
                    outcome = Err(Error::io(context, error));
                }
            }
        }
        outcome
    }

    /// Puts on stable storage what was given back: a run that was evicted before its prompt was deleted does not come back
    /// after a power failure either.
    fn save_reclaimed(&self) -> Result<()> {
        for segment in self.segments() {
            if segment.has_unsaved_holes() {
                segment.sync().map_err(|error| {
                    Error::io(format!("{}: saving it", segment.path().display()), error)
                })?;
            }
        }
        if self.unlinked.swap(false, Ordering::AcqRel) {
            self.files.sync_directory(&self.path).map_err(|error| {
                self.unlinked.store(true, Ordering::Release);
                Error::io(format!("{}: saving it", self.path.display()), error)
            })?;
        }
        Ok(())
    }

    /// Deletes the rows of runs that are out of the directory, then gives back the bytes of those that nobody reads.
    fn forget(&self, index: &Index, gone: &[Gone]) -> Result<()> {
        let outcome = self.drop_rows(index, gone.iter().map(|gone| &gone.run));
        self.give_back_unread(gone);
        outcome
    }

    /// Deletes rows from the index, so that they are gone even if this process ends now.
    fn drop_rows<'a>(
        &self,
        index: &Index,
        runs: impl IntoIterator<Item = &'a Arc<Run>>,
    ) -> Result<()> {
        index
            .remove(runs.into_iter().map(|run| &**run))
            .and_then(|()| index.flush())
            .map_err(|error| self.index_error(error))
    }

    fn give_back_unread(&self, gone: &[Gone]) {
        for Gone { run, pinned, .. } in gone {
            if !pinned {
                self.give_back(&run.place, run.serial, run.header_bytes as usize);
            }
        }
    }

    /// Gives the bytes of a record back to the file system. Its rows are gone and nobody reads it. Where that does not work its
    /// header is erased: what has left the store must not be found by a search of the segment.
    pub(super) fn give_back(&self, place: &Place, serial: u64, header_bytes: usize) {
        if self.read_only {
            return;
        }
        let segment = &place.segment;
        let release = self.state.lock().space.release(place);
        let gone = match release {
            Release::Unlink(bytes) => self.unlink(segment, bytes),
            Release::Punch => match segment.punch(place.extent) {
                Ok(punched) => {
                    if punched {
                        let mut state = self.state.lock();
                        state.space.punched(segment.id, place.extent.len);
                    }
                    punched
                }
                Err(error) => {
                    let path = segment.path().display();
                    log::warn!("{path}: giving back {:?}: {error}", place.extent);
                    false
                }
            },
        };
        let zeroes =
            || segment.write_at(place.extent.offset, &vec![0; header_bytes], &self.bounces);
        match if gone { Ok(()) } else { zeroes() } {
            Ok(()) => drop(self.state.lock().leaving.remove(&serial)),
            Err(error) => {
                let path = segment.path().display();
                log::warn!("{path}: erasing a run that was given up: {error}");
            }
        }
    }

    /// Removes the file of an empty segment, of so many bytes; they count for as long as that fails. Whether it is gone.
    pub(super) fn unlink(&self, segment: &Arc<Segment>, bytes: u64) -> bool {
        let Err(error) = segment.remove() else {
            self.unlinked.store(true, Ordering::Release);
            return true;
        };
        log::warn!("{}: removing it: {error}", segment.path().display());
        if error.kind() != io::ErrorKind::NotFound {
            self.state.lock().space.doom(segment, bytes);
        }
        false
    }

    /// Ends a pin. The last one on a run that is gone gives its bytes back.
    pub(super) fn unpin(&self, run: &Run) {
        // In a forked child the bytes are the parent's, and its lock may never be released.
        if self.check_owner().is_ok() && self.state.lock().directory.unpin(run) {
            self.give_back(&run.place, run.serial, run.header_bytes as usize);
        }
    }

    /// Takes a run whose bytes could not be used out of the tier, once.
    pub(super) fn drop_damaged(&self, run: &Run, failure: ReadFailure) {
        let removed = {
            let mut state = self.state.lock();
            if state.directory.holds(run) {
                state.leave(run.slot)
            } else {
                None
            }
        };
        if let Some(gone) = removed {
            self.counters.dropped(failure);
            // Once the store is closed its rows stay; the next one finds the damage for itself.
            if let Ok(index) = self.index()
                && let Err(error) = self.forget(&index, &[gone])
            {
                log::warn!(
                    "{}: rows of a damaged run stay until the next open: {error}",
                    self.path.display()
                );
            }
        }
    }
}
