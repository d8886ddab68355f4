//! Reading all that the tier holds, so that what is damaged is dropped now and not when it is asked for.

use std::sync::Arc;

use super::DiskTier;
use super::read::PinnedDiskRun;
use crate::error::Result;
use crate::memory::{PAGE, Piece, Region};
use crate::run::RunTarget;
use crate::tier::PinnedRun;

/// What reading everything found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Runs read.
    pub runs: usize,
    /// Bytes of their payload, as it was given.
    pub bytes: u64,
    /// Runs that could not be used, and are gone.
    pub dropped: usize,
}

impl DiskTier {
    /// Reads every run and drops those that are not what was written. `progress` hears the payload bytes done and in all. Runs
    /// that others add or drop meanwhile may be left out.
    ///
    /// # Errors
    /// [`crate::Error::Closed`], [`crate::Error::Forked`], [`crate::Error::Io`] if memory cannot be had.
    pub fn scrub(&self, mut progress: impl FnMut(u64, u64)) -> Result<Scrubbed> {
        self.inner.check_owner()?;
        self.inner.index()?;
        let runs = {
            let state = self.inner.state.lock();
            let runs = state.directory.runs();
            let each = runs.map(|run| (run.slot, run.serial, run.header.payload_bytes()));
            each.collect::<Vec<_>>()
        };
        let total = runs.iter().map(|(_, _, bytes)| bytes).sum();
        let region = Arc::new(Region::new(PAGE)?);
        let mut found = Scrubbed::default();
        for (slot, serial, bytes) in runs {
            // Pinned as a read pins it, but no use: what is checked is not younger for it.
            let pinned = self.inner.state.lock().directory.pin(slot);
            let pinned = pinned.map(|run| PinnedDiskRun {
                inner: Arc::clone(&self.inner),
                run,
            });
            if let Some(pinned) = pinned.filter(|pinned| pinned.run.serial == serial) {
                found.dropped += usize::from(!is_sound(&pinned, &region));
                found.runs += 1;
            }
            found.bytes += bytes;
            progress(found.bytes, total);
        }
        Ok(found)
    }
}

/// Reads a run slice by slice; nothing of it is kept.
fn is_sound(run: &dyn PinnedRun, region: &Arc<Region>) -> bool {
    let header = run.header();
    let discard = |&len: &u32| {
        vec![Piece {
            spare: true,
            offset: 0,
            len: len as usize,
        }]
    };
    let target = RunTarget {
        region: Arc::clone(region),
        lease: None,
        slices: header.slices.iter().map(discard).collect(),
    };
    (0..header.slices.len()).all(|slice| run.read_slices(slice..slice + 1, &target).is_ok())
}
