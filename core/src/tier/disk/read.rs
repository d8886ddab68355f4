//! Reading pinned runs of the disk tier.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Inner;
use super::bounce::BOUNCE_BYTES;
use super::call::{self, Part};
use super::record::padded;
use super::run::Run;
use crate::run::{RunHeader, RunTarget};
use crate::tier::{PinnedRun, ReadFailure, Span, WholeRead};

/// A run that is read; its pin ends when this is dropped.
pub(super) struct PinnedDiskRun {
    pub(super) inner: Arc<Inner>,
    pub(super) run: Arc<Run>,
}

impl fmt::Debug for PinnedDiskRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedDiskRun")
            .field("serial", &self.run.serial)
            .field("segment", &self.run.place.segment.id)
            .field("extent", &self.run.place.extent)
            .finish_non_exhaustive()
    }
}

impl PinnedRun for PinnedDiskRun {
    fn header(&self) -> &RunHeader {
        &self.run.header
    }

    fn read_slices(&self, range: Range<usize>, target: &RunTarget) -> Result<(), ReadFailure> {
        let run = &*self.run;
        if !target.fits(&run.header, &range) {
            log::error!("a read of slices {range:?} does not fit its target; nothing was read");
            return Err(ReadFailure::Io);
        }
        self.settle(self.read(range.clone(), target), range)
    }

    fn span(&self) -> Option<Span> {
        let place = &self.run.place;
        Some(Span {
            medium: u64::from(place.segment.id),
            start: place.extent.offset,
            end: place.extent.end(),
        })
    }

    fn read_together(&self, reads: &[WholeRead<'_>]) -> Vec<Result<(), ReadFailure>> {
        let own = reads.iter().map(|(run, target)| {
            let run: &dyn Any = &***run;
            run.downcast_ref::<Self>().map(|run| (run, *target))
        });
        let near = |(a, _): &(&Self, &RunTarget), (b, _): &(&Self, &RunTarget)| a.is_near(b);
        if let Some(reads) = own.collect::<Option<Vec<_>>>() {
            reads.chunk_by(near).flat_map(read_near).collect()
        } else {
            log::error!("runs of another tier were to be read together with this one's");
            vec![Err(ReadFailure::Io); reads.len()]
        }
    }
}

impl Drop for PinnedDiskRun {
    fn drop(&mut self) {
        self.inner.unpin(&self.run);
    }
}

/// Reads runs whole that lie behind one another, by one call.
fn read_near(near: &[(&PinnedDiskRun, &RunTarget)]) -> Vec<Result<(), ReadFailure>> {
    let all = |run: &PinnedDiskRun| 0..run.run.header.slices.len();
    let each = |(run, target): &(&PinnedDiskRun, &RunTarget)| run.read_slices(all(run), target);
    let fitting = near
        .iter()
        .all(|(run, target)| target.fits(&run.run.header, &all(run)));
    let (Some((first, _)), true, true) = (near.first(), near.len() > 1, fitting) else {
        return near.iter().map(each).collect();
    };
    let parts = near
        .iter()
        .map(|(run, target)| Part::new(&run.run, all(run), target));
    let Ok(outcomes) = call::read(&first.inner, &parts.collect::<Vec<_>>()) else {
        // What failed may be the bytes of one of them, or those in between.
        return near.iter().map(each).collect();
    };
    first.inner.counters.joined(near.len());
    let settled = near.iter().zip(outcomes);
    settled
        .map(|((run, _), outcome)| run.settle(outcome, all(run)))
        .collect()
}

impl PinnedDiskRun {
    /// Whether another record follows this one closely enough to be read with it.
    fn is_near(&self, next: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &next.inner)
            && self
                .span()
                .zip(next.span())
                .is_some_and(|(span, next)| span.is_near(&next))
    }

    /// Counts a read, and drops the run if its bytes are not what was written.
    fn settle(
        &self,
        outcome: Result<(), ReadFailure>,
        slices: Range<usize>,
    ) -> Result<(), ReadFailure> {
        let run = &*self.run;
        // The header of a deleted run is erased at once, pinned or not; to find it so is no damage.
        let outcome = outcome.map_err(|failure| {
            if run.deleted.load(Ordering::Acquire) {
                ReadFailure::Gone
            } else {
                failure
            }
        });
        match outcome {
            Ok(()) => {
                let lengths = run.stored().skip(slices.start).take(slices.len());
                self.inner.counters.read(lengths.map(u64::from).sum());
            }
            Err(ReadFailure::Gone) => {}
            Err(failure) => {
                log::warn!(
                    "slices {slices:?} of run {} in {} could not be used: {failure:?}",
                    run.serial,
                    run.place.segment.path().display()
                );
                self.inner.drop_damaged(run, failure);
            }
        }
        outcome
    }

    fn read(&self, range: Range<usize>, target: &RunTarget) -> Result<(), ReadFailure> {
        let mut first = range.start;
        while first < range.end {
            let last = self.group_end(first, range.end);
            let part = Part::new(&self.run, first..last, target);
            let outcomes = call::read(&self.inner, &[part])?;
            outcomes.into_iter().collect::<Result<(), _>>()?;
            first = last;
        }
        Ok(())
    }

    /// The end of the group of slices from `first` on that one call reads: as many as fit the working memory, one at least.
    fn group_end(&self, first: usize, end: usize) -> usize {
        let mut bytes = call::head(&self.run, first) as u64;
        let lengths = self.run.stored().skip(first);
        let count = lengths
            .take_while(|&len| {
                bytes += padded(len);
                bytes <= BOUNCE_BYTES as u64
            })
            .count();
        (first + count.max(1)).min(end)
    }
}
