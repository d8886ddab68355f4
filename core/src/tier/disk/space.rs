//! What is where on disk: the table of segments, the room in them, and how many bytes they take.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::record::FORMAT_VERSION;
use super::run::Place;
use super::segment::{Contents, Extent, FIRST_RECORD, Segment, contents_bytes};

/// Sealed segments that are put on stable storage together.
const SAVED_TOGETHER: usize = 4;

/// Where a segment is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Records are being appended.
    Active,
    /// Full; its last writers or its table of contents are under way.
    Sealing,
    /// Ended by a table of contents.
    Sealed,
}

#[derive(Debug)]
pub(super) struct SegmentState {
    pub(super) segment: Arc<Segment>,
    pub(super) phase: Phase,
    /// Size of the file in bytes.
    size: u64,
    /// Bytes of it given back to the file system.
    holes: u64,
    /// Where the next record goes.
    end: u64,
    /// Records written or being written whose bytes are not given back.
    live: usize,
    /// Records being written.
    writers: usize,
    /// All records ever written, for the table of contents.
    records: Vec<Extent>,
    /// The system could not save it: nothing more is written to it.
    failed: bool,
}

/// A segment that is to be ended by a table of contents.
#[derive(Debug)]
pub(super) struct SealJob {
    pub(super) segment: Arc<Segment>,
    pub(super) contents: Contents,
}

/// How the bytes of a record are given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Release {
    /// Its range becomes a hole.
    Punch,
    /// The segment holds nothing else: the file goes, and with it so many bytes.
    Unlink(u64),
}

/// How room for a record is made.
#[derive(Debug)]
pub(super) enum Growth {
    /// A new segment file of so many bytes.
    Create { id: u32, size: u64 },
    /// The newest one goes on, after growing to so many bytes.
    Resume { segment: Arc<Segment>, size: u64 },
}

/// The table of segments.
#[derive(Debug, Default)]
pub(super) struct Space {
    segments: BTreeMap<u32, SegmentState>,
    active: Option<u32>,
    /// Empty segments whose files could not be removed, and their sizes.
    doomed: Vec<(Arc<Segment>, u64)>,
    /// Full and written, to be sealed.
    to_seal: Vec<SealJob>,
    /// Sealed, but not known to be on stable storage: the checkpoint stays before them. Each with the number of its sealing,
    /// because a segment may go on and be sealed again while it is being saved.
    unsaved: BTreeMap<u32, u64>,
    sealings: u64,
    /// The id that the next segment gets; ids are never used twice.
    pub(super) next_id: u32,
}

impl Space {
    /// Adds a sealed segment as it was found on disk, with `live` records. The checkpoint stays before one that is not `saved`.
    pub(super) fn adopt(
        &mut self,
        segment: Arc<Segment>,
        size: u64,
        contents: Contents,
        live: usize,
        saved: bool,
    ) {
        let Contents { end, records, .. } = contents;
        if !saved {
            self.sealings += 1;
            self.unsaved.insert(segment.id, self.sealings);
        }
        let state = SegmentState {
            phase: Phase::Sealed,
            size,
            holes: 0,
            end,
            live,
            writers: 0,
            records,
            failed: false,
            segment,
        };
        self.segments.insert(state.segment.id, state);
    }

    /// Bytes that all segment files take.
    pub(super) fn used(&self) -> u64 {
        let segments = self.segments.values();
        let taken = segments.map(|state| state.size.saturating_sub(state.holes));
        let doomed = self.doomed.iter().map(|(_, size)| size);
        taken.sum::<u64>() + doomed.sum::<u64>()
    }

    /// How many segment files there are.
    pub(super) fn len(&self) -> usize {
        self.segments.len()
    }

    /// All segments, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &SegmentState> {
        self.segments.values()
    }

    /// Sets aside room for a record in the active segment, if there is enough.
    pub(super) fn reserve(&mut self, len: u64) -> Option<Place> {
        let state = self.segments.get_mut(&self.active?)?;
        let after = state.end + len + contents_bytes(state.records.len() + 1);
        if state.phase != Phase::Active || after > state.size {
            return None;
        }
        let extent = Extent {
            offset: state.end,
            len,
        };
        state.end += len;
        state.live += 1;
        state.writers += 1;
        state.records.push(extent);
        Some(Place {
            segment: Arc::clone(&state.segment),
            extent,
        })
    }

    /// Notes that a reserved record is written or given up. A full segment whose last writer this was is to be sealed.
    pub(super) fn finish_write(&mut self, place: &Place) {
        if let Some(state) = self.segments.get_mut(&place.segment.id) {
            state.writers -= 1;
            self.to_seal.extend(state.seal_job());
        }
    }

    /// Ends appending to the active segment. It is to be sealed now unless writers are still under way.
    pub(super) fn retire(&mut self) {
        let active = self.active.take();
        if let Some(state) = active.and_then(|id| self.segments.get_mut(&id)) {
            state.phase = Phase::Sealing;
            self.to_seal.extend(state.seal_job());
        }
    }

    /// A segment that is to be sealed now; each is given out once.
    pub(super) fn next_to_seal(&mut self) -> Option<SealJob> {
        let mut job = self.to_seal.pop()?;
        job.contents.saved_below = self.checkpoint();
        Some(job)
    }

    /// The segment was sealed at `size` bytes, or could not be sealed: it stays as it is then, readable, and its records are
    /// found page by page. Gives back the bytes of its file if it holds nothing: the file is to be unlinked.
    pub(super) fn sealed(&mut self, id: u32, size: Option<u64>) -> Option<u64> {
        let state = self.segments.get_mut(&id)?;
        state.phase = Phase::Sealed;
        state.size = size.unwrap_or(state.size);
        if state.live > 0 {
            if !state.failed {
                self.sealings += 1;
                self.unsaved.insert(id, self.sealings);
            }
            return None;
        }
        let size = state.size.saturating_sub(state.holes);
        self.forget(id);
        Some(size)
    }

    fn forget(&mut self, id: u32) {
        self.segments.remove(&id);
        self.unsaved.remove(&id);
    }

    /// The sealed segments that are to be put on stable storage now; none while they are few. A sync holds up what else is written,
    /// so that one for each segment would cost a good part of the disk's speed.
    pub(super) fn due_for_saving(&self) -> Vec<Arc<Segment>> {
        if self.unsaved.is_empty() || !self.unsaved.len().is_multiple_of(SAVED_TOGETHER) {
            return Vec::new();
        }
        let unsaved = self.unsaved.keys();
        unsaved
            .filter_map(|id| self.segments.get(id))
            .map(|state| Arc::clone(&state.segment))
            .collect()
    }

    /// The segments that have bytes which may not be on stable storage.
    pub(super) fn unsaved(&self) -> Vec<Arc<Segment>> {
        let segments = self.segments.iter();
        segments
            .filter(|(id, state)| state.phase != Phase::Sealed || self.unsaved.contains_key(id))
            .map(|(_, state)| Arc::clone(&state.segment))
            .collect()
    }

    /// The sealing of a segment that is not saved, if any; for [`Space::saved`].
    pub(super) fn sealing(&self, id: u32) -> Option<u64> {
        self.unsaved.get(&id).copied()
    }

    /// A segment was put on stable storage after `sealing` had been asked for: the checkpoint need not wait for it.
    pub(super) fn saved(&mut self, id: u32, sealing: Option<u64>) {
        if sealing.is_some() && self.sealing(id) == sealing {
            self.unsaved.remove(&id);
        }
    }

    /// The system could not save a segment: it takes nothing more, and ends once its writers are done.
    pub(super) fn fail(&mut self, id: u32) {
        if let Some(state) = self.segments.get_mut(&id) {
            state.failed = true;
            self.unsaved.remove(&id);
            if self.active == Some(id) {
                self.retire();
            }
        }
    }

    /// An empty segment's file could not be removed: its bytes count until it is.
    pub(super) fn doom(&mut self, segment: &Arc<Segment>, size: u64) {
        self.doomed.push((Arc::clone(segment), size));
    }

    /// The segments whose files are still to be removed, which is to be tried again.
    pub(super) fn take_doomed(&mut self) -> Vec<(Arc<Segment>, u64)> {
        std::mem::take(&mut self.doomed)
    }

    /// How to make room for a record of `len` bytes in segments of `segment_bytes`, and how many bytes more that takes.
    /// A segment that is to go on is set apart, so that it is not unlinked meanwhile.
    pub(super) fn plan(&mut self, len: u64, segment_bytes: u64) -> (Growth, u64) {
        let newest = self.segments.values_mut().next_back();
        if let Some(state) = newest
            && state.phase == Phase::Sealed
            && !state.failed
            && state.segment.version == FORMAT_VERSION
            && state.end <= segment_bytes / 2
            && state.end + len + contents_bytes(state.records.len() + 1) <= segment_bytes
        {
            state.phase = Phase::Sealing;
            let growth = Growth::Resume {
                segment: Arc::clone(&state.segment),
                size: segment_bytes,
            };
            return (growth, segment_bytes.saturating_sub(state.size));
        }
        let size = segment_bytes.max(FIRST_RECORD + len + contents_bytes(1));
        let id = self.next_id;
        (Growth::Create { id, size }, size)
    }

    /// A segment is ready for appending.
    pub(super) fn activate(&mut self, segment: Arc<Segment>, size: u64) {
        let id = segment.id;
        self.next_id = self.next_id.max(id.saturating_add(1));
        let state = self.segments.entry(id).or_insert(SegmentState {
            phase: Phase::Active,
            size,
            holes: 0,
            end: FIRST_RECORD,
            live: 0,
            writers: 0,
            records: Vec::new(),
            failed: false,
            segment,
        });
        state.phase = Phase::Active;
        state.size = size;
        self.active = Some(id);
    }

    /// A record's rows are gone and nobody reads it: says how its bytes are to be given back.
    pub(super) fn release(&mut self, place: &Place) -> Release {
        let id = place.segment.id;
        let Some(state) = self.segments.get_mut(&id) else {
            return Release::Unlink(0);
        };
        state.live = state.live.saturating_sub(1);
        if state.live == 0 && state.phase == Phase::Sealed {
            let bytes = state.size.saturating_sub(state.holes);
            self.forget(id);
            return Release::Unlink(bytes);
        }
        Release::Punch
    }

    /// A range was given back.
    pub(super) fn punched(&mut self, id: u32, len: u64) {
        if let Some(state) = self.segments.get_mut(&id) {
            state.holes += len;
        }
    }

    /// Segments below this id are saved and hold only records whose rows are written.
    pub(super) fn checkpoint(&self) -> u32 {
        let mut open = self.segments.iter().filter(|(id, state)| {
            state.phase != Phase::Sealed || state.failed || self.unsaved.contains_key(id)
        });
        let newest = self.segments.last_key_value();
        let first = open.next().or(newest).map(|(id, _)| *id);
        first.unwrap_or(self.next_id)
    }

    /// Whether there is a segment that the system could not save.
    pub(super) fn any_failed(&self) -> bool {
        self.segments.values().any(|state| state.failed)
    }

    /// Checks counts against the extents of the runs that live here, sorted by segment and offset.
    pub(super) fn validate(&self, runs: &[(u32, Extent)]) -> Result<(), String> {
        for pair in runs.windows(2) {
            if let [(first, one), (second, other)] = pair
                && first == second
                && one.end() > other.offset
            {
                return Err(format!("records overlap in segment {first:08x}: {pair:?}"));
            }
        }
        for (id, extent) in runs {
            let Some(state) = self.segments.get(id) else {
                return Err(format!("segment {id:08x} is missing"));
            };
            if extent.offset < FIRST_RECORD || extent.end() > state.end {
                return Err(format!(
                    "{extent:?} lies outside segment {id:08x}, which ends at {}",
                    state.end
                ));
            }
        }
        if let Some(id) = self
            .unsaved
            .keys()
            .find(|id| !self.segments.contains_key(id))
        {
            return Err(format!("segment {id:08x} is to be saved and is not there"));
        }
        for (id, state) in &self.segments {
            let live = runs.iter().filter(|(of, _)| of == id).count();
            if live > state.live || state.writers > state.live || state.holes > state.size {
                return Err(format!(
                    "{live} records live in segment {id:08x}: {state:?}"
                ));
            }
            if *id >= self.next_id {
                return Err(format!(
                    "segment {id:08x} is not below the next id {:08x}",
                    self.next_id
                ));
            }
        }
        Ok(())
    }
}

impl SegmentState {
    fn seal_job(&self) -> Option<SealJob> {
        (self.phase == Phase::Sealing && self.writers == 0).then(|| SealJob {
            segment: Arc::clone(&self.segment),
            contents: Contents {
                end: self.end,
                records: self.records.clone(),
                saved_below: 0,
            },
        })
    }
}
