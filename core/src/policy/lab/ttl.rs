//! A time to live.

use super::ranked::Ranking;
use super::ranks::{Held, Ranks, Stamps};
use super::time::Time;
use crate::policy::{EntryMeta, Slot};

/// Five minutes: what hosted prompt caches document as the life of an entry that is not used (Anthropic, "Prompt caching").
const IDLE_MS: u64 = 300_000;

#[derive(Clone, Copy, Debug)]
pub(super) struct Use {
    stamp: u64,
    at_ms: u64,
}

/// An idle time to live, the same for all: what was not used for that long goes, whether or not its room is wanted. If room is
/// wanted before, the entry that was used longest ago goes, which is the one that would expire first; so this is LRU that also
/// gives up room which nobody asked for. O(log n) a call.
///
/// Continuum (arXiv 2511.02230) sets the time from the cost of a reload and the length of tool calls; here it is
/// `idle_ms`, 300,000 by default (`IDLE_MS`). Only candidates expire: a shared prefix lives as long as anything below it. Without
/// [`request`](crate::policy::EvictionPolicy::request) no time passes.
#[derive(Debug)]
pub(super) struct Ttl {
    idle_ms: u64,
    stamps: Stamps,
    time: Time,
}

impl Ttl {
    pub(super) fn new(idle_ms: u64) -> Self {
        Self {
            idle_ms,
            stamps: Stamps::default(),
            time: Time::default(),
        }
    }

    fn use_now(&mut self) -> Use {
        Use {
            stamp: self.stamps.next(),
            at_ms: self.time.told_ms(),
        }
    }
}

impl Default for Ttl {
    fn default() -> Self {
        Self::new(IDLE_MS)
    }
}

impl Ranking for Ttl {
    type History = Use;
    type Rank = u64;

    fn request(&mut self, now_ms: u64, category: u32) {
        self.time.request(now_ms, category);
    }

    fn inserted(&mut self, _ghost: u64, _meta: &EntryMeta) -> Use {
        self.use_now()
    }

    fn used(&mut self, entry: &mut Held<Use>) {
        entry.history = self.use_now();
    }

    fn rank(&self, entry: &Held<Use>) -> u64 {
        entry.history.stamp
    }

    fn expired(&self, ranks: &Ranks<Use, u64>) -> Option<Slot> {
        let slot = ranks.first()?;
        let idle = self.time.told_ms() - ranks.get(slot)?.history.at_ms;
        (idle >= self.idle_ms).then_some(slot)
    }
}
