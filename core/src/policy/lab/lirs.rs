//! LIRS: low inter-reference recency set.

use std::collections::BTreeSet;

use super::ranks::{Held, Ranks, Stamps, weight};
use crate::policy::ghosts::Ghosts;
use crate::policy::{EntryMeta, EvictionPolicy, Slot};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Status {
    /// HIR: evicted first, in the order of queue `Q`.
    High,
    /// LIR: kept as long as there is an HIR entry to evict.
    Low,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    status: Status,
    /// When it was last used: its place in stack `S`.
    used: u64,
    /// Whether it is in `S`.
    stacked: bool,
    /// Its place in `Q`, for one that is HIR.
    queued: u64,
}

/// Who stands in the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Member {
    /// An evicted HIR entry, by the order of evictions, and its name.
    Ghost(u64, u64),
    Entry(Slot),
}

type Rank = (Status, [u64; 1]);

/// LIRS (Jiang and Zhang, SIGMETRICS'02): entries whose last two uses lie close together (LIR) are kept; the few others (HIR) are
/// the victims, in a queue `Q`. A stack `S` holds, by last use, what was used no longer ago than the LIR entry that has waited
/// longest, evicted HIR entries among them; an HIR entry that is used while it is in `S` becomes LIR, and the bottom one in turn
/// HIR. O(log n) a call, amortised.
///
/// - HIR entries get 1 % of the capacity, at least 1: the paper's `Lhirs`. Until there are that many LIR ones, all become LIR.
/// - The paper does not bound the evicted entries in `S`; here all of `S` stands for at most twice the capacity, then the names
///   that were evicted first are forgotten.
/// - If no HIR entry is a candidate, the LIR candidate that was used longest ago goes, and leaves a name in `S` like an HIR one.
///   An HIR entry that becomes a candidate late has its place in `Q` from before.
/// - The parts of a split entry have one place in `S`. Blocks cut off a leaf leave a name beside it.
#[derive(Debug)]
pub(super) struct Lirs {
    capacity: u64,
    low_share: u64,
    stamps: Stamps,
    low_weight: u64,
    ranks: Ranks<Place, Rank>,
    stack: BTreeSet<(u64, Member)>,
    stack_weight: u64,
    /// Evicted entries that are in the stack, and where.
    ghosts: Ghosts<Buried>,
}

#[derive(Clone, Copy, Debug)]
struct Buried {
    used: u64,
    serial: u64,
    name: u64,
    weight: u64,
}

impl Buried {
    fn member(&self) -> (u64, Member) {
        (self.used, Member::Ghost(self.serial, self.name))
    }
}

fn rank(place: &Place) -> Rank {
    match place.status {
        Status::High => (Status::High, [place.queued]),
        Status::Low => (Status::Low, [place.used]),
    }
}

impl Lirs {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            capacity,
            low_share: capacity - (capacity / 100).max(1).min(capacity),
            stamps: Stamps::default(),
            low_weight: 0,
            ranks: Ranks::default(),
            stack: BTreeSet::new(),
            stack_weight: 0,
            ghosts: Ghosts::default(),
        }
    }

    /// Moves an entry to another place; weights and stack follow.
    fn set(&mut self, slot: Slot, place: Place) {
        let Some(&held) = self.ranks.get(slot) else {
            return;
        };
        self.uncount(slot, &held);
        self.ranks.update(slot, |held| {
            held.history = place;
            rank(&place)
        });
        let moved = Held {
            history: place,
            ..held
        };
        self.count(slot, &moved);
    }

    fn count(&mut self, slot: Slot, held: &Held<Place>) {
        let place = &held.history;
        if place.status == Status::Low {
            self.low_weight += held.weight();
        }
        if place.stacked {
            self.stack.insert((place.used, Member::Entry(slot)));
            self.stack_weight += held.weight();
        }
    }

    fn uncount(&mut self, slot: Slot, held: &Held<Place>) {
        let place = &held.history;
        if place.status == Status::Low {
            self.low_weight -= held.weight();
        }
        if place.stacked {
            self.stack.remove(&(place.used, Member::Entry(slot)));
            self.stack_weight -= held.weight();
        }
    }

    fn add(&mut self, slot: Slot, held: Held<Place>) {
        self.ranks.insert(slot, held, rank(&held.history));
        self.count(slot, &held);
    }

    fn forget(&mut self, ghost: Buried) {
        self.stack.remove(&ghost.member());
        self.stack_weight -= ghost.weight;
    }

    /// Puts the name of an evicted piece into the stack, where the piece was.
    fn bury(&mut self, place: &Place, name: u64, weight: u64) {
        if !place.stacked {
            return;
        }
        let ghost = Buried {
            used: place.used,
            serial: self.stamps.next(),
            name,
            weight,
        };
        self.stack.insert(ghost.member());
        self.stack_weight += weight;
        if let Some(older) = self.ghosts.add(name, weight, ghost) {
            self.forget(older);
        }
    }

    /// Takes what is not LIR off the bottom of the stack.
    fn prune(&mut self) {
        while let Some(&(_, member)) = self.stack.first() {
            match member {
                Member::Ghost(_, name) => match self.ghosts.take(name) {
                    Some(ghost) => self.forget(ghost),
                    None => return,
                },
                Member::Entry(slot) => match self.ranks.get(slot).map(|held| held.history) {
                    Some(place) if place.status == Status::High => {
                        let stacked = false;
                        self.set(slot, Place { stacked, ..place });
                    }
                    _ => return,
                },
            }
        }
    }

    /// Makes bottom entries of the stack HIR until the LIR ones fit their share, and keeps the stack within its bound.
    fn balance(&mut self) {
        self.prune();
        while self.low_weight > self.low_share
            && let Some(&(_, Member::Entry(slot))) = self.stack.first()
            && let Some(place) = self.ranks.get(slot).map(|held| held.history)
        {
            let queued = self.stamps.next();
            self.set(
                slot,
                Place {
                    status: Status::High,
                    stacked: false,
                    queued,
                    ..place
                },
            );
            self.prune();
        }
        let bound = self.capacity.saturating_mul(2);
        while self.stack_weight > bound
            && let Some(ghost) = self.ghosts.take_beyond(0)
        {
            self.forget(ghost);
        }
    }

    fn take(&mut self, slot: Slot) -> Option<Held<Place>> {
        let held = self.ranks.remove(slot)?;
        self.uncount(slot, &held);
        Some(held)
    }
}

impl EvictionPolicy for Lirs {
    fn wants_ghosts(&self) -> bool {
        true
    }

    fn insert(&mut self, slot: Slot, ghost: u64, meta: EntryMeta) {
        let known = self.ghosts.take(ghost);
        if let Some(ghost) = known {
            self.forget(ghost);
        }
        let low = known.is_some() || self.low_weight + weight(&meta) <= self.low_share;
        let used = self.stamps.next();
        let history = Place {
            status: if low { Status::Low } else { Status::High },
            used,
            stacked: true,
            queued: used,
        };
        self.add(
            slot,
            Held {
                ghost,
                meta,
                history,
            },
        );
        self.balance();
    }

    fn touch(&mut self, slot: Slot) {
        let Some(place) = self.ranks.get(slot).map(|held| held.history) else {
            return;
        };
        let used = self.stamps.next();
        let status = if place.stacked {
            Status::Low
        } else {
            place.status
        };
        self.set(
            slot,
            Place {
                status,
                used,
                stacked: true,
                queued: used,
            },
        );
        self.balance();
    }

    fn renew(&mut self, slot: Slot) {
        let Some(place) = self.ranks.get(slot).map(|held| held.history) else {
            return;
        };
        let used = self.stamps.next();
        self.set(
            slot,
            Place {
                used,
                queued: used,
                ..place
            },
        );
        self.balance();
    }

    fn split(
        &mut self,
        head: Slot,
        head_meta: EntryMeta,
        tail: Slot,
        tail_ghost: u64,
        tail_meta: EntryMeta,
    ) {
        let Some(whole) = self.ranks.get(tail).copied() else {
            return;
        };
        self.uncount(tail, &whole);
        self.ranks.update(tail, |held| {
            held.ghost = tail_ghost;
            held.meta = tail_meta;
            rank(&held.history)
        });
        let lower = Held {
            meta: tail_meta,
            ..whole
        };
        self.count(tail, &lower);
        self.add(
            head,
            Held {
                meta: head_meta,
                ..whole
            },
        );
        self.balance();
    }

    fn trim(&mut self, slot: Slot, ghost: u64, meta: EntryMeta) {
        let Some(whole) = self.ranks.get(slot).copied() else {
            return;
        };
        self.uncount(slot, &whole);
        self.ranks.update(slot, |held| {
            held.meta = meta;
            rank(&held.history)
        });
        self.count(slot, &Held { meta, ..whole });
        let cut = whole.weight().saturating_sub(weight(&meta));
        self.bury(&whole.history, ghost, cut);
        self.balance();
    }

    fn set_candidate(&mut self, slot: Slot, candidate: bool) {
        self.ranks.set_candidate(slot, candidate);
    }

    fn evicted(&mut self, slot: Slot) {
        if let Some(held) = self.take(slot) {
            self.bury(&held.history, held.ghost, held.weight());
            self.balance();
        }
    }

    fn remove(&mut self, slot: Slot) {
        if self.take(slot).is_some() {
            self.balance();
        }
    }

    fn victim(&mut self) -> Option<Slot> {
        self.ranks.first()
    }

    fn candidates(&self) -> usize {
        self.ranks.candidates()
    }

    fn validate(&self) -> Result<(), String> {
        self.ranks.validate()?;
        self.ghosts.validate()?;
        let low = self.ranks.entries();
        let low = low.filter(|held| held.history.status == Status::Low);
        let low: u64 = low.map(Held::weight).sum();
        let stacked = self.ranks.entries().filter(|held| held.history.stacked);
        let (members, weight) = stacked.fold((0, 0), |(count, weight), held| {
            (count + 1, weight + held.weight())
        });
        let ghosts = self.ghosts.values().count();
        if low != self.low_weight
            || weight + self.ghosts.weight() != self.stack_weight
            || members + ghosts != self.stack.len()
        {
            return Err(format!(
                "LIR entries weigh {low}, not {}; {members} entries and {ghosts} ghosts are in a stack of {}, which weighs {}",
                self.low_weight,
                self.stack.len(),
                self.stack_weight
            ));
        }
        if let Some(ghost) = self
            .ghosts
            .values()
            .find(|ghost| !self.stack.contains(&ghost.member()))
        {
            return Err(format!("{ghost:?} is not in the stack"));
        }
        match self.stack.first() {
            Some((_, Member::Ghost(..))) => Err("a ghost is at the bottom of the stack".to_owned()),
            _ => Ok(()),
        }
    }
}
