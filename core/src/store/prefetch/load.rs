//! One run that tickets pull into L2: `Queued -> Running -> Held -> Over`; from every phase there is a way out.

use std::sync::Arc;

use crate::sync::Mutex;

use super::arrival::Arrival;
use crate::config::StopPolicy;
use crate::key::BlockKey;
use crate::run::RunHeader;
use crate::store::plan::covered;
use crate::store::stats::{Counter, PrefetchCounters};
use crate::tier::memory::MemoryRun;
use crate::tier::{PinnedRun, Span};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Queued,
    Running,
    Held,
    /// Over; the load is on the board no more.
    Over,
}

/// How a load ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum End {
    Claimed,
    Stolen,
    Cancelled,
    TimedOut,
    Failed,
    Refused,
}

impl End {
    pub(super) fn counter(self, counters: &PrefetchCounters) -> &Counter {
        match self {
            Self::Claimed => &counters.claimed,
            Self::Stolen => &counters.stolen,
            Self::Cancelled => &counters.cancelled,
            Self::TimedOut => &counters.timed_out,
            Self::Failed => &counters.failed,
            Self::Refused => &counters.refused,
        }
    }
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) phase: Phase,
    pub(super) loaded: bool,
    /// Tickets that want it.
    pub(super) owners: usize,
    /// The most patient of their policies.
    pub(super) stop: StopPolicy,
    /// The run in L3, while it has to be read.
    pub(super) source: Option<Arc<dyn PinnedRun>>,
    /// The run in L2, while it is held.
    pub(super) held: Option<Arc<MemoryRun>>,
    pub(super) waiters: Vec<Arc<Arrival>>,
}

impl Inner {
    /// One more ticket.
    pub(super) fn adopt(&mut self, stop: StopPolicy) {
        self.owners += 1;
        self.stop = self.stop.max(stop);
    }

    pub(super) fn is_under_way(&self) -> bool {
        matches!(self.phase, Phase::Queued | Phase::Running)
    }
}

/// One run on its way into L2. Its state changes only under the board's lock.
#[derive(Debug)]
pub(in crate::store) struct Load {
    pub(super) header: RunHeader,
    /// The block of it that was asked for first.
    pub(super) wanted: BlockKey,
    pub(super) arena_bytes: u64,
    /// Where it lies in L3; none once it is in L2.
    pub(super) span: Option<Span>,
    pub(super) inner: Mutex<Inner>,
}

impl Load {
    pub(in crate::store) fn header(&self) -> &RunHeader {
        &self.header
    }

    pub(in crate::store) fn wanted(&self) -> &BlockKey {
        &self.wanted
    }

    pub(in crate::store) fn span(&self) -> Option<Span> {
        self.span
    }
}

/// How many leading blocks of `keys` a load covers.
pub(in crate::store) fn wanted(load: &Load, keys: &[BlockKey]) -> usize {
    let first = keys
        .first()
        .and_then(|key| load.header.keys.iter().position(|stored| stored == key));
    first.map_or(0, |first| covered(&load.header, first, keys))
}
