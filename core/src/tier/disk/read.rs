//! Reading a pinned run: straight into the caller's memory where alignment allows it, and every slice verified.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Inner;
use super::bounce::BOUNCE_BYTES;
use super::files::IoMode;
use super::record::padded;
use super::run::Run;
use crate::codec::Codec;
use crate::memory::{Checksum, PAGE, Piece, Region, Regions, page_align};
use crate::run::{RunHeader, RunTarget};
use crate::tier::{PinnedRun, ReadFailure};

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
        if !fits(&run.header, &range, target) {
            log::error!("a read of slices {range:?} does not fit its target; nothing was read");
            return Err(ReadFailure::Io);
        }
        let outcome = self.read(range.clone(), target).map_err(|failure| {
            // The header is erased at once, pinned or not; to find it so is no damage.
            if run.deleted.load(Ordering::Acquire) {
                ReadFailure::Gone
            } else {
                failure
            }
        });
        match outcome {
            Ok(()) => {
                let lengths = run.stored().skip(range.start).take(range.len());
                self.inner.counters.read(lengths.map(u64::from).sum());
            }
            Err(ReadFailure::Gone) => {}
            Err(failure) => self.inner.drop_damaged(run, failure),
        }
        outcome
    }
}

impl Drop for PinnedDiskRun {
    fn drop(&mut self) {
        self.inner.unpin(&self.run);
    }
}

/// Whether the target has room for exactly the slices in `range`.
fn fits(header: &RunHeader, range: &Range<usize>, target: &RunTarget) -> bool {
    let (Some(lengths), Some(slices)) = (
        header.slices.get(range.clone()),
        target.slices.get(range.clone()),
    ) else {
        return false;
    };
    target.slices.len() == header.slices.len()
        && lengths.iter().zip(slices).all(|(&len, pieces)| {
            let mut sum = 0_usize;
            let inside = pieces.iter().all(|piece| {
                sum = sum.saturating_add(piece.len);
                let end = piece.offset.checked_add(piece.len);
                end.is_some_and(|end| piece.spare || end <= target.region.len())
            });
            inside && sum == len as usize
        })
}

/// The kind of failure that an I/O error is.
fn failure_of(error: &io::Error) -> ReadFailure {
    // A file that ends early lost bytes that were written.
    if error.kind() == io::ErrorKind::UnexpectedEof {
        ReadFailure::Corrupt
    } else {
        ReadFailure::Io
    }
}

impl PinnedDiskRun {
    fn read(&self, range: Range<usize>, target: &RunTarget) -> Result<(), ReadFailure> {
        let mut first = range.start;
        while first < range.end {
            let last = self.group_end(first, range.end);
            self.read_group(first..last, target)
                .inspect_err(|failure| {
                    log::warn!(
                        "slices {first}..{last} of run {} in {} could not be used: {failure:?}",
                        self.run.serial,
                        self.run.place.segment.path().display()
                    );
                })?;
            first = last;
        }
        Ok(())
    }

    /// The end of the group of slices from `first` on that one call reads: as many as fit the working memory, one at least.
    fn group_end(&self, first: usize, end: usize) -> usize {
        let mut bytes = self.header_bytes(first) as u64;
        let lengths = self.run.stored().skip(first);
        let count = lengths
            .take_while(|&len| {
                bytes += padded(len);
                bytes <= BOUNCE_BYTES as u64
            })
            .count();
        (first + count.max(1)).min(end)
    }

    /// Bytes of the header that are read together with slices from `first` on: none if it was read before, or does not lie
    /// right before them.
    fn header_bytes(&self, first: usize) -> usize {
        if first == 0 && self.run.sums.get().is_none() {
            self.run.header_bytes as usize
        } else {
            0
        }
    }

    /// The checksums of the slices, out of the first `head` bytes of a region that a read brought in; if there are none, they are
    /// known or read now.
    fn sums(&self, region: &Region, head: usize) -> Result<&[u64], ReadFailure> {
        let run = &*self.run;
        if let Some(sums) = run.sums.get() {
            return Ok(sums);
        }
        let segment = &run.place.segment;
        let offset = run.place.extent.offset;
        let record = if head > 0 {
            let mut bytes = vec![0; head];
            region.read(0, &mut bytes);
            segment.parse_record(offset, &bytes)
        } else {
            segment
                .read_record(offset, &self.inner.bounces)
                .map_err(|error| failure_of(&error))?
        };
        // It must be the one that was written for this run.
        let record = record
            .filter(|record| record.identity.serial == run.serial && record.header == run.header)
            .ok_or(ReadFailure::Corrupt)?;
        Ok(run.sums.get_or_init(|| record.sums))
    }

    fn read_group(&self, slices: Range<usize>, target: &RunTarget) -> Result<(), ReadFailure> {
        let exact = self.run.header.terms.codec == Codec::Raw;
        if exact && self.is_aligned(&slices, target) {
            match self.read_straight(slices.clone(), target) {
                // The system asks for more alignment than it said.
                Err(Failed::Unaligned) => {}
                Err(Failed::Read(failure)) => return Err(failure),
                Ok(()) => return Ok(()),
            }
        }
        self.read_and_copy(slices, target)
    }

    /// Whether the pieces of these slices can be read into as they are.
    fn is_aligned(&self, slices: &Range<usize>, target: &RunTarget) -> bool {
        let IoMode::Direct { memory, offset } = self.run.place.segment.mode() else {
            return true;
        };
        let pieces = target.slices.get(slices.clone()).unwrap_or_default();
        pieces
            .iter()
            .flatten()
            .all(|piece| piece.offset.is_multiple_of(memory) && piece.len.is_multiple_of(offset))
    }

    fn read_straight(&self, range: Range<usize>, target: &RunTarget) -> Result<(), Failed> {
        let run = &*self.run;
        let lengths = run.header.slices.get(range.clone()).unwrap_or_default();
        let targets = target.slices.get(range.clone()).unwrap_or_default();
        // The spare region takes the header, then one page of it all padding. Discarded bytes get places of their own, slice by
        // slice: they are verified after all slices of this call were read.
        let head = self.header_bytes(range.start);
        let padding_at = head;
        let mut spare_bytes = head + PAGE;
        let mut vectors = vec![Piece {
            spare: true,
            offset: 0,
            len: head,
        }];
        let mut slices = Vec::with_capacity(targets.len());
        for (position, (&len, pieces)) in lengths.iter().zip(targets).enumerate() {
            let from = vectors.len();
            let mut discarded = 0;
            vectors.extend(pieces.iter().map(|piece| {
                if piece.spare {
                    discarded = discarded.max(piece.offset + piece.len);
                }
                Piece {
                    offset: piece.offset + if piece.spare { spare_bytes } else { 0 },
                    ..*piece
                }
            }));
            spare_bytes += page_align(discarded);
            slices.push(from..vectors.len());
            let padding = padded(len) as usize - len as usize;
            if padding > 0 && position + 1 < lengths.len() {
                vectors.push(Piece {
                    spare: true,
                    offset: padding_at,
                    len: padding,
                });
            }
        }
        let spare = self.inner.bounces.take(spare_bytes).map_err(|_| IO)?;
        let regions = Regions {
            main: &target.region,
            spare: &spare.region,
        };
        let segment = &run.place.segment;
        let offset = run.slice_offset(range.start) - head as u64;
        segment
            .read_pieces(offset, regions, &vectors)
            .map_err(|error| {
                let direct = matches!(segment.mode(), IoMode::Direct { .. });
                if direct && error.kind() == io::ErrorKind::InvalidInput {
                    Failed::Unaligned
                } else {
                    Failed::Read(failure_of(&error))
                }
            })?;
        let sums = self.sums(&spare.region, head).map_err(Failed::Read)?;
        for (slice, index) in slices.into_iter().zip(range) {
            let mut hasher = Checksum::default();
            for piece in vectors.get(slice).unwrap_or_default() {
                regions
                    .of(piece)
                    .hash_into(&mut hasher, piece.offset, piece.len);
            }
            if sums.get(index) != Some(&hasher.finish()) {
                return Err(Failed::Read(ReadFailure::Corrupt));
            }
        }
        Ok(())
    }

    /// Reads into working memory, verifies there, and copies or decodes what is kept to where it goes.
    fn read_and_copy(&self, range: Range<usize>, target: &RunTarget) -> Result<(), ReadFailure> {
        let run = &*self.run;
        let lengths = run.stored().skip(range.start).take(range.len());
        let head = self.header_bytes(range.start);
        let bytes = head + lengths.clone().map(padded).sum::<u64>() as usize;
        let bounce = self
            .inner
            .bounces
            .take(bytes)
            .map_err(|_| ReadFailure::Io)?;
        run.place
            .segment
            .read_region(
                run.slice_offset(range.start) - head as u64,
                &bounce.region,
                0,
                bytes,
            )
            .map_err(|error| failure_of(&error))?;
        let sums = self.sums(&bounce.region, head)?;
        let mut at = head;
        for (len, index) in lengths.zip(range) {
            let mut hasher = Checksum::default();
            bounce.region.hash_into(&mut hasher, at, len as usize);
            if sums.get(index) != Some(&hasher.finish()) {
                return Err(ReadFailure::Corrupt);
            }
            if let Some(pieces) = target.slices.get(index) {
                let codec = run.header.terms.codec;
                codec.decode(&bounce.region, at, &target.region, pieces);
            }
            at += padded(len) as usize;
        }
        Ok(())
    }
}

/// Why a read straight into the target did not work.
enum Failed {
    /// The target's alignment does not do after all.
    Unaligned,
    Read(ReadFailure),
}

const IO: Failed = Failed::Read(ReadFailure::Io);
