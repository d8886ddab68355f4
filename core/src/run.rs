//! Runs: consecutive blocks of one chain stored together, the unit of storage, residency, eviction, checksum and I/O.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use crate::codec::Codec;
use crate::error::{Error, Result};
use crate::key::BlockKey;
use crate::memory::{Checksum, Piece, Region};

/// The most blocks that a run may name, so that a header stays small.
pub const MAX_RUN_BLOCKS: usize = 4096;
/// The most slices (layers) that a run may have.
pub const MAX_RUN_SLICES: usize = 1024;

/// What a namespace asks of the tiers for its runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Terms {
    /// How L3 stores the payload. Default: as it is.
    pub codec: Codec,
    /// Whose it is, for quotas: a digest of the cache salt. Default: 0, nobody's.
    pub tenant: u64,
    /// Seconds after which it is a miss, counted from when it was stored; 0 for no limit, the default.
    pub ttl_seconds: u32,
    /// Whether it may be written to disk. Default: true.
    pub persist: bool,
    /// Unix seconds that `ttl_seconds` counts from: when its KV was first stored, in whatever tier. It goes with the run from tier
    /// to tier. 0 for what is not stored yet (the store that takes it stamps it) and for what has no limit.
    pub born: u64,
    /// Whether its bytes came out of a lossy codec: they are never encoded again. Default: false.
    pub decoded: bool,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            codec: Codec::Raw,
            tenant: 0,
            ttl_seconds: 0,
            persist: true,
            born: 0,
            decoded: false,
        }
    }
}

/// A time that never comes.
pub const NEVER: u64 = u64::MAX;

impl Terms {
    /// The unix second from which on the run is a miss; [`NEVER`] without a limit.
    pub fn expires(&self) -> u64 {
        match self.ttl_seconds {
            0 => NEVER,
            seconds => self.born.saturating_add(u64::from(seconds)),
        }
    }

    /// These terms for a run that is stored at `now`, unless it was stored before.
    #[must_use]
    pub fn stamped(self, now: u64) -> Self {
        let born = match (self.ttl_seconds, self.born) {
            (0, _) => 0,
            (_, 0) => now,
            (_, born) => born,
        };
        Self { born, ..self }
    }
}

/// What is known of a run without its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunHeader {
    /// The namespace that the keys belong to.
    pub namespace: BlockKey,
    /// Key of the block before the first one; the namespace itself for the first block of a prompt.
    pub parent: BlockKey,
    /// Keys of the run's blocks, in order. Never empty.
    pub keys: Box<[BlockKey]>,
    /// Tokens in each block; 0 where the caller brings its own keys and opaque bytes.
    pub block_tokens: u32,
    /// Payload bytes of each slice (one a layer), in order. Never empty.
    pub slices: Arc<[u32]>,
    /// What its namespace asks for.
    pub terms: Terms,
}

impl RunHeader {
    /// What this run of L3 is above it: decoded, if it went through a lossy codec.
    #[must_use]
    pub fn decoded(&self) -> Self {
        let mut header = self.clone();
        header.terms.decoded |= header.terms.codec.is_lossy();
        header
    }

    /// Payload bytes in all.
    pub fn payload_bytes(&self) -> u64 {
        self.slices.iter().map(|&len| u64::from(len)).sum()
    }

    /// Checks sizes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an empty or over-long list of keys or slices, an empty slice, or one that its codec cannot take.
    pub fn validate(&self) -> Result<()> {
        if self.keys.is_empty() || self.keys.len() > MAX_RUN_BLOCKS {
            return Err(Error::invalid(format!(
                "a run holds 1 to {MAX_RUN_BLOCKS} blocks, got {}",
                self.keys.len()
            )));
        }
        if self.slices.is_empty() || self.slices.len() > MAX_RUN_SLICES {
            return Err(Error::invalid(format!(
                "a run has 1 to {MAX_RUN_SLICES} slices, got {}",
                self.slices.len()
            )));
        }
        if self.slices.contains(&0) {
            return Err(Error::invalid("a slice of a run is empty"));
        }
        let codec = self.terms.codec;
        if let Some(len) = self.slices.iter().find(|&&len| !codec.takes(len)) {
            return Err(Error::invalid(format!(
                "a slice of {len} bytes cannot be stored by {codec:?}; use Codec::int8 of its layout, or Codec::Raw"
            )));
        }
        Ok(())
    }
}

/// What keeps the memory of a transfer from being handed to anyone else: a cache buffer's lease, pinned blocks, or nothing
/// where the region itself is enough.
pub type Lease = Option<Arc<dyn Any + Send + Sync>>;

/// Where a run's payload is taken from when it is stored: for each slice, the pieces that make it up, in stored order.
#[derive(Clone, Debug)]
pub struct RunSource {
    /// The memory; its bytes stay unchanged until the transfer is over.
    pub region: Arc<Region>,
    /// Held for as long as the source lives.
    pub lease: Lease,
    /// Pieces of each slice; none of them is `spare`.
    pub slices: Vec<Vec<Piece>>,
}

impl RunSource {
    /// Checks that it has exactly the slices that a header announces; `stored` says how long one is here.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] that names what does not fit.
    pub(crate) fn check(&self, header: &RunHeader, stored: impl Fn(u32) -> u32) -> Result<()> {
        if self.slices.len() != header.slices.len() {
            return Err(Error::invalid(format!(
                "a run of {} slices cannot be stored from {}",
                header.slices.len(),
                self.slices.len()
            )));
        }
        let size = self.region.len();
        for (slice, (pieces, &len)) in self.slices.iter().zip(header.slices.iter()).enumerate() {
            let mut sum = 0_usize;
            for piece in pieces {
                let end = piece.offset.checked_add(piece.len);
                if piece.spare || end.is_none_or(|end| end > size) {
                    return Err(Error::invalid(format!(
                        "slice {slice} is taken from {piece:?}, outside a region of {size} bytes"
                    )));
                }
                sum = sum.saturating_add(piece.len);
            }
            let len = stored(len);
            if sum != len as usize {
                return Err(Error::invalid(format!(
                    "slice {slice} has {len} bytes, its pieces have {sum}"
                )));
            }
        }
        Ok(())
    }

    /// The same bytes in memory of their own, one piece a slice, so that nobody waits for this source's memory.
    ///
    /// # Errors
    /// [`Error::Io`] if memory cannot be had.
    pub(crate) fn copied(&self) -> Result<Self> {
        let pieces = self.slices.iter().flatten();
        let bytes = pieces.map(|piece| piece.len).sum::<usize>();
        let region = Region::new(bytes.max(1))?;
        let mut at = 0;
        let slices = self.slices.iter().map(|pieces| {
            let offset = at;
            for piece in pieces {
                region.copy_from(at, &self.region, piece.offset, piece.len);
                at += piece.len;
            }
            vec![Piece {
                spare: false,
                offset,
                len: at - offset,
            }]
        });
        let slices = slices.collect();
        Ok(Self {
            region: Arc::new(region),
            lease: None,
            slices,
        })
    }

    /// The checksum of each slice, in order, computed where its bytes lie.
    pub(crate) fn checksums(&self) -> impl Iterator<Item = u64> {
        self.slices.iter().map(|pieces| {
            let mut checksum = Checksum::default();
            for piece in pieces {
                self.region
                    .hash_into(&mut checksum, piece.offset, piece.len);
            }
            checksum.finish()
        })
    }
}

/// Where a run's payload goes when it is read: for each slice, pieces in stored order that add up to the slice's length.
#[derive(Clone, Debug)]
pub struct RunTarget {
    /// The memory that kept bytes go to.
    pub region: Arc<Region>,
    /// Held for as long as the target lives.
    pub lease: Lease,
    /// Pieces of each slice; `spare` ones are read and verified, but not kept.
    pub slices: Vec<Vec<Piece>>,
}

impl RunTarget {
    /// Whether it has room for exactly the slices in `range`.
    pub(crate) fn fits(&self, header: &RunHeader, range: &Range<usize>) -> bool {
        let (Some(lengths), Some(slices)) = (
            header.slices.get(range.clone()),
            self.slices.get(range.clone()),
        ) else {
            return false;
        };
        self.slices.len() == header.slices.len()
            && lengths.iter().zip(slices).all(|(&len, pieces)| {
                let mut sum = 0_usize;
                let inside = pieces.iter().all(|piece| {
                    sum = sum.saturating_add(piece.len);
                    let end = piece.offset.checked_add(piece.len);
                    end.is_some_and(|end| piece.spare || end <= self.region.len())
                });
                inside && sum == len as usize
            })
    }

    /// What was kept, in stored order.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let kept = self.slices.iter().flatten().filter(|piece| !piece.spare);
        let mut bytes = vec![0; kept.clone().map(|piece| piece.len).sum()];
        let mut at = 0;
        for piece in kept {
            self.region
                .read(piece.offset, &mut bytes[at..at + piece.len]);
            at += piece.len;
        }
        bytes
    }
}
