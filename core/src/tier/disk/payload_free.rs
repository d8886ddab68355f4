//! L3 without a disk: the directory of the disk tier over runs that have a length and no bytes, for the simulator.
//!
//! What is admitted and which leaves go is decided by the same code. Room is made record by record, where the disk tier makes it by
//! segment file, and neither the index nor the segments' own pages take any.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::directory::Directory;
use super::files::{Files, SystemFiles};
use super::index::Row;
use super::run::{Place, Run};
use super::segment::{Extent, Segment};
use super::tenants::Tenants;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::key::BlockKey;
use crate::policy::EvictionPolicy;
use crate::run::{RunHeader, RunSource, RunTarget};
use crate::tier::{
    DurableTier, Flow, NamespaceUsage, PinnedRun, Put, ReadFailure, Refusal, Tier, TierId,
    TierUsage,
};

#[derive(Debug)]
struct State {
    directory: Directory,
    flow: Flow,
    /// Runs that were stored since someone asked.
    written: Vec<Arc<Run>>,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    capacity: u64,
    /// Bytes that a run takes.
    record: fn(&RunHeader) -> u64,
    clock: Clock,
    /// Where all runs lie: nothing looks there.
    segment: Arc<Segment>,
}

/// An L3 without payload. Sources for it have no pieces.
#[derive(Clone, Debug)]
pub(crate) struct PayloadFree(Arc<Inner>);

struct Pinned {
    inner: Arc<Inner>,
    run: Arc<Run>,
}

impl PayloadFree {
    /// An empty L3 of `capacity` bytes, of which a run takes as many as `record` says.
    ///
    /// # Errors
    /// [`Error::Io`] if the system has no null device.
    pub(crate) fn new(
        policy: Box<dyn EvictionPolicy>,
        capacity: u64,
        record: fn(&RunHeader) -> u64,
    ) -> Result<Self> {
        let files: Arc<dyn Files> = Arc::new(SystemFiles);
        let segment = Segment::nowhere(files)
            .map_err(|error| Error::io("opening the null device for a simulation", error))?;
        let clock = Clock::standing();
        // A trace names no tenants: there are no quotas, and no policies for them.
        let tenants = Tenants::new("lru", None, None, None)?;
        Ok(Self(Arc::new(Inner {
            state: Mutex::new(State {
                directory: Directory::new(policy, tenants, clock.clone(), None),
                flow: Flow::default(),
                written: Vec::new(),
            }),
            capacity,
            record,
            clock,
            segment: Arc::new(segment),
        })))
    }

    /// What went in and out so far.
    pub(crate) fn flow(&self) -> Flow {
        self.0.state.lock().flow
    }

    /// The blocks of runs that were stored since the last call.
    pub(crate) fn take_written(&self) -> Vec<BlockKey> {
        let written = std::mem::take(&mut self.0.state.lock().written);
        let keys = written.iter().flat_map(|run| run.header.keys.iter());
        keys.copied().collect()
    }

    /// Tells the policy that a request comes, and takes out what it says the time of is over; their headers.
    pub(crate) fn request(&self, now_ms: u64, category: u32) -> Vec<RunHeader> {
        let mut state = self.0.state.lock();
        let before = state.directory.totals().blocks;
        let gone = state.directory.request(now_ms, category);
        state.note_gone(before);
        gone.into_iter()
            .map(|gone| gone.run.header.clone())
            .collect()
    }

    /// Checks the directory.
    ///
    /// # Errors
    /// A description of the first thing that is wrong.
    #[cfg(test)]
    pub(crate) fn validate(&self) -> std::result::Result<(), String> {
        let state = self.0.state.lock();
        let taken = state.directory.totals().live_bytes;
        if taken > self.0.capacity {
            return Err(format!("{taken} bytes in a tier of {}", self.0.capacity));
        }
        state.directory.validate()
    }
}

impl State {
    fn note_gone(&mut self, before: usize) {
        self.flow.evicted += (before - self.directory.totals().blocks) as u64;
        // Uses are for the index, which there is not.
        drop(self.directory.take_uses());
    }

    /// Evicts until `bytes` more fit into `capacity`; false if they do not even so.
    fn make_room(&mut self, bytes: u64, capacity: u64) -> bool {
        let before = self.directory.totals().blocks;
        let fits = loop {
            let taken = self.directory.totals().live_bytes;
            let missing = (taken + bytes).saturating_sub(capacity);
            if missing == 0 {
                break true;
            }
            if self.directory.evict(missing).is_empty() {
                break false;
            }
        };
        self.note_gone(before);
        fits
    }
}

impl Inner {
    fn put(&self, header: &RunHeader) -> Put {
        let bytes = (self.record)(header);
        let mut state = self.state.lock();
        let fits = bytes <= self.capacity;
        let put = match state.directory.judge(header, bytes, fits, false) {
            Ok(parent) => {
                // What it hangs from must not go for it.
                let parent = parent.and_then(|row| state.directory.pin(row.slot));
                let put = if state.make_room(bytes, self.capacity) {
                    self.insert(&mut state, header, bytes);
                    Put::Stored
                } else {
                    Put::Refused(Refusal::NothingToEvict)
                };
                if let Some(parent) = parent {
                    state.directory.unpin(&parent);
                }
                put
            }
            Err(put) => put,
        };
        if let Put::Refused(Refusal::TooLarge | Refusal::NothingToEvict) = put {
            state.flow.refused += header.keys.len() as u64;
        }
        put
    }

    fn insert(&self, state: &mut State, header: &RunHeader, bytes: u64) {
        let before = state.directory.totals().blocks;
        let serial = state.directory.tick();
        let row = Row {
            serial,
            last_use: serial,
            hits: 0,
            segment: self.segment.id,
            offset: 0,
            header: header.clone(),
            header_bytes: 0,
            created: 0,
        };
        let extent = Extent {
            offset: 0,
            len: bytes,
        };
        let segment = Arc::clone(&self.segment);
        let run = state.directory.insert(row, Place { segment, extent });
        state.written.push(run);
        let blocks = state.directory.totals().blocks;
        state.flow.stored += (blocks - before) as u64;
        state.flow.peak = state.flow.peak.max(blocks);
    }
}

impl Tier for PayloadFree {
    fn id(&self) -> TierId {
        TierId::L3
    }

    fn contains(&self, key: &BlockKey) -> bool {
        self.0.state.lock().directory.live(key).is_some()
    }

    fn find(&self, key: &BlockKey) -> Option<(Arc<dyn PinnedRun>, usize)> {
        let mut state = self.0.state.lock();
        let row = state.directory.live(key)?;
        state.directory.touch(row.slot);
        let run = state.directory.pin(row.slot)?;
        drop(state);
        let inner = Arc::clone(&self.0);
        Some((Arc::new(Pinned { inner, run }), row.position as usize))
    }

    fn put(&self, header: &RunHeader, _source: &RunSource) -> Result<Put> {
        header.validate()?;
        Ok(self.0.put(header))
    }

    fn remove(&self, keys: &[BlockKey]) -> usize {
        let mut state = self.0.state.lock();
        let holders = keys.iter().map(|key| state.directory.holders(key));
        let mut slots = holders.flatten().collect::<Vec<_>>();
        slots.sort_unstable();
        slots.dedup();
        let gone = slots.into_iter();
        gone.filter_map(|slot| state.directory.remove(slot)).count()
    }
}

impl DurableTier for PayloadFree {
    fn clear(&self, namespace: Option<&BlockKey>) -> Result<usize> {
        let mut state = self.0.state.lock();
        let slots = state.directory.of_namespace(namespace).into_iter();
        Ok(slots
            .filter_map(|slot| state.directory.remove(slot))
            .count())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }

    fn usage(&self) -> TierUsage {
        let totals = self.0.state.lock().directory.totals();
        TierUsage {
            capacity: self.0.capacity,
            used: totals.live_bytes,
            runs: totals.runs,
            blocks: totals.blocks,
            ..TierUsage::default()
        }
    }

    fn namespaces(&self) -> Vec<NamespaceUsage> {
        Vec::new()
    }

    fn clock(&self) -> Clock {
        self.0.clock.clone()
    }
}

impl PinnedRun for Pinned {
    fn header(&self) -> &RunHeader {
        &self.run.header
    }

    fn read_slices(&self, _: Range<usize>, _: &RunTarget) -> Result<(), ReadFailure> {
        // There is nothing to read.
        Err(ReadFailure::Gone)
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pinned").field(&self.run.serial).finish()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.inner.state.lock().directory.unpin(&self.run);
    }
}
