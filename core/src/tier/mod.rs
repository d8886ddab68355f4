//! The tiers below L1, which look alike: runs go in whole, are found by block key, and come out slice by slice.

pub mod disk;
pub mod memory;
mod record;
pub mod remote;
mod span;
#[cfg(test)]
pub(crate) mod testing;

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::error::Result;
use crate::key::BlockKey;
use crate::run::{RunHeader, RunSource, RunTarget};

pub use remote::{RemoteStats, ServerHealth};
pub(crate) use span::neighbours;
pub use span::{Span, TOGETHER_BYTES};

/// A level of the hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TierId {
    /// Blocks next to the model.
    L1,
    /// Host memory.
    L2,
    /// Local NVMe.
    L3,
    /// A server that several machines share.
    L4,
}

impl fmt::Display for TierId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::L1 => "l1",
            Self::L2 => "l2",
            Self::L3 => "l3",
            Self::L4 => "l4",
        })
    }
}

/// What became of a run that a tier was asked to keep. A refusal is no error: it is counted by its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Put {
    /// All of it is stored and visible.
    Stored,
    /// Every block of it was there already; nothing was written.
    Present,
    /// Accepted: it becomes visible when its write is done.
    Queued,
    /// Not stored.
    Refused(Refusal),
}

/// Why a tier did not keep a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// Larger than the whole tier.
    TooLarge,
    /// Everything that could go is pinned or locked.
    NothingToEvict,
    /// The disk is full or below its free-space reserve.
    NoSpace,
    /// The system could not write it.
    WriteFailed,
    /// The queue of writes is at its bound.
    QueueFull,
    /// The block before it is not in this tier, so nothing could ever reach it.
    ParentMissing,
    /// Not used often enough to be worth a write (`write_through_selective`).
    TooFewUses,
    /// Its bytes came out of a lossy codec: encoded a second time, they would lose more.
    Decoded,
    /// The tier is read-only, closed or configured away.
    Unavailable,
    /// Its time to live was over.
    Expired,
    /// It must not be written to disk.
    NotPersisted,
    /// Its tenant has no more to give up, and its quota is taken.
    OverQuota,
}

/// Why the bytes of a run could not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReadFailure {
    /// The system could not read them.
    Io,
    /// They are not what was written: bad magic, key, length or checksum.
    Corrupt,
    /// The run was deleted while it was read.
    Gone,
}

/// A run to be read whole, and where it goes.
pub type WholeRead<'a> = (&'a Arc<dyn PinnedRun>, &'a RunTarget);

/// A run found in a tier, pinned: neither evicted nor reclaimed while this handle lives.
pub trait PinnedRun: Any + Send + Sync + fmt::Debug {
    /// What is stored.
    fn header(&self) -> &RunHeader;

    /// Reads and verifies the slices in `range` into the matching slices of `target`; blocks until done. A failure has
    /// already been counted and the run dropped from the tier: the caller only has to treat it as a miss.
    ///
    /// # Errors
    /// [`ReadFailure`]; what was kept in the target is then unspecified.
    fn read_slices(
        &self,
        range: Range<usize>,
        target: &RunTarget,
    ) -> std::result::Result<(), ReadFailure>;

    /// Where it lies, in a tier that reads neighbours faster [together](Self::read_together).
    fn span(&self) -> Option<Span> {
        None
    }

    /// Reads several runs whole, of which this is one; those that lie near each other, and are given in that order, by one
    /// operation. Each is verified for itself, as by [`Self::read_slices`]: the outcomes, in the order of `reads`.
    fn read_together(&self, reads: &[WholeRead<'_>]) -> Vec<std::result::Result<(), ReadFailure>> {
        let each =
            |(run, target): &WholeRead<'_>| run.read_slices(0..run.header().slices.len(), target);
        reads.iter().map(each).collect()
    }
}

/// A tier of runs. All calls are safe from many threads; none holds a lock over I/O or a copy.
pub trait Tier: Send + Sync {
    /// Which level this is.
    fn id(&self) -> TierId;

    /// Whether a block can be read from here. Answered from memory, touches nothing.
    fn contains(&self, key: &BlockKey) -> bool;

    /// The run that holds a block, pinned, with the block's position in it. Answered from memory; counts as a use of the run.
    fn find(&self, key: &BlockKey) -> Option<(Arc<dyn PinnedRun>, usize)>;

    /// Stores a run, evicting leaves as needed; blocks until it is visible. Runs on a worker, never on a caller's path.
    ///
    /// # Errors
    /// Only for misuse (a header that does not validate, a closed tier); all else is a [`Put`].
    fn put(&self, header: &RunHeader, source: &RunSource) -> Result<Put>;

    /// Drops the runs that hold any of these blocks; gives back how many runs went.
    fn remove(&self, keys: &[BlockKey]) -> usize;
}

/// How much of a tier is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierUsage {
    /// Bytes that it may take.
    pub capacity: u64,
    /// Bytes that it takes.
    pub used: u64,
    /// Runs that can be read.
    pub runs: usize,
    /// Blocks that can be read.
    pub blocks: usize,
    /// Runs that it gave up for others since it was opened.
    pub evictions: u64,
    /// Runs that were read by one operation together with neighbours.
    pub joined_reads: u64,
    /// Transfers that waited for working memory.
    pub memory_waits: u64,
}

/// What went in and out of a tier that is simulated, in blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flow {
    /// Could be found and then could not, for want of room or because their time was over.
    pub(crate) evicted: u64,
    /// Could not be found and then could.
    pub(crate) stored: u64,
    /// In runs that were larger than the tier, or for which nothing could go.
    pub(crate) refused: u64,
    /// The most that could be found.
    pub(crate) peak: usize,
}

/// What a tier has of one namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceUsage {
    /// The namespace.
    pub namespace: BlockKey,
    /// Its runs.
    pub runs: usize,
    /// Blocks in them.
    pub blocks: usize,
    /// Payload bytes, as they were given.
    pub payload_bytes: u64,
}

/// A tier that outlives the process: what a store needs of L3 beside [`Tier`].
pub trait DurableTier: Tier {
    /// As [`Tier::put`]. Calls `admitted` once the run that follows this one may be put, too: it then becomes visible after
    /// this one, or is refused with it. A tier that writes one run of a chain after the other never calls it.
    ///
    /// # Errors
    /// As for [`Tier::put`].
    fn put_ahead(
        &self,
        header: &RunHeader,
        source: &RunSource,
        admitted: &dyn Fn(),
    ) -> Result<Put> {
        let _ = admitted;
        self.put(header, source)
    }

    /// Drops the runs of a namespace, or all, so that they do not come back after a crash; gives back how many.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if that could not be written down.
    fn clear(&self, namespace: Option<&BlockKey>) -> Result<usize>;

    /// Makes all that was acknowledged durable.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    fn flush(&self) -> Result<()>;

    /// Writes down what a clean shutdown writes down. Idempotent; puts are refused afterwards.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    fn close(&self) -> Result<()>;

    /// What is in use.
    fn usage(&self) -> TierUsage;

    /// What there is of each namespace, by namespace. O(runs).
    fn namespaces(&self) -> Vec<NamespaceUsage>;

    /// The clock by which its runs expire; the tiers above go by it, too.
    fn clock(&self) -> Clock {
        Clock::default()
    }
}

/// A tier that other processes share, over a network: nothing is known of it without asking, and asking takes time.
pub trait SharedTier: Send + Sync + fmt::Debug {
    /// Which of these blocks can be read from here, each for itself: its run, pinned in so far as its header is known, with the block's
    /// position in it. Asks once for all of them, for at most the tier's time-out; a server that does not answer has nothing.
    fn find(&self, keys: &[BlockKey]) -> Vec<Option<(Arc<dyn PinnedRun>, usize)>>;

    /// Whether a block was seen here lately: queued, written or found. Answered from memory; may be wrong either way.
    fn knows(&self, key: &BlockKey) -> bool;

    /// What [`Self::share`] would make of such a run now, as far as that is known: asked before its bytes are copied for it.
    /// A refusal is counted.
    fn admits(&self, header: &RunHeader) -> Put {
        let _ = header;
        Put::Queued
    }

    /// Queues a run for writing; never waits, and copies nothing: its bytes are kept by its source until then. The store gives it
    /// memory that nobody else waits for.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] for a header that does not validate.
    fn share(&self, header: RunHeader, source: RunSource) -> Result<Put>;

    /// Deletes the runs that hold any of these blocks for everybody, queued ones, too; how many of the blocks were there.
    ///
    /// # Errors
    /// [`crate::Error::Remote`] if the server did not do it.
    fn remove(&self, keys: &[BlockKey]) -> Result<usize>;

    /// Forgets what waits to be written of a namespace, or all, and what is known of it here; the server keeps what it has.
    fn forget(&self, namespace: Option<&BlockKey>);

    /// Waits until what was queued before the call is written or given up; false if the time ran out.
    fn flush(&self, timeout: Duration) -> bool;

    /// Ends the writing. Idempotent.
    fn close(&self, timeout: Duration) -> bool;

    /// What it has done and how its servers were.
    fn stats(&self) -> RemoteStats;

    /// Asks each server how it is, for at most the time-out.
    fn health(&self) -> Vec<ServerHealth>;
}
