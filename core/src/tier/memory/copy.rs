//! Moving payload between lists of pieces, and the checks that make it safe to do so.

use crate::error::{Error, Result};
use crate::memory::{Piece, Region};
use crate::run::{RunHeader, RunSource, RunTarget};

/// Copies the bytes that `from` lists to where `to` lists, in order; bytes that land in spare pieces are skipped.
/// Both lists add up to the same length.
pub(crate) fn copy_pieces(from: &Region, from_pieces: &[Piece], to: &Region, to_pieces: &[Piece]) {
    crate::sync::copying();
    let mut sources = from_pieces.iter().copied();
    let mut source = Piece {
        spare: false,
        offset: 0,
        len: 0,
    };
    for target in to_pieces {
        let mut done = 0;
        while done < target.len {
            if source.len == 0 {
                match sources.next() {
                    Some(next) => source = next,
                    None => return,
                }
                continue;
            }
            let len = source.len.min(target.len - done);
            if !target.spare {
                to.copy_from(target.offset + done, from, source.offset, len);
            }
            source.offset += len;
            source.len -= len;
            done += len;
        }
    }
}

/// Checks that a source can hold what a header says.
///
/// # Errors
/// [`Error::InvalidArgument`] for a bad header, slices of other lengths, or pieces outside the region.
pub(crate) fn check_source(header: &RunHeader, source: &RunSource) -> Result<()> {
    header.validate()?;
    if source.slices.iter().flatten().any(|piece| piece.spare) {
        return Err(Error::invalid("a piece of a run's source is spare"));
    }
    check_slices(header, &source.region, &source.slices)
}

/// Checks that a target can take what a header says.
///
/// # Errors
/// As for [`check_source`].
pub(crate) fn check_target(header: &RunHeader, target: &RunTarget) -> Result<()> {
    check_slices(header, &target.region, &target.slices)
}

fn check_slices(header: &RunHeader, region: &Region, slices: &[Vec<Piece>]) -> Result<()> {
    if slices.len() != header.slices.len() {
        return Err(Error::invalid(format!(
            "the run has {} slices, {} were given",
            header.slices.len(),
            slices.len()
        )));
    }
    for (index, (pieces, &wanted)) in slices.iter().zip(header.slices.iter()).enumerate() {
        let mut total = 0_usize;
        for piece in pieces {
            let end = piece.offset.checked_add(piece.len);
            if !piece.spare && end.is_none_or(|end| end > region.len()) {
                return Err(Error::invalid(format!(
                    "slice {index} has a piece at {}+{}, outside a region of {} bytes",
                    piece.offset,
                    piece.len,
                    region.len()
                )));
            }
            total = total.saturating_add(piece.len);
        }
        if total != wanted as usize {
            return Err(Error::invalid(format!(
                "slice {index} has {wanted} bytes, its pieces have {total}"
            )));
        }
    }
    Ok(())
}
