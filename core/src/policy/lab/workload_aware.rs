//! The workload-aware policy of "`KVCache` Cache in the Wild".

use super::ranked::Ranking;
use super::ranks::{Held, Ranks, Stamps};
use super::reuse::Reuse;
use super::time::Time;
use crate::policy::ghosts::Ghosts;
use crate::policy::{EntryMeta, Slot};

/// How fast the expected life follows the lives that end.
const LIFE_STEP: f64 = 0.01;

#[derive(Clone, Copy, Debug)]
pub(super) struct Use {
    category: u32,
    at_ms: u64,
    stamp: u64,
}

/// Evicts what is least likely to be used again within the time for which entries live (Wang et al., "`KVCache` Cache in the Wild",
/// ATC'25, section 5): the time between uses is fitted, category by category, with an exponential distribution, and what stands
/// later in a prompt goes first in a tie. O(log n + categories) a victim, O(log n) otherwise.
///
/// - A category is what the request of an entry's last use was of (in the paper, the kind of request and the turn of the
///   conversation). All that are used by one are in one category if nobody tells categories: then this is LRU, tail first.
/// - The probability is `share x (F(idle + life) - F(idle))`, where `F` is the fitted distribution and `share` that of uses that
///   had a next one; both are fitted online (`reuse.rs`) where the paper samples in the background. Uses that came after the
///   entry was evicted count too: names of as much as the capacity are remembered for that.
/// - `life` is the moving average of how long evicted entries had not been used; without end before there is one.
/// - Within a category it falls with age, so a category's victim is what was used longest ago, and only those are compared.
#[derive(Debug)]
pub(super) struct WorkloadAware {
    capacity: u64,
    stamps: Stamps,
    time: Time,
    reuse: Reuse,
    life_ms: Option<f64>,
    ghosts: Ghosts<Use>,
}

type Rank = (u32, [u64; 3]);

impl WorkloadAware {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            capacity,
            stamps: Stamps::default(),
            time: Time::default(),
            reuse: Reuse::default(),
            life_ms: None,
            ghosts: Ghosts::default(),
        }
    }

    fn use_now(&mut self, before: Option<Use>, otherwise: u32) -> Use {
        let now = Use {
            category: self.time.category(otherwise),
            at_ms: self.time.count_use(),
            stamp: self.stamps.next(),
        };
        if let Some(before) = before {
            self.reuse
                .reused(before.category, now.at_ms.saturating_sub(before.at_ms));
        }
        self.reuse.used(now.category);
        now
    }
}

impl Ranking for WorkloadAware {
    type History = Use;
    type Rank = Rank;
    const WANTS_GHOSTS: bool = true;

    fn request(&mut self, now_ms: u64, category: u32) {
        self.time.request(now_ms, category);
    }

    fn inserted(&mut self, ghost: u64, meta: &EntryMeta) -> Use {
        let before = self.ghosts.take(ghost);
        self.ghosts.shrink(self.capacity);
        self.use_now(before, meta.category)
    }

    fn used(&mut self, entry: &mut Held<Use>) {
        entry.history = self.use_now(Some(entry.history), entry.meta.category);
    }

    fn renewed(&mut self, entry: &mut Held<Use>) {
        entry.history.stamp = self.stamps.next();
        entry.history.at_ms = self.time.now();
    }

    fn evicted(&mut self, history: &Use, ghost: u64, weight: u64) {
        let idle = self.time.now().saturating_sub(history.at_ms) as f64;
        self.life_ms = Some(match self.life_ms {
            None => idle,
            Some(life) => life + LIFE_STEP * (idle - life),
        });
        self.ghosts.add(ghost, weight, *history);
    }

    fn rank(&self, entry: &Held<Use>) -> Rank {
        let Use {
            category,
            at_ms,
            stamp,
        } = entry.history;
        let tail_first = u64::from(u32::MAX - entry.meta.depth);
        (category, [at_ms, tail_first, stamp])
    }

    fn choose(&mut self, ranks: &mut Ranks<Use, Rank>) -> Option<Slot> {
        let life_ms = self.life_ms.unwrap_or(f64::INFINITY);
        let heads = ranks.heads().map(|((category, order), slot)| {
            let idle_ms = self.time.now().saturating_sub(order[0]);
            let probability = self.reuse.probability(category, idle_ms, life_ms);
            (probability, order[1], order[0], slot)
        });
        let least = heads.min_by(|left, right| {
            let probability = left.0.total_cmp(&right.0);
            probability.then((left.1, left.2).cmp(&(right.1, right.2)))
        });
        least.map(|(.., slot)| slot)
    }

    fn validate(&self, _ranks: &Ranks<Use, Rank>) -> Result<(), String> {
        self.ghosts.validate()
    }
}
