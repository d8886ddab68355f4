//! ARC: adaptive replacement.

use super::ranked::Ranking;
use super::ranks::{Held, Ranks, Stamps, weight};
use crate::policy::ghosts::Ghosts;
use crate::policy::{EntryMeta, Slot};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum List {
    /// `T1`: used once since it came.
    Once,
    /// `T2`: used again, or missed soon after it was evicted.
    Often,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    list: List,
    stamp: u64,
}

/// ARC (Megiddo and Modha, FAST'03): two LRU lists, `T1` of what was used once and `T2` of what was used more often, and the names
/// of what was evicted from each, `B1` and `B2`. A miss that finds its name in `B1` makes the target size `p` of `T1` larger, one
/// that finds it in `B2` makes it smaller; `T1` gives the victim while it is larger than `p`. No parameters. O(log n) a call.
///
/// Sizes are in weight, and a returning entry moves `p` by its own. `T1` and `B1` together stand for no more than the capacity,
/// all four lists for no more than twice that. If the list whose turn it is has no candidate, the other gives the victim.
///
/// Room is made before the policy hears what for, so a victim is chosen by the `p` from before the miss, where the paper adapts
/// `p` first (and prefers `T1` in a tie if the miss is in `B2`); lists and names are as in the paper from then on.
#[derive(Debug)]
pub(super) struct Arc {
    capacity: u64,
    target: f64,
    stamps: Stamps,
    once: u64,
    often: u64,
    once_ghosts: Ghosts<()>,
    often_ghosts: Ghosts<()>,
    /// Evicted since the last entry came in: no names yet while `p` adapts to that one.
    leaving: Vec<(List, u64, u64)>,
}

impl Arc {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            capacity,
            target: 0.0,
            stamps: Stamps::default(),
            once: 0,
            often: 0,
            once_ghosts: Ghosts::default(),
            often_ghosts: Ghosts::default(),
            leaving: Vec::new(),
        }
    }

    /// Whether the name of an entry that comes in is known; if so, `p` adapts.
    fn adapt(&mut self, ghost: u64, weight: u64) -> bool {
        let (once, often) = (
            self.once_ghosts.weight() as f64,
            self.often_ghosts.weight() as f64,
        );
        let step = weight as f64;
        if self.once_ghosts.take(ghost).is_some() {
            let more = step * (often / once).max(1.0);
            self.target = (self.target + more).min(self.capacity as f64);
            true
        } else if self.often_ghosts.take(ghost).is_some() {
            let less = step * (once / often).max(1.0);
            self.target = (self.target - less).max(0.0);
            true
        } else {
            false
        }
    }

    fn bury(&mut self) {
        for (list, ghost, weight) in self.leaving.drain(..) {
            let ghosts = match list {
                List::Once => &mut self.once_ghosts,
                List::Often => &mut self.often_ghosts,
            };
            ghosts.add(ghost, weight, ());
        }
    }
}

impl Ranking for Arc {
    type History = Place;
    type Rank = (List, [u64; 1]);
    const WANTS_GHOSTS: bool = true;

    fn inserted(&mut self, ghost: u64, meta: &EntryMeta) -> Place {
        let mut known = self.adapt(ghost, weight(meta));
        self.bury();
        // It may have been evicted to make room for itself.
        known |= self.once_ghosts.take(ghost).is_some();
        known |= self.often_ghosts.take(ghost).is_some();
        let (once, often) = if known {
            (self.once, self.often + weight(meta))
        } else {
            (self.once + weight(meta), self.often)
        };
        self.once_ghosts.shrink(self.capacity.saturating_sub(once));
        let rest = self.capacity.saturating_mul(2);
        let rest = rest.saturating_sub(once + often + self.once_ghosts.weight());
        self.often_ghosts.shrink(rest);
        Place {
            list: if known { List::Often } else { List::Once },
            stamp: self.stamps.next(),
        }
    }

    fn used(&mut self, entry: &mut Held<Place>) {
        if entry.history.list == List::Once {
            self.once -= entry.weight();
            self.often += entry.weight();
        }
        entry.history = Place {
            list: List::Often,
            stamp: self.stamps.next(),
        };
    }

    fn renewed(&mut self, entry: &mut Held<Place>) {
        entry.history.stamp = self.stamps.next();
    }

    fn evicted(&mut self, history: &Place, ghost: u64, weight: u64) {
        self.leaving.push((history.list, ghost, weight));
    }

    fn weighed(&mut self, history: &Place, before: u64, after: u64) {
        let list = match history.list {
            List::Once => &mut self.once,
            List::Often => &mut self.often,
        };
        *list = *list - before + after;
    }

    fn rank(&self, entry: &Held<Place>) -> (List, [u64; 1]) {
        (entry.history.list, [entry.history.stamp])
    }

    fn choose(&mut self, ranks: &mut Ranks<Place, (List, [u64; 1])>) -> Option<Slot> {
        let [turn, other] = if self.once as f64 > self.target {
            [List::Once, List::Often]
        } else {
            [List::Often, List::Once]
        };
        ranks.first_of(turn).or_else(|| ranks.first_of(other))
    }

    fn validate(&self, ranks: &Ranks<Place, (List, [u64; 1])>) -> Result<(), String> {
        for (list, weight) in [(List::Once, self.once), (List::Often, self.often)] {
            let held = ranks.entries().filter(|held| held.history.list == list);
            let counted: u64 = held.map(Held::weight).sum();
            if counted != weight {
                return Err(format!("list {list:?} weighs {counted}, not {weight}"));
            }
        }
        if !(0.0..=self.capacity as f64).contains(&self.target) {
            return Err(format!(
                "a target of {} for a capacity of {}",
                self.target, self.capacity
            ));
        }
        self.once_ghosts.validate()?;
        self.often_ghosts.validate()
    }
}
