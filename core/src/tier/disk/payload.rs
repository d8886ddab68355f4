//! The bytes of a record on their way to disk: straight from the memory they lie in where alignment allows it, checksummed.

use std::io;

use super::Inner;
use super::bounce::BOUNCE_BYTES;
use super::files::IoMode;
use super::index::Row;
use super::record::{Identity, Record, padded};
use super::run::Place;
use crate::memory::{Checksum, PAGE, Piece, Regions};
use crate::run::RunSource;

impl Inner {
    /// Writes a run's record, to stable storage if the store is durable.
    pub(super) fn write_record(
        &self,
        row: &Row,
        place: &Place,
        source: &RunSource,
    ) -> io::Result<()> {
        let straight = is_aligned(place.segment.mode(), source)
            .then(|| self.write_straight(row, place, source));
        match straight {
            // The system may ask for more alignment than it said.
            Some(Err(error)) if error.kind() != io::ErrorKind::InvalidInput => return Err(error),
            Some(Ok(())) => {}
            Some(Err(_)) | None => self.write_gathered(row, place, source)?,
        }
        if self.durable {
            place.segment.sync()?;
        }
        Ok(())
    }

    /// Writes the payload from where it lies. Records that are longer than the working memory get their header last.
    fn write_straight(&self, row: &Row, place: &Place, source: &RunSource) -> io::Result<()> {
        let header = &row.header;
        let head = row.header_bytes as usize;
        let whole = place.extent.len <= BOUNCE_BYTES as u64;
        let sums = source.slices.iter().map(|pieces| {
            let mut checksum = Checksum::default();
            for piece in pieces {
                source
                    .region
                    .hash_into(&mut checksum, piece.offset, piece.len);
            }
            checksum.finish()
        });
        let record = self.record(row, place, sums.collect());
        // The header, then a page of zeroes that all padding is taken from.
        let bounce = self.bounces.take(head + PAGE).map_err(io::Error::other)?;
        bounce.region.write(0, &record.encode());
        bounce.region.zero(head, PAGE);
        let spare = |offset, len| Piece {
            spare: true,
            offset,
            len,
        };
        let mut pieces = vec![spare(0, if whole { head } else { 0 })];
        for (slice, &len) in source.slices.iter().zip(&header.slices) {
            pieces.extend_from_slice(slice);
            pieces.push(spare(head, (padded(len) - u64::from(len)) as usize));
        }
        let regions = Regions {
            main: &source.region,
            spare: &bounce.region,
        };
        let segment = &place.segment;
        let offset = place.extent.offset;
        if whole {
            return segment.write_pieces(offset, regions, &pieces);
        }
        segment.write_pieces(offset + head as u64, regions, &pieces)?;
        segment.write_region(offset, &bounce.region, head)
    }

    /// Writes the payload by way of working memory, with the header in the same call if both fit it; else the header comes last.
    fn write_gathered(&self, row: &Row, place: &Place, source: &RunSource) -> io::Result<()> {
        let header = &row.header;
        let head = row.header_bytes as usize;
        let total = place.extent.len as usize;
        let bounce = self
            .bounces
            .take(total.min(BOUNCE_BYTES))
            .map_err(io::Error::other)?;
        let region = &*bounce.region;
        let whole = total <= region.len();
        let mut filled = if whole { head } else { 0 };
        let mut written = place.extent.offset + if whole { 0 } else { head as u64 };
        let mut sums = Vec::with_capacity(header.slices.len());
        for (pieces, &len) in source.slices.iter().zip(&header.slices) {
            let mut hasher = Checksum::default();
            for piece in pieces {
                let mut done = 0;
                while done < piece.len {
                    if filled == region.len() {
                        place.segment.write_region(written, region, filled)?;
                        written += filled as u64;
                        filled = 0;
                    }
                    let part = (piece.len - done).min(region.len() - filled);
                    region.copy_from(filled, &source.region, piece.offset + done, part);
                    region.hash_into(&mut hasher, filled, part);
                    filled += part;
                    done += part;
                }
            }
            // Slices and working memory both end on whole pages, so padding never crosses the end of the latter.
            let padding = (padded(len) - u64::from(len)) as usize;
            region.zero(filled, padding);
            filled += padding;
            sums.push(hasher.finish());
        }
        let record = self.record(row, place, sums.into());
        if whole {
            region.write(0, &record.encode());
            return place.segment.write_region(written, region, filled);
        }
        place.segment.write_region(written, region, filled)?;
        place
            .segment
            .write_at(place.extent.offset, &record.encode(), &self.bounces)
    }

    fn record(&self, row: &Row, place: &Place, sums: Box<[u64]>) -> Record {
        Record {
            identity: Identity {
                store: self.store,
                segment: place.segment.id,
                offset: place.extent.offset,
                serial: row.serial,
            },
            header: row.header.clone(),
            header_bytes: row.header_bytes,
            created: row.created,
            sums,
        }
    }
}

/// Whether the pieces of a source can be written as they are.
fn is_aligned(mode: IoMode, source: &RunSource) -> bool {
    let IoMode::Direct { memory, offset } = mode else {
        return true;
    };
    source
        .slices
        .iter()
        .flatten()
        .all(|piece| piece.offset.is_multiple_of(memory) && piece.len.is_multiple_of(offset))
}
