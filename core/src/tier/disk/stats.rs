//! What the disk tier counts.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::tier::{ReadFailure, Refusal};

/// Runs that a tier did not keep, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefusedCounts {
    /// Larger than the whole tier.
    pub too_large: u64,
    /// Everything that could go was pinned or had children.
    pub nothing_to_evict: u64,
    /// The disk was full or below its free-space reserve.
    pub no_space: u64,
    /// The system could not write.
    pub write_failed: u64,
    /// The block before was not there.
    pub parent_missing: u64,
    /// Its bytes came out of a lossy codec.
    pub decoded: u64,
    /// The run was deleted while it was being written, or the store is read-only.
    pub unavailable: u64,
    /// Its time to live was over.
    pub expired: u64,
    /// It must not be on disk.
    pub not_persisted: u64,
    /// Its tenant's quota was taken, and nothing of the tenant's could go.
    pub over_quota: u64,
}

/// Runs that were dropped because their bytes could not be used, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DroppedCounts {
    /// Not the bytes that were written.
    pub corrupt: u64,
    /// The system could not read them.
    pub io: u64,
}

/// What the disk tier holds and has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Runs stored.
    pub runs: usize,
    /// Blocks that can be found.
    pub blocks: usize,
    /// Bytes of the stored runs' records.
    pub live_bytes: u64,
    /// Bytes that segments (room set aside included, holes not) and index take on disk.
    pub used_bytes: u64,
    /// Bytes that they may take.
    pub capacity: u64,
    /// Segment files.
    pub segments: usize,
    /// Runs that are pinned by readers.
    pub pinned: usize,
    /// Whether reads and writes bypass the page cache.
    pub direct: bool,
    /// Reads that gave back verified bytes.
    pub reads: u64,
    /// Payload bytes they gave back.
    pub read_bytes: u64,
    /// Runs that were read by one operation together with neighbours.
    pub joined_reads: u64,
    /// Transfers that waited for working memory.
    pub memory_waits: u64,
    /// Runs written.
    pub writes: u64,
    /// Bytes of their records.
    pub write_bytes: u64,
    /// Runs evicted to make room.
    pub evictions: u64,
    /// Bytes of their records.
    pub evicted_bytes: u64,
    /// Of them: to keep a tenant within its quota.
    pub quota_evictions: u64,
    /// Runs that went because their time to live was over.
    pub expired: u64,
    /// Runs deleted by `remove` and `clear`.
    pub removed: u64,
    /// Runs dropped for damage.
    pub dropped: DroppedCounts,
    /// Runs that were kept at open though the system could not read their payload.
    pub unread_at_open: u64,
    /// Runs not kept.
    pub refused: RefusedCounts,
}

/// Running counts, updated without a lock.
#[derive(Debug, Default)]
pub(super) struct Counters {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    joined_reads: AtomicU64,
    writes: AtomicU64,
    write_bytes: AtomicU64,
    evictions: AtomicU64,
    evicted_bytes: AtomicU64,
    removed: AtomicU64,
    corrupt: AtomicU64,
    io: AtomicU64,
    too_large: AtomicU64,
    nothing_to_evict: AtomicU64,
    no_space: AtomicU64,
    write_failed: AtomicU64,
    parent_missing: AtomicU64,
    decoded: AtomicU64,
    unavailable: AtomicU64,
    refused_expired: AtomicU64,
    not_persisted: AtomicU64,
    over_quota: AtomicU64,
    quota_evictions: AtomicU64,
    expired: AtomicU64,
    unread_at_open: AtomicU64,
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Counters {
    pub(super) fn unread_at_open(runs: usize) -> Self {
        Self {
            unread_at_open: AtomicU64::new(runs as u64),
            ..Self::default()
        }
    }

    pub(super) fn read(&self, bytes: u64) {
        add(&self.reads, 1);
        add(&self.read_bytes, bytes);
    }

    pub(super) fn joined(&self, runs: usize) {
        add(&self.joined_reads, runs as u64);
    }

    pub(super) fn written(&self, bytes: u64) {
        add(&self.writes, 1);
        add(&self.write_bytes, bytes);
    }

    pub(super) fn evicted(&self, bytes: u64) {
        add(&self.evictions, 1);
        add(&self.evicted_bytes, bytes);
    }

    pub(super) fn evicted_for_quota(&self) {
        add(&self.quota_evictions, 1);
    }

    pub(super) fn expired(&self, runs: usize) {
        add(&self.expired, runs as u64);
    }

    pub(super) fn removed(&self, runs: usize) {
        add(&self.removed, runs as u64);
    }

    pub(super) fn dropped(&self, failure: ReadFailure) {
        match failure {
            ReadFailure::Io => add(&self.io, 1),
            ReadFailure::Corrupt => add(&self.corrupt, 1),
            ReadFailure::Gone => {}
        }
    }

    pub(super) fn refused(&self, refusal: Refusal) {
        let counter = match refusal {
            Refusal::TooLarge => &self.too_large,
            Refusal::NothingToEvict => &self.nothing_to_evict,
            Refusal::NoSpace => &self.no_space,
            Refusal::WriteFailed => &self.write_failed,
            Refusal::ParentMissing => &self.parent_missing,
            Refusal::Decoded => &self.decoded,
            Refusal::QueueFull | Refusal::TooFewUses | Refusal::Unavailable => &self.unavailable,
            Refusal::Expired => &self.refused_expired,
            Refusal::NotPersisted => &self.not_persisted,
            Refusal::OverQuota => &self.over_quota,
        };
        add(counter, 1);
    }

    /// Copies the counts into `stats`.
    pub(super) fn fill(&self, stats: &mut DiskStats) {
        stats.reads = get(&self.reads);
        stats.read_bytes = get(&self.read_bytes);
        stats.joined_reads = get(&self.joined_reads);
        stats.writes = get(&self.writes);
        stats.write_bytes = get(&self.write_bytes);
        stats.evictions = get(&self.evictions);
        stats.evicted_bytes = get(&self.evicted_bytes);
        stats.quota_evictions = get(&self.quota_evictions);
        stats.expired = get(&self.expired);
        stats.removed = get(&self.removed);
        stats.unread_at_open = get(&self.unread_at_open);
        stats.dropped = DroppedCounts {
            corrupt: get(&self.corrupt),
            io: get(&self.io),
        };
        stats.refused = RefusedCounts {
            too_large: get(&self.too_large),
            nothing_to_evict: get(&self.nothing_to_evict),
            no_space: get(&self.no_space),
            write_failed: get(&self.write_failed),
            parent_missing: get(&self.parent_missing),
            decoded: get(&self.decoded),
            unavailable: get(&self.unavailable),
            expired: get(&self.refused_expired),
            not_persisted: get(&self.not_persisted),
            over_quota: get(&self.over_quota),
        };
    }
}
