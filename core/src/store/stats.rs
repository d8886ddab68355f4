//! What a store has done: counters that many threads add to, and the picture of them that callers get.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::tier::{Put, ReadFailure, Refusal, RemoteStats, TierId};

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub(super) struct TierCounters {
    pub(super) hit_blocks: Counter,
    pub(super) reads: Counter,
    pub(super) read_bytes: Counter,
    pub(super) read_micros: Counter,
    pub(super) shared_reads: Counter,
    pub(super) writes: Counter,
    pub(super) write_bytes: Counter,
    pub(super) write_micros: Counter,
    pub(super) evictions: Counter,
    pub(super) corrupt: Counter,
    pub(super) gone: Counter,
    pub(super) io_errors: Counter,
}

impl TierCounters {
    pub(super) fn read(&self, bytes: u64, took: Duration) {
        self.reads.add(1);
        self.read_bytes.add(bytes);
        self.read_micros.add(took.as_micros() as u64);
    }

    pub(super) fn wrote(&self, bytes: u64, took: Duration) {
        self.writes.add(1);
        self.write_bytes.add(bytes);
        self.write_micros.add(took.as_micros() as u64);
    }

    pub(super) fn failed(&self, failure: ReadFailure) {
        match failure {
            ReadFailure::Io => self.io_errors.add(1),
            ReadFailure::Corrupt => self.corrupt.add(1),
            ReadFailure::Gone => self.gone.add(1),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct RefusalCounters {
    too_large: Counter,
    nothing_to_evict: Counter,
    no_space: Counter,
    write_failed: Counter,
    queue_full: Counter,
    parent_missing: Counter,
    decoded: Counter,
    too_few_uses: Counter,
    unavailable: Counter,
    expired: Counter,
    not_persisted: Counter,
    over_quota: Counter,
}

impl RefusalCounters {
    pub(super) fn note(&self, put: Put) -> Put {
        if let Put::Refused(reason) = put {
            match reason {
                Refusal::TooLarge => &self.too_large,
                Refusal::NothingToEvict => &self.nothing_to_evict,
                Refusal::NoSpace => &self.no_space,
                Refusal::WriteFailed => &self.write_failed,
                Refusal::QueueFull => &self.queue_full,
                Refusal::ParentMissing => &self.parent_missing,
                Refusal::Decoded => &self.decoded,
                Refusal::TooFewUses => &self.too_few_uses,
                Refusal::Unavailable => &self.unavailable,
                Refusal::Expired => &self.expired,
                Refusal::NotPersisted => &self.not_persisted,
                Refusal::OverQuota => &self.over_quota,
            }
            .add(1);
        }
        put
    }

    fn picture(&self) -> Refusals {
        Refusals {
            too_large: self.too_large.get(),
            nothing_to_evict: self.nothing_to_evict.get(),
            no_space: self.no_space.get(),
            write_failed: self.write_failed.get(),
            queue_full: self.queue_full.get(),
            parent_missing: self.parent_missing.get(),
            decoded: self.decoded.get(),
            too_few_uses: self.too_few_uses.get(),
            unavailable: self.unavailable.get(),
            expired: self.expired.get(),
            not_persisted: self.not_persisted.get(),
            over_quota: self.over_quota.get(),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct PrefetchCounters {
    pub(super) issued: Counter,
    pub(super) loaded: Counter,
    pub(super) claimed: Counter,
    pub(super) stolen: Counter,
    pub(super) cancelled: Counter,
    pub(super) timed_out: Counter,
    pub(super) failed: Counter,
    pub(super) refused: Counter,
    pub(super) waits: Counter,
    pub(super) expired_waits: Counter,
}

impl PrefetchCounters {
    fn picture(&self) -> PrefetchStats {
        PrefetchStats {
            issued: self.issued.get(),
            loaded: self.loaded.get(),
            claimed: self.claimed.get(),
            stolen: self.stolen.get(),
            cancelled: self.cancelled.get(),
            timed_out: self.timed_out.get(),
            failed: self.failed.get(),
            refused: self.refused.get(),
            waits: self.waits.get(),
            expired_waits: self.expired_waits.get(),
            held_bytes: 0,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) l2: TierCounters,
    pub(super) l3: TierCounters,
    pub(super) l4: TierCounters,
    pub(super) demotions: Counter,
    pub(super) dropped_victims: Counter,
    /// Blocks of them that no tier below has.
    pub(super) dropped_victim_blocks: Counter,
    pub(super) refusals: RefusalCounters,
    pub(super) prefetch: PrefetchCounters,
}

impl Counters {
    pub(super) fn tier(&self, tier: TierId) -> &TierCounters {
        match tier {
            TierId::L3 => &self.l3,
            TierId::L4 => &self.l4,
            TierId::L1 | TierId::L2 => &self.l2,
        }
    }

    pub(super) fn picture(&self) -> StoreStats {
        StoreStats {
            l2: picture(&self.l2),
            l3: picture(&self.l3),
            l4: picture(&self.l4),
            remote: None,
            demotions: self.demotions.get(),
            dropped_victims: self.dropped_victims.get(),
            refusals: self.refusals.picture(),
            prefetch: self.prefetch.picture(),
            write_queue_bytes: 0,
            write_queue_runs: 0,
        }
    }
}

fn picture(counters: &TierCounters) -> TierStats {
    TierStats {
        capacity: 0,
        used: 0,
        runs: 0,
        blocks: 0,
        hit_blocks: counters.hit_blocks.get(),
        reads: counters.reads.get(),
        read_bytes: counters.read_bytes.get(),
        read_micros: counters.read_micros.get(),
        shared_reads: counters.shared_reads.get(),
        joined_reads: 0,
        memory_waits: 0,
        writes: counters.writes.get(),
        write_bytes: counters.write_bytes.get(),
        write_micros: counters.write_micros.get(),
        evictions: counters.evictions.get(),
        corrupt: counters.corrupt.get(),
        gone: counters.gone.get(),
        io_errors: counters.io_errors.get(),
    }
}

/// One tier of a store. Sizes in bytes, times in microseconds that threads were busy; counts since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierStats {
    /// Bytes that it may take.
    pub capacity: u64,
    /// Bytes that it takes.
    pub used: u64,
    /// Runs that can be read.
    pub runs: usize,
    /// Blocks that can be read.
    pub blocks: usize,
    /// Blocks that plans found here.
    pub hit_blocks: u64,
    /// Pieces of work that read from here.
    pub reads: u64,
    /// Payload bytes that were read.
    pub read_bytes: u64,
    /// Time spent reading.
    pub read_micros: u64,
    /// Pieces of work that another reader's read of the same bytes served: they are not among `reads`.
    pub shared_reads: u64,
    /// Runs that were read by one operation together with neighbours.
    pub joined_reads: u64,
    /// Transfers that waited for working memory.
    pub memory_waits: u64,
    /// Runs that were stored here.
    pub writes: u64,
    /// Payload bytes of them.
    pub write_bytes: u64,
    /// Time spent storing.
    pub write_micros: u64,
    /// Runs that went to make room for others.
    pub evictions: u64,
    /// Reads that found bytes other than those written; each was a miss.
    pub corrupt: u64,
    /// Reads that the system failed; each was a miss.
    pub io_errors: u64,
    /// Reads of runs that were deleted meanwhile; each was a miss.
    pub gone: u64,
}

/// Runs that were not kept, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// [`Refusal::TooLarge`].
    pub too_large: u64,
    /// [`Refusal::NothingToEvict`].
    pub nothing_to_evict: u64,
    /// [`Refusal::NoSpace`].
    pub no_space: u64,
    /// [`Refusal::WriteFailed`].
    pub write_failed: u64,
    /// [`Refusal::QueueFull`].
    pub queue_full: u64,
    /// [`Refusal::ParentMissing`].
    pub parent_missing: u64,
    /// [`Refusal::Decoded`].
    pub decoded: u64,
    /// [`Refusal::TooFewUses`].
    pub too_few_uses: u64,
    /// [`Refusal::Unavailable`].
    pub unavailable: u64,
    /// [`Refusal::Expired`].
    pub expired: u64,
    /// [`Refusal::NotPersisted`].
    pub not_persisted: u64,
    /// [`Refusal::OverQuota`].
    pub over_quota: u64,
}

/// What became of prefetched runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefetchStats {
    /// Runs that tickets asked for and nobody was loading yet.
    pub issued: u64,
    /// Of them: read into L2, or there already.
    pub loaded: u64,
    /// Of them: read by a plan, or claimed.
    pub claimed: u64,
    /// Taken over by a plan before their load began.
    pub stolen: u64,
    /// Given up by their tickets, or removed from the store.
    pub cancelled: u64,
    /// Not claimed in time.
    pub timed_out: u64,
    /// Their bytes could not be read.
    pub failed: u64,
    /// No room in L2.
    pub refused: u64,
    /// Plans that waited for prefetches, as their stop policies ask.
    pub waits: u64,
    /// Plans whose time to wait was over first (`timeout`).
    pub expired_waits: u64,
    /// Bytes of L2 that are held or on their way now.
    pub held_bytes: u64,
}

/// What a store holds and has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Host memory; all zero without L2.
    pub l2: TierStats,
    /// Local disk; all zero without L3.
    pub l3: TierStats,
    /// What was read from a shared tier and written to it; all zero without L4. What it holds in all, only its servers know.
    pub l4: TierStats,
    /// The shared tier's own account; none without L4.
    pub remote: Option<RemoteStats>,
    /// Runs that L1 gave up and this store kept.
    pub demotions: u64,
    /// Runs that L2 evicted and no tier below had or took.
    pub dropped_victims: u64,
    /// Runs that L2 and L3 did not keep, by reason; L4 counts its own.
    pub refusals: Refusals,
    /// Prefetched runs.
    pub prefetch: PrefetchStats,
    /// Payload bytes accepted for L3 and not written yet.
    pub write_queue_bytes: u64,
    /// Runs accepted for L3 and not written yet.
    pub write_queue_runs: usize,
}
