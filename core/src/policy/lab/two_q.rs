//! 2Q.

use super::ranked::Ranking;
use super::ranks::{Held, Ranks, Stamps};
use crate::policy::ghosts::Ghosts;
use crate::policy::{EntryMeta, Slot};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Queue {
    /// `A1in`: what came in for the first time.
    In,
    /// `Am`: what came back after it was evicted from `A1in`.
    Main,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    queue: Queue,
    stamp: u64,
}

/// The full version of 2Q (Johnson and Shasha, VLDB'94): new entries queue up in `A1in`, first in first out and whatever their
/// uses; those that are missed soon after they left it enter `Am`, an LRU list. While `A1in` is longer than its share it gives
/// the victims, else `Am` does. O(log n) a call.
///
/// `A1in` gets a quarter of the capacity, the names of what left it (`A1out`) stand for half a capacity: the paper's `Kin` and
/// `Kout`. If the list whose turn it is has no candidate the other gives the victim. Evicted from `Am` means forgotten.
#[derive(Debug)]
pub(super) struct TwoQ {
    /// `Kin`.
    in_share: u64,
    /// `Kout`.
    out_share: u64,
    stamps: Stamps,
    in_weight: u64,
    out: Ghosts<()>,
}

impl TwoQ {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            in_share: capacity / 4,
            out_share: capacity / 2,
            stamps: Stamps::default(),
            in_weight: 0,
            out: Ghosts::default(),
        }
    }
}

impl Ranking for TwoQ {
    type History = Place;
    type Rank = (Queue, [u64; 1]);
    const WANTS_GHOSTS: bool = true;

    fn inserted(&mut self, ghost: u64, _meta: &EntryMeta) -> Place {
        // Only now, so that what makes room for an entry does not push out its own name.
        let known = self.out.take(ghost).is_some();
        self.out.shrink(self.out_share);
        Place {
            queue: if known { Queue::Main } else { Queue::In },
            stamp: self.stamps.next(),
        }
    }

    fn used(&mut self, entry: &mut Held<Place>) {
        if entry.history.queue == Queue::Main {
            entry.history.stamp = self.stamps.next();
        }
    }

    fn evicted(&mut self, history: &Place, ghost: u64, weight: u64) {
        if history.queue == Queue::In {
            self.out.add(ghost, weight, ());
        }
    }

    fn weighed(&mut self, history: &Place, before: u64, after: u64) {
        if history.queue == Queue::In {
            self.in_weight = self.in_weight - before + after;
        }
    }

    fn rank(&self, entry: &Held<Place>) -> (Queue, [u64; 1]) {
        (entry.history.queue, [entry.history.stamp])
    }

    fn choose(&mut self, ranks: &mut Ranks<Place, (Queue, [u64; 1])>) -> Option<Slot> {
        let [turn, other] = if self.in_weight > self.in_share {
            [Queue::In, Queue::Main]
        } else {
            [Queue::Main, Queue::In]
        };
        ranks.first_of(turn).or_else(|| ranks.first_of(other))
    }

    fn validate(&self, ranks: &Ranks<Place, (Queue, [u64; 1])>) -> Result<(), String> {
        let held = ranks.entries();
        let queued = held.filter(|held| held.history.queue == Queue::In);
        let weight: u64 = queued.map(Held::weight).sum();
        if weight != self.in_weight {
            return Err(format!("A1in weighs {weight}, not {}", self.in_weight));
        }
        self.out.validate()
    }
}
