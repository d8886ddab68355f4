//! One read of slices of one run, or of several runs that lie near each other: straight into the callers' memory where alignment
//! allows it, and every slice verified.

use std::io;
use std::ops::Range;

use super::Inner;
use super::files::IoMode;
use super::record::padded;
use super::run::Run;
use crate::codec::Codec;
use crate::memory::{Checksum, PAGE, Piece, Region, Regions, page_align};
use crate::run::RunTarget;
use crate::tier::ReadFailure;

/// Consecutive slices of a run and where they go.
#[derive(Debug)]
pub(super) struct Part<'a> {
    run: &'a Run,
    slices: Range<usize>,
    target: &'a RunTarget,
    /// Bytes of the header that are read with them: none if it was read before, or does not lie right before them.
    head: usize,
}

/// What became of each part of a read.
pub(super) type Outcomes = Vec<Result<(), ReadFailure>>;

/// Why a read straight into the targets did not work.
enum Failed {
    /// The targets' alignment does not do after all.
    Unaligned,
    Read(ReadFailure),
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

/// Bytes of the header that are to be read together with slices from `first` on.
pub(super) fn head(run: &Run, first: usize) -> usize {
    if first == 0 && run.sums.get().is_none() {
        run.header_bytes as usize
    } else {
        0
    }
}

/// Reads parts of runs that lie behind one another in one segment, by one call.
///
/// # Errors
/// [`ReadFailure`] if the call failed: nothing is known of any part then.
pub(super) fn read(inner: &Inner, parts: &[Part<'_>]) -> Result<Outcomes, ReadFailure> {
    // Before any working memory is taken for the payload.
    for part in parts {
        part.learn_sums(inner)?;
    }
    if parts.iter().all(Part::is_straight) {
        match read_straight(inner, parts) {
            // The system asks for more alignment than it said.
            Err(Failed::Unaligned) => {}
            Err(Failed::Read(failure)) => return Err(failure),
            Ok(outcomes) => return Ok(outcomes),
        }
    }
    read_and_copy(inner, parts)
}

impl<'a> Part<'a> {
    pub(super) fn new(run: &'a Run, slices: Range<usize>, target: &'a RunTarget) -> Self {
        Self {
            run,
            head: head(run, slices.start),
            slices,
            target,
        }
    }

    /// Where its bytes begin in the segment.
    fn start(&self) -> u64 {
        self.run.slice_offset(self.slices.start) - self.head as u64
    }

    /// Where they end, padding included.
    fn end(&self) -> u64 {
        let bytes = self.stored().map(padded).sum::<u64>();
        self.run.slice_offset(self.slices.start) + bytes
    }

    /// Bytes of each slice on disk, padding excluded.
    fn stored(&self) -> impl Iterator<Item = u32> + Clone {
        let stored = self.run.stored();
        stored.skip(self.slices.start).take(self.slices.len())
    }

    fn targets(&self) -> &'a [Vec<Piece>] {
        let slices = self.target.slices.get(self.slices.clone());
        slices.unwrap_or_default()
    }

    /// Whether it can be read into its target's pieces as they are.
    fn is_straight(&self) -> bool {
        if self.run.header.terms.codec != Codec::Raw {
            return false;
        }
        let IoMode::Direct { memory, offset } = self.run.place.segment.mode() else {
            return true;
        };
        let mut pieces = self.targets().iter().flatten();
        let first = self.target.region.address();
        pieces.all(|piece| {
            let at = if piece.spare { 0 } else { first } + piece.offset;
            at.is_multiple_of(memory) && piece.len.is_multiple_of(offset)
        })
    }

    /// Reads the header if the checksums are neither known nor about to come with the slices.
    fn learn_sums(&self, inner: &Inner) -> Result<(), ReadFailure> {
        let run = self.run;
        if self.head > 0 || run.sums.get().is_some() {
            return Ok(());
        }
        let segment = &run.place.segment;
        let record = segment.read_record(run.place.extent.offset, &inner.bounces);
        let record = record.map_err(|error| failure_of(&error))?;
        run.learn(record).map(|_| ())
    }

    /// The checksums of the slices; out of the header at byte `at` of a region, if it came along.
    fn sums(&self, region: &Region, at: usize) -> Result<&'a [u64], ReadFailure> {
        let run = self.run;
        if let Some(sums) = run.sums.get() {
            return Ok(sums);
        }
        let mut bytes = vec![0; self.head];
        region.read(at, &mut bytes);
        let offset = run.place.extent.offset;
        run.learn(run.place.segment.parse_record(offset, &bytes))
    }
}

/// Where the bytes of a part are once they were read straight: its header in the spare memory, and the vectors of each slice.
struct Landed {
    head: usize,
    slices: Vec<Range<usize>>,
}

fn read_straight(inner: &Inner, parts: &[Part<'_>]) -> Result<Outcomes, Failed> {
    let Some(first) = parts.first() else {
        return Ok(Vec::new());
    };
    // The spare region begins with room for all padding and gaps, which overwrite each other. Headers and discarded bytes get
    // places of their own: they are looked at after all was read.
    let gaps = parts.windows(2).map(|two| two[1].start() - two[0].end());
    let mut spare_bytes = page_align(gaps.max().unwrap_or(0) as usize).max(PAGE);
    let waste = |len: u64| Piece {
        spare: true,
        offset: 0,
        len: len as usize,
    };
    // Each with the number of its part.
    let mut vectors = Vec::new();
    let mut landed = Vec::with_capacity(parts.len());
    let mut end = first.start();
    for (position, part) in parts.iter().enumerate() {
        vectors.push((position, waste(part.start() - end)));
        end = part.end();
        let head = spare_bytes;
        let header = Piece {
            offset: head,
            ..waste(part.head as u64)
        };
        vectors.push((position, header));
        spare_bytes += part.head;
        let mut slices = Vec::with_capacity(part.slices.len());
        for (len, pieces) in part.stored().zip(part.targets()) {
            let from = vectors.len();
            let mut discarded = 0;
            vectors.extend(pieces.iter().map(|piece| {
                if piece.spare {
                    discarded = discarded.max(piece.offset + piece.len);
                }
                let offset = piece.offset + if piece.spare { spare_bytes } else { 0 };
                (position, Piece { offset, ..*piece })
            }));
            spare_bytes += page_align(discarded);
            slices.push(from..vectors.len());
            vectors.push((position, waste(padded(len) - u64::from(len))));
        }
        if position + 1 == parts.len() {
            // Nothing is behind the last padding.
            vectors.pop();
        }
        landed.push(Landed { head, slices });
    }
    let spare = inner.bounces.take(spare_bytes);
    let spare = spare.map_err(|_| Failed::Read(ReadFailure::Io))?;
    let ranges = vectors.iter().map(|(part, piece)| {
        let regions = Regions {
            main: &parts[*part].target.region,
            spare: &spare.region,
        };
        (regions.of(piece), piece.offset, piece.len)
    });
    let ranges = ranges.collect::<Vec<_>>();
    let segment = &first.run.place.segment;
    segment
        .read_ranges(first.start(), &ranges)
        .map_err(|error| {
            let direct = matches!(segment.mode(), IoMode::Direct { .. });
            if direct && error.kind() == io::ErrorKind::InvalidInput {
                Failed::Unaligned
            } else {
                Failed::Read(failure_of(&error))
            }
        })?;
    let verified = parts.iter().zip(landed).map(|(part, landed)| {
        let sums = part.sums(&spare.region, landed.head)?;
        for (slice, index) in landed.slices.into_iter().zip(part.slices.clone()) {
            let mut hasher = Checksum::default();
            for (region, offset, len) in ranges.get(slice).unwrap_or_default() {
                region.hash_into(&mut hasher, *offset, *len);
            }
            if sums.get(index) != Some(&hasher.finish()) {
                return Err(ReadFailure::Corrupt);
            }
        }
        Ok(())
    });
    Ok(verified.collect())
}

/// Reads into working memory, verifies there, and copies or decodes what is kept to where it goes.
fn read_and_copy(inner: &Inner, parts: &[Part<'_>]) -> Result<Outcomes, ReadFailure> {
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else {
        return Ok(Vec::new());
    };
    let start = first.start();
    let bytes = (last.end() - start) as usize;
    let bounce = inner.bounces.take(bytes).map_err(|_| ReadFailure::Io)?;
    let region = &*bounce.region;
    let segment = &first.run.place.segment;
    segment
        .read_region(start, region, 0, bytes)
        .map_err(|error| failure_of(&error))?;
    let copied = parts.iter().map(|part| {
        let mut at = (part.start() - start) as usize;
        let sums = part.sums(region, at)?;
        at += part.head;
        for ((len, index), pieces) in part.stored().zip(part.slices.clone()).zip(part.targets()) {
            let mut hasher = Checksum::default();
            region.hash_into(&mut hasher, at, len as usize);
            if sums.get(index) != Some(&hasher.finish()) {
                return Err(ReadFailure::Corrupt);
            }
            let codec = part.run.header.terms.codec;
            codec.decode(region, at, &part.target.region, pieces);
            at += padded(len) as usize;
        }
        Ok(())
    });
    Ok(copied.collect())
}
