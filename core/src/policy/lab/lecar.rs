//! `LeCaR`: regret decides between LRU and LFU.

use super::draw::Draw;
use super::ranks::{Held, Ranks, Stamps, weight};
use crate::policy::ghosts::Ghosts;
use crate::policy::{EntryMeta, EvictionPolicy, Slot};

/// How much a regret moves the weights; the authors' choice.
const LEARNING_RATE: f64 = 0.45;
/// What a regret has lost of its weight after as many uses as there are entries; the authors' choice.
const DISCOUNT: f64 = 0.005;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expert {
    Lru,
    Lfu,
}

#[derive(Clone, Copy, Debug)]
struct Uses {
    last: u64,
    count: u64,
}

/// What is remembered of an evicted piece.
#[derive(Clone, Copy, Debug)]
struct Gone {
    count: u64,
    at: u64,
}

/// `LeCaR` (Vietri et al., `HotStorage`'18): for each victim, chance chooses between the candidates that LRU and LFU would evict;
/// the odds are two weights that sum to 1. A miss of what an expert had evicted lately makes that expert's weight smaller, the
/// more so the shorter ago that was. O(log n) a call.
///
/// - Learning rate 0.45, discount `0.005^(1/n)` a use for `n` entries: `LEARNING_RATE`, `DISCOUNT`, the authors' values.
/// - Each expert's history stands for half the capacity, as in the authors' code. What both would have evicted enters neither.
/// - What comes back from a history keeps its count of uses. Ties of LFU go by age.
/// - The draws are the same in every run (`draw.rs`); a draw holds until the owner has followed it or changed what is
///   a candidate.
#[derive(Debug)]
pub(super) struct LeCaR {
    history_share: u64,
    draw: Draw,
    stamps: Stamps,
    now: u64,
    entries: usize,
    /// The weight of LRU; that of LFU is the rest to 1.
    lru_weight: f64,
    by_age: Ranks<Uses, u64>,
    by_count: Ranks<(), (u64, u64)>,
    lru_gone: Ghosts<Gone>,
    lfu_gone: Ghosts<Gone>,
    /// The draw that the owner has not followed yet, and who is to blame for it.
    drawn: Option<(Slot, Option<Expert>)>,
}

impl LeCaR {
    pub(super) fn new(capacity: u64, seed: u64) -> Self {
        Self {
            history_share: (capacity / 2).max(1),
            draw: Draw::new(seed),
            stamps: Stamps::default(),
            now: 0,
            entries: 0,
            lru_weight: 0.5,
            by_age: Ranks::default(),
            by_count: Ranks::default(),
            lru_gone: Ghosts::default(),
            lfu_gone: Ghosts::default(),
            drawn: None,
        }
    }

    fn tick(&mut self) -> u64 {
        self.now = self.stamps.next();
        self.now
    }

    /// The count of an entry's uses when it was evicted, if that is remembered; the weights learn from it.
    fn regret(&mut self, ghost: u64) -> u64 {
        let (gone, blamed) = match self.lru_gone.take(ghost) {
            Some(gone) => (gone, Expert::Lru),
            None => match self.lfu_gone.take(ghost) {
                Some(gone) => (gone, Expert::Lfu),
                None => return 0,
            },
        };
        let ago = (self.now - gone.at) as f64 / self.entries.max(1) as f64;
        let reward = (LEARNING_RATE * DISCOUNT.powf(ago)).exp();
        let (lru, lfu) = (self.lru_weight, 1.0 - self.lru_weight);
        let (lru, lfu) = match blamed {
            Expert::Lru => (lru, lfu * reward),
            Expert::Lfu => (lru * reward, lfu),
        };
        // Never quite certain: a weight that became 0 could not grow again.
        self.lru_weight = (lru / (lru + lfu)).clamp(1e-9, 1.0 - 1e-9);
        gone.count
    }

    fn add(&mut self, slot: Slot, held: Held<Uses>) {
        let Uses { last, count } = held.history;
        self.by_age.insert(slot, held, last);
        let held = Held {
            ghost: held.ghost,
            meta: held.meta,
            history: (),
        };
        self.by_count.insert(slot, held, (count, last));
        self.entries += 1;
    }

    /// Makes an entry the newest, with so many more uses.
    fn move_up(&mut self, slot: Slot, uses: u64) {
        self.drawn = None;
        let last = self.tick();
        let mut count = 0;
        self.by_age.update(slot, |held| {
            held.history.last = last;
            held.history.count += uses;
            count = held.history.count;
            last
        });
        self.by_count.update(slot, |_| (count, last));
    }

    fn bury(&mut self, expert: Option<Expert>, ghost: u64, weight: u64, count: u64) {
        let gone = Gone {
            count,
            at: self.now,
        };
        match expert {
            Some(Expert::Lru) => self.lru_gone.add(ghost, weight, gone),
            Some(Expert::Lfu) => self.lfu_gone.add(ghost, weight, gone),
            None => None,
        };
    }

    /// Who is to blame for the end of an entry.
    fn blame(&mut self, slot: Slot) -> Option<Expert> {
        let (drawn, expert) = self.drawn.take()?;
        expert.filter(|_| drawn == slot)
    }

    fn take(&mut self, slot: Slot) -> Option<Held<Uses>> {
        self.drawn = None;
        self.by_count.remove(slot);
        let held = self.by_age.remove(slot)?;
        self.entries -= 1;
        Some(held)
    }
}

impl EvictionPolicy for LeCaR {
    fn wants_ghosts(&self) -> bool {
        true
    }

    fn insert(&mut self, slot: Slot, ghost: u64, meta: EntryMeta) {
        let last = self.tick();
        let count = self.regret(ghost) + 1;
        // Only now, so that what makes room for an entry does not push out its own name.
        self.lru_gone.shrink(self.history_share);
        self.lfu_gone.shrink(self.history_share);
        let history = Uses { last, count };
        let held = Held {
            ghost,
            meta,
            history,
        };
        self.add(slot, held);
    }

    fn touch(&mut self, slot: Slot) {
        self.move_up(slot, 1);
    }

    fn renew(&mut self, slot: Slot) {
        self.move_up(slot, 0);
    }

    fn split(
        &mut self,
        head: Slot,
        head_meta: EntryMeta,
        tail: Slot,
        tail_ghost: u64,
        tail_meta: EntryMeta,
    ) {
        let Some(&whole) = self.by_age.get(tail) else {
            return;
        };
        self.by_age.update(tail, |held| {
            held.ghost = tail_ghost;
            held.meta = tail_meta;
            held.history.last
        });
        self.add(
            head,
            Held {
                meta: head_meta,
                ..whole
            },
        );
    }

    fn trim(&mut self, slot: Slot, ghost: u64, meta: EntryMeta) {
        let expert = self.blame(slot);
        let Some(&whole) = self.by_age.get(slot) else {
            return;
        };
        let cut = whole.weight().saturating_sub(weight(&meta));
        self.bury(expert, ghost, cut, whole.history.count);
        self.by_age.update(slot, |held| {
            held.meta = meta;
            held.history.last
        });
    }

    fn set_candidate(&mut self, slot: Slot, candidate: bool) {
        self.drawn = None;
        self.by_age.set_candidate(slot, candidate);
        self.by_count.set_candidate(slot, candidate);
    }

    fn evicted(&mut self, slot: Slot) {
        let expert = self.blame(slot);
        if let Some(held) = self.take(slot) {
            let weight = held.weight();
            self.bury(expert, held.ghost, weight, held.history.count);
        }
    }

    fn remove(&mut self, slot: Slot) {
        self.take(slot);
    }

    fn victim(&mut self) -> Option<Slot> {
        if let Some((slot, _)) = self.drawn {
            return Some(slot);
        }
        let (oldest, rarest) = (self.by_age.first()?, self.by_count.first()?);
        let lru = self.draw.fraction() < self.lru_weight;
        self.drawn = Some(match (oldest == rarest, lru) {
            (true, _) => (oldest, None),
            (false, true) => (oldest, Some(Expert::Lru)),
            (false, false) => (rarest, Some(Expert::Lfu)),
        });
        self.drawn.map(|(slot, _)| slot)
    }

    fn candidates(&self) -> usize {
        self.by_age.candidates()
    }

    fn validate(&self) -> Result<(), String> {
        self.by_age.validate()?;
        self.by_count.validate()?;
        let entries = self.by_age.entries().count();
        if entries != self.entries || self.by_count.candidates() != self.by_age.candidates() {
            return Err(format!(
                "{entries} entries, counted {}; {} candidates by age, {} by count",
                self.entries,
                self.by_age.candidates(),
                self.by_count.candidates()
            ));
        }
        self.lru_gone.validate()?;
        self.lfu_gone.validate()
    }
}
