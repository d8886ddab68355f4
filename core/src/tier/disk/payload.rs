//! The bytes of a record on their way to disk: straight from the memory they lie in where alignment allows it, or encoded;
//! checksummed.

use std::io;

use super::Inner;
use super::bounce::BOUNCE_BYTES;
use super::files::IoMode;
use super::index::Row;
use super::record::{Identity, Record};
use super::run::Place;
use crate::codec::Codec;
use crate::memory::{Checksum, PAGE, Piece, Region, Regions, page_align};
use crate::run::RunSource;

/// What the bytes of a source are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The payload as it was given, to be encoded.
    Given,
    /// What the codec made of it in another store.
    Stored,
}

impl Inner {
    /// Writes a run's record, to stable storage if the store is durable. Gives back the checksums of its slices.
    pub(super) fn write_record(
        &self,
        row: &Row,
        place: &Place,
        source: &RunSource,
        form: Form,
    ) -> io::Result<Box<[u64]>> {
        let codec = match form {
            Form::Given => row.header.terms.codec,
            Form::Stored => Codec::Raw,
        };
        let exact = codec == Codec::Raw;
        let straight = (exact && is_aligned(place.segment.mode(), source))
            .then(|| self.write_straight(row, place, source));
        let sums = match straight {
            // The system may ask for more alignment than it said.
            Some(Err(error)) if error.kind() != io::ErrorKind::InvalidInput => return Err(error),
            Some(Ok(sums)) => sums,
            Some(Err(_)) | None => self.write_gathered(row, place, source, codec)?,
        };
        if self.durable {
            // This record is still being written: the segment ends once it has been given up.
            let synced = place.segment.sync();
            synced.inspect_err(|_| self.state.lock().space.fail(place.segment.id))?;
        }
        Ok(sums)
    }

    /// Writes header and payload in one call, the latter from where it lies. A header that came after its payload would wait for what
    /// the other thread writes meanwhile, and both would then compute checksums while the disk has nothing to do.
    fn write_straight(
        &self,
        row: &Row,
        place: &Place,
        source: &RunSource,
    ) -> io::Result<Box<[u64]>> {
        let head = row.header_bytes as usize;
        let record = self.record(row, place, source.checksums().collect());
        // The header, then a page of zeroes that all padding is taken from.
        let bounce = self.bounces.take(head + PAGE).map_err(io::Error::other)?;
        bounce.region.write(0, &record.encode());
        bounce.region.zero(head, PAGE);
        let spare = |offset, len| Piece {
            spare: true,
            offset,
            len,
        };
        let mut pieces = vec![spare(0, head)];
        for slice in &source.slices {
            let len = slice.iter().map(|piece| piece.len).sum::<usize>();
            pieces.extend_from_slice(slice);
            pieces.push(spare(head, page_align(len) - len));
        }
        let regions = Regions {
            main: &source.region,
            spare: &bounce.region,
        };
        let offset = place.extent.offset;
        place.segment.write_pieces(offset, regions, &pieces)?;
        Ok(record.sums)
    }

    /// Writes the payload by way of working memory, with the header in the same call if both fit it; else the header comes last.
    fn write_gathered(
        &self,
        row: &Row,
        place: &Place,
        source: &RunSource,
        codec: Codec,
    ) -> io::Result<Box<[u64]>> {
        let header = &row.header;
        let head = row.header_bytes as usize;
        let total = place.extent.len as usize;
        let bounce = self
            .bounces
            .take(total.min(BOUNCE_BYTES))
            .map_err(io::Error::other)?;
        let region = &*bounce.region;
        let whole = total <= region.len();
        let mut gather = Gather {
            place,
            region,
            filled: if whole { head } else { 0 },
            written: place.extent.offset + if whole { 0 } else { head as u64 },
            checksum: Checksum::default(),
        };
        let mut sums = Vec::with_capacity(header.slices.len());
        for pieces in &source.slices {
            match codec.as_int8() {
                Some(int8) => {
                    int8.encode(&source.region, pieces, |bytes| gather.append(bytes))?;
                }
                None => pieces
                    .iter()
                    .try_for_each(|piece| gather.copy(&source.region, piece))?,
            }
            sums.push(gather.end_slice());
        }
        let record = self.record(row, place, sums.into());
        if whole {
            region.write(0, &record.encode());
            gather.write()?;
        } else {
            gather.write()?;
            // The payload is out of the working memory by now.
            region.write(0, &record.encode());
            place
                .segment
                .write_region(place.extent.offset, region, head)?;
        }
        Ok(record.sums)
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

/// Working memory that fills with slices, and is written whenever it is full.
struct Gather<'a> {
    place: &'a Place,
    region: &'a Region,
    filled: usize,
    /// Where in the segment its first byte goes.
    written: u64,
    /// Of the slice so far.
    checksum: Checksum,
}

impl Gather<'_> {
    /// Room for some of `len` bytes: one at least, if `len` is.
    fn room(&mut self, len: usize) -> io::Result<usize> {
        if self.filled == self.region.len() {
            self.write()?;
        }
        Ok(len.min(self.region.len() - self.filled))
    }

    /// Takes over bytes that were put behind the others.
    fn filled(&mut self, len: usize) {
        self.region.hash_into(&mut self.checksum, self.filled, len);
        self.filled += len;
    }

    fn copy(&mut self, source: &Region, piece: &Piece) -> io::Result<()> {
        let mut done = 0;
        while done < piece.len {
            let part = self.room(piece.len - done)?;
            self.region
                .copy_from(self.filled, source, piece.offset + done, part);
            self.filled(part);
            done += part;
        }
        Ok(())
    }

    fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(self.room(bytes.len())?);
            self.region.write(self.filled, part);
            self.filled(part.len());
            bytes = rest;
        }
        Ok(())
    }

    /// Pads the slice and gives back its checksum. Slices and working memory both end on whole pages, so padding never crosses
    /// the end of the latter.
    fn end_slice(&mut self) -> u64 {
        let end = page_align(self.filled);
        self.region.zero(self.filled, end - self.filled);
        self.filled = end;
        std::mem::take(&mut self.checksum).finish()
    }

    fn write(&mut self) -> io::Result<()> {
        let segment = &self.place.segment;
        segment.write_region(self.written, self.region, self.filled)?;
        self.written += self.filled as u64;
        self.filled = 0;
        Ok(())
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
