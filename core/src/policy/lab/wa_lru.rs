//! WA-LRU, the eviction of SAGA.

use super::classes::{class_of, value_of};
use super::ranked::Ranking;
use super::ranks::{Held, Ranks, Stamps};
use super::reuse::Reuse;
use super::time::Time;
use crate::policy::{EntryMeta, Slot};

/// The weights of age, of how unlikely a reuse is, and of size: one third each. SAGA fits them to its traces.
const WEIGHTS: [f64; 3] = [1.0 / 3.0; 3];

#[derive(Clone, Copy, Debug)]
pub(super) struct Use {
    category: u32,
    at_ms: u64,
    stamp: u64,
}

/// WA-LRU (Guo, Wu and Yiu, "SAGA", arXiv 2605.00528): the candidate with the largest `a x age + b x (1 - reuse) + c x size`
/// goes; age and size are divided by the largest of any candidate. O(log n) a call, and as many times for a victim as there are
/// pairs of category and size.
///
/// - SAGA predicts `reuse` from the graph of an agent's workflow, which is not known here: it is the share of uses in the
///   category of the entry's last use that had a next one while the entry was held (`reuse.rs`).
/// - Size is rounded to an eighth of an octave: of one category and size, the entry that was used longest ago goes first, so
///   only those are compared.
/// - `a`, `b` and `c` are one third each by default (`WEIGHTS`). With one category and one size this is LRU.
#[derive(Debug)]
pub(super) struct WaLru {
    weights: [f64; 3],
    stamps: Stamps,
    time: Time,
    reuse: Reuse,
}

type Rank = ((u32, i16), [u64; 2]);

impl WaLru {
    pub(super) fn new(weights: [f64; 3]) -> Self {
        Self {
            weights,
            stamps: Stamps::default(),
            time: Time::default(),
            reuse: Reuse::default(),
        }
    }

    fn use_now(&mut self, otherwise: u32) -> Use {
        let category = self.time.category(otherwise);
        self.reuse.used(category);
        Use {
            category,
            at_ms: self.time.count_use(),
            stamp: self.stamps.next(),
        }
    }
}

impl Default for WaLru {
    fn default() -> Self {
        Self::new(WEIGHTS)
    }
}

impl Ranking for WaLru {
    type History = Use;
    type Rank = Rank;

    fn request(&mut self, now_ms: u64, category: u32) {
        self.time.request(now_ms, category);
    }

    fn inserted(&mut self, _ghost: u64, meta: &EntryMeta) -> Use {
        self.use_now(meta.category)
    }

    fn used(&mut self, entry: &mut Held<Use>) {
        let before = entry.history;
        entry.history = self.use_now(entry.meta.category);
        let idle_ms = entry.history.at_ms.saturating_sub(before.at_ms);
        self.reuse.reused(before.category, idle_ms);
    }

    fn renewed(&mut self, entry: &mut Held<Use>) {
        entry.history.stamp = self.stamps.next();
        entry.history.at_ms = self.time.now();
    }

    fn rank(&self, entry: &Held<Use>) -> Rank {
        let Use {
            category,
            at_ms,
            stamp,
        } = entry.history;
        let size = class_of(entry.weight() as f32);
        ((category, size), [at_ms, stamp])
    }

    fn choose(&mut self, ranks: &mut Ranks<Use, Rank>) -> Option<Slot> {
        let heads: Vec<_> = ranks.heads().collect();
        let now = self.time.now();
        let ages = heads
            .iter()
            .map(|((_, [at_ms, _]), _)| now.saturating_sub(*at_ms));
        let oldest = ages.max()?.max(1) as f64;
        let sizes = heads.iter().map(|(((_, size), _), _)| *size);
        let largest = value_of(sizes.max()?);
        let [age_weight, reuse_weight, size_weight] = self.weights;
        let scored = heads
            .iter()
            .map(|(((category, size), [at_ms, stamp]), slot)| {
                let age = now.saturating_sub(*at_ms) as f64 / oldest;
                let score = age_weight * age
                    + reuse_weight * (1.0 - self.reuse.share(*category))
                    + size_weight * value_of(*size) / largest;
                (score, *stamp, *slot)
            });
        let highest =
            scored.max_by(|left, right| left.0.total_cmp(&right.0).then(right.1.cmp(&left.1)));
        highest.map(|(.., slot)| slot)
    }
}
