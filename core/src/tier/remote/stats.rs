//! What a shared tier has done, and how its servers are.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::breaker::BreakerState;
use super::values::{Failure, ServerMemory};
use crate::tier::Refusal;

/// What a [`SharedTier`](crate::tier::SharedTier) has done since the store was opened. Times in microseconds, sizes in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemoteStats {
    /// Blocks that lookups found.
    pub found_blocks: u64,
    /// Blocks that they did not find.
    pub missed_blocks: u64,
    /// Lookups, each of any number of blocks.
    pub lookups: u64,
    /// Time spent in them.
    pub lookup_micros: u64,
    /// Reads of slices that gave back verified bytes.
    pub reads: u64,
    /// Bytes of them as they came over the network.
    pub read_bytes: u64,
    /// Time spent in reads, failed ones included.
    pub read_micros: u64,
    /// Runs written.
    pub writes: u64,
    /// Bytes of their records.
    pub write_bytes: u64,
    /// Time spent writing, looking whether they are there included.
    pub write_micros: u64,
    /// Runs that were not written because all of their blocks were there.
    pub present: u64,
    /// What went wrong with servers, by kind.
    pub errors: RemoteErrors,
    /// Values that were not what was written, or not of this tier: misses. The run's value is deleted if it was written under the
    /// header that it has.
    pub corrupt: u64,
    /// Values that had vanished between a lookup and the read: misses.
    pub gone: u64,
    /// Runs whose time to live was over, though the server still had them: misses.
    pub expired: u64,
    /// Payload bytes that wait to be written.
    pub queue_bytes: u64,
    /// Runs that wait to be written, or are being written.
    pub queue_runs: usize,
    /// Runs that were not kept, by reason.
    pub refusals: RemoteRefusals,
    /// Each server, in the order of the configuration; one row for a cluster.
    pub servers: Vec<ServerStats>,
}

/// What went wrong with servers, by kind. One lookup or read can meet several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemoteErrors {
    /// [`Failure::Timeout`].
    pub timeouts: u64,
    /// [`Failure::Refused`].
    pub refused: u64,
    /// [`Failure::Auth`].
    pub auth: u64,
    /// [`Failure::Protocol`].
    pub protocol: u64,
    /// [`Failure::WrongType`].
    pub wrong_type: u64,
    /// [`Failure::OutOfMemory`].
    pub out_of_memory: u64,
    /// [`Failure::Redirect`].
    pub redirects: u64,
    /// [`Failure::Other`].
    pub other: u64,
}

/// Runs that a shared tier did not keep, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemoteRefusals {
    /// [`Refusal::TooLarge`].
    pub too_large: u64,
    /// [`Refusal::NoSpace`]: the server had no memory left.
    pub no_space: u64,
    /// [`Refusal::WriteFailed`].
    pub write_failed: u64,
    /// [`Refusal::QueueFull`].
    pub queue_full: u64,
    /// [`Refusal::Decoded`].
    pub decoded: u64,
    /// [`Refusal::Unavailable`]: no server answered lately, the run was removed or forgotten while it waited, or the tier is closed.
    pub unavailable: u64,
    /// [`Refusal::Expired`].
    pub expired: u64,
    /// [`Refusal::NotPersisted`].
    pub not_persisted: u64,
}

/// One server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerStats {
    /// Which one, without password.
    pub address: String,
    /// Whether it is asked.
    pub state: BreakerState,
    /// Whether it takes values; open for a while after it had no memory left or would not have them from this user.
    pub writing: BreakerState,
    /// How often it stopped being asked.
    pub opened: u64,
    /// The last thing that went wrong, if it is not asked now or takes no values.
    pub trouble: Option<String>,
}

/// How a server answered when it was asked how it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerHealth {
    /// Which one, without password.
    pub address: String,
    /// Whether it is asked from now on.
    pub state: BreakerState,
    /// How long a sign of life took.
    pub latency: Option<Duration>,
    /// Its memory, if it says.
    pub memory: Option<ServerMemory>,
    /// What is wrong, if anything is.
    pub error: Option<String>,
}

/// Running counts, updated without a lock.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) found_blocks: Counter,
    pub(super) missed_blocks: Counter,
    pub(super) lookups: Counter,
    pub(super) lookup_micros: Counter,
    pub(super) reads: Counter,
    pub(super) read_bytes: Counter,
    pub(super) read_micros: Counter,
    pub(super) writes: Counter,
    pub(super) write_bytes: Counter,
    pub(super) write_micros: Counter,
    pub(super) present: Counter,
    pub(super) corrupt: Counter,
    pub(super) gone: Counter,
    pub(super) expired: Counter,
    timeouts: Counter,
    refused: Counter,
    auth: Counter,
    protocol: Counter,
    wrong_type: Counter,
    out_of_memory: Counter,
    redirects: Counter,
    other: Counter,
    too_large: Counter,
    no_space: Counter,
    write_failed: Counter,
    queue_full: Counter,
    decoded: Counter,
    unavailable: Counter,
    refused_expired: Counter,
    not_persisted: Counter,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    pub(super) fn took(&self, time: Duration) {
        self.add(time.as_micros() as u64);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    pub(super) fn failed(&self, failure: Failure) {
        match failure {
            Failure::Timeout => &self.timeouts,
            Failure::Refused => &self.refused,
            Failure::Auth => &self.auth,
            Failure::Protocol => &self.protocol,
            Failure::WrongType => &self.wrong_type,
            Failure::OutOfMemory => &self.out_of_memory,
            Failure::Redirect => &self.redirects,
            Failure::Other => &self.other,
        }
        .add(1);
    }

    pub(super) fn refused(&self, refusal: Refusal) {
        match refusal {
            Refusal::TooLarge => &self.too_large,
            Refusal::NoSpace => &self.no_space,
            Refusal::QueueFull => &self.queue_full,
            Refusal::Decoded => &self.decoded,
            Refusal::Unavailable => &self.unavailable,
            Refusal::Expired => &self.refused_expired,
            Refusal::NotPersisted => &self.not_persisted,
            // This tier has no other reasons.
            Refusal::WriteFailed
            | Refusal::NothingToEvict
            | Refusal::ParentMissing
            | Refusal::TooFewUses
            | Refusal::OverQuota => &self.write_failed,
        }
        .add(1);
    }

    /// All but the queue and the servers.
    pub(super) fn picture(&self) -> RemoteStats {
        RemoteStats {
            found_blocks: self.found_blocks.get(),
            missed_blocks: self.missed_blocks.get(),
            lookups: self.lookups.get(),
            lookup_micros: self.lookup_micros.get(),
            reads: self.reads.get(),
            read_bytes: self.read_bytes.get(),
            read_micros: self.read_micros.get(),
            writes: self.writes.get(),
            write_bytes: self.write_bytes.get(),
            write_micros: self.write_micros.get(),
            present: self.present.get(),
            errors: RemoteErrors {
                timeouts: self.timeouts.get(),
                refused: self.refused.get(),
                auth: self.auth.get(),
                protocol: self.protocol.get(),
                wrong_type: self.wrong_type.get(),
                out_of_memory: self.out_of_memory.get(),
                redirects: self.redirects.get(),
                other: self.other.get(),
            },
            corrupt: self.corrupt.get(),
            gone: self.gone.get(),
            expired: self.expired.get(),
            refusals: RemoteRefusals {
                too_large: self.too_large.get(),
                no_space: self.no_space.get(),
                write_failed: self.write_failed.get(),
                queue_full: self.queue_full.get(),
                decoded: self.decoded.get(),
                unavailable: self.unavailable.get(),
                expired: self.refused_expired.get(),
                not_persisted: self.not_persisted.get(),
            },
            ..RemoteStats::default()
        }
    }
}
