//! Policies that are a rank of entries and little else.

use std::fmt;

use super::ranks::{Held, Ranks, weight};
use crate::policy::{EntryMeta, EvictionPolicy, Slot};

/// What a policy keeps of an entry, and which goes first. [`Ranked`] makes an [`EvictionPolicy`] of it.
///
/// The parts of an entry that is split both keep its history. The blocks that are cut off a leaf count as an entry of their own
/// that had the leaf's history and was evicted.
pub(super) trait Ranking: fmt::Debug + Send {
    /// What is kept of an entry.
    type History: Copy + fmt::Debug + Send;
    /// Candidates go in the order of their ranks, the lowest first.
    type Rank: Copy + Ord + fmt::Debug + Send;
    /// Whether names of entries are looked at.
    const WANTS_GHOSTS: bool = false;

    /// A request begins.
    fn request(&mut self, _now_ms: u64, _category: u32) {}

    /// A new entry.
    fn inserted(&mut self, ghost: u64, meta: &EntryMeta) -> Self::History;

    /// An entry was used.
    fn used(&mut self, entry: &mut Held<Self::History>);

    /// An entry is newer, but was not used once more.
    fn renewed(&mut self, entry: &mut Held<Self::History>) {
        self.used(entry);
    }

    /// A piece of some weight was evicted.
    fn evicted(&mut self, _history: &Self::History, _ghost: u64, _weight: u64) {}

    /// The weight of an entry changed: from 0 when it came, to 0 when it went.
    fn weighed(&mut self, _history: &Self::History, _before: u64, _after: u64) {}

    /// An entry's rank.
    fn rank(&self, entry: &Held<Self::History>) -> Self::Rank;

    /// The victim; the same one if asked again at once.
    fn choose(&mut self, ranks: &mut Ranks<Self::History, Self::Rank>) -> Option<Slot> {
        ranks.first()
    }

    /// A candidate whose time is over.
    fn expired(&self, _ranks: &Ranks<Self::History, Self::Rank>) -> Option<Slot> {
        None
    }

    /// Checks what the ranking keeps beside the entries.
    fn validate(&self, _ranks: &Ranks<Self::History, Self::Rank>) -> Result<(), String> {
        Ok(())
    }
}

/// A policy made of a [`Ranking`].
#[derive(Debug)]
pub(super) struct Ranked<P: Ranking> {
    ranking: P,
    ranks: Ranks<P::History, P::Rank>,
}

impl<P: Ranking> Ranked<P> {
    pub(super) fn new(ranking: P) -> Self {
        Self {
            ranking,
            ranks: Ranks::default(),
        }
    }

    fn add(&mut self, slot: Slot, held: Held<P::History>) {
        self.ranking.weighed(&held.history, 0, held.weight());
        let rank = self.ranking.rank(&held);
        self.ranks.insert(slot, held, rank);
    }

    /// Gives an entry another name or size.
    fn change(&mut self, slot: Slot, ghost: u64, meta: EntryMeta) {
        let ranking = &mut self.ranking;
        self.ranks.update(slot, |held| {
            ranking.weighed(&held.history, held.weight(), weight(&meta));
            held.ghost = ghost;
            held.meta = meta;
            ranking.rank(held)
        });
    }

    fn take(&mut self, slot: Slot) -> Option<Held<P::History>> {
        let held = self.ranks.remove(slot)?;
        self.ranking.weighed(&held.history, held.weight(), 0);
        Some(held)
    }
}

impl<P: Ranking> EvictionPolicy for Ranked<P> {
    fn wants_ghosts(&self) -> bool {
        P::WANTS_GHOSTS
    }

    fn request(&mut self, now_ms: u64, category: u32) {
        self.ranking.request(now_ms, category);
    }

    fn insert(&mut self, slot: Slot, ghost: u64, meta: EntryMeta) {
        let history = self.ranking.inserted(ghost, &meta);
        self.add(
            slot,
            Held {
                ghost,
                meta,
                history,
            },
        );
    }

    fn touch(&mut self, slot: Slot) {
        let ranking = &mut self.ranking;
        self.ranks.update(slot, |held| {
            ranking.used(held);
            ranking.rank(held)
        });
    }

    fn renew(&mut self, slot: Slot) {
        let ranking = &mut self.ranking;
        self.ranks.update(slot, |held| {
            ranking.renewed(held);
            ranking.rank(held)
        });
    }

    fn split(
        &mut self,
        head: Slot,
        head_meta: EntryMeta,
        tail: Slot,
        tail_ghost: u64,
        tail_meta: EntryMeta,
    ) {
        let Some(&whole) = self.ranks.get(tail) else {
            return;
        };
        self.change(tail, tail_ghost, tail_meta);
        self.add(
            head,
            Held {
                meta: head_meta,
                ..whole
            },
        );
    }

    fn trim(&mut self, slot: Slot, ghost: u64, meta: EntryMeta) {
        let Some(&whole) = self.ranks.get(slot) else {
            return;
        };
        let cut = whole.weight().saturating_sub(weight(&meta));
        self.change(slot, whole.ghost, meta);
        self.ranking.evicted(&whole.history, ghost, cut);
    }

    fn set_candidate(&mut self, slot: Slot, candidate: bool) {
        self.ranks.set_candidate(slot, candidate);
    }

    fn evicted(&mut self, slot: Slot) {
        if let Some(held) = self.take(slot) {
            let weight = held.weight();
            self.ranking.evicted(&held.history, held.ghost, weight);
        }
    }

    fn remove(&mut self, slot: Slot) {
        self.take(slot);
    }

    fn victim(&mut self) -> Option<Slot> {
        self.ranking.choose(&mut self.ranks)
    }

    fn expired(&mut self) -> Option<Slot> {
        self.ranking.expired(&self.ranks)
    }

    fn candidates(&self) -> usize {
        self.ranks.candidates()
    }

    fn validate(&self) -> Result<(), String> {
        self.ranks.validate()?;
        self.ranking.validate(&self.ranks)
    }
}
