//! The value of a run: the record of L3, its slices packed without padding, each encrypted for itself if there is a key.

use std::ops::Range;

use super::cipher::{Bound, Cipher, SEALED_BYTES};
use super::names::Entry;
use crate::error::Result;
use crate::key::BlockKey;
use crate::memory::{Checksum, Region};
use crate::run::{RunHeader, RunSource, RunTarget};
use crate::tier::record::{Identity, Record, header_bytes};

/// The longest value that a server takes.
pub(super) const MAX_VALUE_BYTES: u64 = 512 << 20;

/// Bytes of each slice in the value.
fn stored(header: &RunHeader, encrypted: bool) -> impl Iterator<Item = u64> {
    let codec = header.terms.codec;
    let more = if encrypted { SEALED_BYTES as u64 } else { 0 };
    let lengths = header.slices.iter();
    lengths.map(move |&len| u64::from(codec.stored_bytes(len)) + more)
}

/// Bytes of a run's value.
pub(super) fn value_bytes(header: &RunHeader, encrypted: bool) -> u64 {
    let head = header_bytes(header.keys.len(), header.slices.len()) as u64;
    head + stored(header, encrypted).sum::<u64>()
}

/// Fills `out` with the value of a run that is stored at `now`.
pub(super) fn encode(
    header: &RunHeader,
    source: &RunSource,
    cipher: Option<&Cipher>,
    now: u64,
    out: &mut Vec<u8>,
) -> Result<()> {
    let head = header_bytes(header.keys.len(), header.slices.len());
    let mut record = Record {
        identity: Identity {
            store: cipher.map_or(0, Cipher::id),
            segment: 0,
            offset: 0,
            serial: 0,
        },
        header: header.clone(),
        header_bytes: head as u32,
        created: match header.terms.born {
            0 => now,
            born => born,
        },
        sums: vec![0; header.slices.len()].into(),
    };
    let bound = cipher.map(|cipher| (cipher, Bound::to(&record)));
    out.clear();
    out.reserve(value_bytes(header, cipher.is_some()) as usize);
    out.resize(head, 0);
    for (slice, pieces) in source.slices.iter().enumerate() {
        let from = out.len();
        if bound.is_some() {
            Cipher::begin(out);
        }
        if let Some(int8) = header.terms.codec.as_int8() {
            int8.encode(&source.region, pieces, |bytes| {
                out.extend_from_slice(bytes);
                Ok::<_, crate::Error>(())
            })?;
        } else {
            for piece in pieces {
                let at = out.len();
                out.resize(at + piece.len, 0);
                source.region.read(piece.offset, &mut out[at..]);
            }
        }
        if let Some((cipher, bound)) = &bound {
            cipher.seal(out, from, bound, slice)?;
        }
        record.sums[slice] = Checksum::of(&out[from..]);
    }
    out[..head].copy_from_slice(&record.encode());
    Ok(())
}

/// What a header that was read is worth.
pub(super) enum Header {
    /// It is the one that the entry leads to.
    Own(Box<Record>),
    /// It is what this code wrote, and was damaged.
    Damaged,
    /// It is something else: another format, another key, another run.
    Foreign,
}

/// Judges the bytes that stand where the header of a block's run should be.
pub(super) fn judge(
    bytes: &[u8],
    block: &BlockKey,
    entry: &Entry,
    cipher: Option<&Cipher>,
) -> Header {
    let Some(record) = Record::decode(bytes) else {
        // Magic, version and length are as they should be, so that only the checksum can have failed.
        return match Record::peek(bytes) {
            Some(_) => Header::Damaged,
            None => Header::Foreign,
        };
    };
    let keys = &record.header.keys;
    let own = keys.get(entry.position as usize) == Some(block)
        && keys.len() == entry.run.blocks as usize
        && keys.last() == Some(&entry.run.last)
        && record.header_bytes == entry.header_bytes
        && record.identity.store == cipher.map_or(0, Cipher::id);
    if own {
        Header::Own(Box::new(record))
    } else {
        Header::Foreign
    }
}

/// Where slices lie in the value of a run, and how they come out of it.
pub(super) struct Payload<'a> {
    record: &'a Record,
    cipher: Option<(&'a Cipher, Bound)>,
}

impl<'a> Payload<'a> {
    pub(super) fn of(record: &'a Record, cipher: Option<&'a Cipher>) -> Self {
        Self {
            record,
            cipher: cipher.map(|cipher| (cipher, Bound::to(record))),
        }
    }

    /// Consecutive slices in groups of about `bytes`, each with the range of the value that it takes.
    pub(super) fn groups(
        &self,
        slices: Range<usize>,
        bytes: u64,
    ) -> Vec<(Range<usize>, Range<u64>)> {
        let header = &self.record.header;
        let mut at = u64::from(self.record.header_bytes);
        let mut groups: Vec<(Range<usize>, Range<u64>)> = Vec::new();
        for (slice, len) in stored(header, self.cipher.is_some()).enumerate() {
            let end = at + len;
            if slices.contains(&slice) {
                match groups.last_mut() {
                    Some((slices, range)) if end - range.start <= bytes => {
                        slices.end = slice + 1;
                        range.end = end;
                    }
                    _ => groups.push((slice..slice + 1, at..end)),
                }
            }
            at = end;
        }
        groups
    }

    /// Verifies slices that lie in `bytes` one after the other, and brings them where they go; false if they are not what was written.
    pub(super) fn bring(&self, slices: Range<usize>, mut bytes: &[u8], target: &RunTarget) -> bool {
        let Record { header, sums, .. } = self.record;
        for (slice, len) in stored(header, self.cipher.is_some())
            .enumerate()
            .skip(slices.start)
            .take(slices.len())
        {
            let Some((own, rest)) = bytes.split_at_checked(len as usize) else {
                return false;
            };
            bytes = rest;
            if sums.get(slice) != Some(&Checksum::of(own)) {
                return false;
            }
            let brought = match &self.cipher {
                None => self.decode(slice, own, target),
                Some((cipher, bound)) => {
                    let mut own = own.to_vec();
                    let opened = cipher.open(&mut own, bound, slice);
                    opened.is_some_and(|opened| self.decode(slice, opened, target))
                }
            };
            if !brought {
                return false;
            }
        }
        bytes.is_empty()
    }

    fn decode(&self, slice: usize, bytes: &[u8], target: &RunTarget) -> bool {
        let Some(pieces) = target.slices.get(slice) else {
            return false;
        };
        let codec = self.record.header.terms.codec;
        if codec.is_lossy() {
            let Ok(region) = Region::new(bytes.len()) else {
                return false;
            };
            region.write(0, bytes);
            codec.decode(&region, 0, &target.region, pieces);
            return true;
        }
        let mut at = 0;
        for piece in pieces {
            let end = at + piece.len;
            let Some(part) = bytes.get(at..end) else {
                return false;
            };
            if !piece.spare {
                target.region.write(piece.offset, part);
            }
            at = end;
        }
        true
    }
}
