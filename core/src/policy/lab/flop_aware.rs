//! The FLOP-aware policy of Marconi.

use super::classes::{class_of, value_of};
use super::ranked::Ranking;
use super::ranks::{Held, Ranks, Stamps};
use crate::policy::{EntryMeta, Slot};

/// The weight of the cost: 1, as much as recency. Marconi finds it by replaying the beginning of a trace.
const ALPHA: f64 = 1.0;

/// Marconi's eviction (Pan et al., `MLSys`'25, section 4.2): a candidate's score is `recency + alpha x efficiency`, the lowest goes.
/// Recency is when it was last used, efficiency what recomputing it would cost for each byte; both are scaled to 0..1 between the
/// least and the most of all candidates. O(log n) a call, and as many times for a victim as there are classes of efficiency,
/// at most some dozens in practice.
///
/// Efficiency is rounded to an eighth of an octave: of a class, the entry that was used longest ago has the lowest score, so only
/// those are compared. Recency counts uses, not seconds. `alpha` is 1 by default (`ALPHA`); with 0, or where all entries cost the
/// same, this is LRU. Marconi's admission (only prefixes that are likely to recur get a state) is for recurrent layers and is
/// not part of it.
#[derive(Debug)]
pub(super) struct FlopAware {
    alpha: f64,
    stamps: Stamps,
}

type Rank = (i16, [u64; 1]);

impl FlopAware {
    pub(super) fn new(alpha: f64) -> Self {
        Self {
            alpha,
            stamps: Stamps::default(),
        }
    }
}

impl Default for FlopAware {
    fn default() -> Self {
        Self::new(ALPHA)
    }
}

/// Where a value lies between the least and the most.
fn scaled(value: f64, least: f64, most: f64) -> f64 {
    if most > least {
        (value - least) / (most - least)
    } else {
        0.0
    }
}

impl Ranking for FlopAware {
    type History = u64;
    type Rank = Rank;

    fn inserted(&mut self, _ghost: u64, _meta: &EntryMeta) -> u64 {
        self.stamps.next()
    }

    fn used(&mut self, entry: &mut Held<u64>) {
        entry.history = self.stamps.next();
    }

    fn rank(&self, entry: &Held<u64>) -> Rank {
        let class = class_of(entry.meta.cost / entry.weight() as f32);
        (class, [entry.history])
    }

    fn choose(&mut self, ranks: &mut Ranks<u64, Rank>) -> Option<Slot> {
        let heads: Vec<_> = ranks.heads().collect();
        let ((dearest, _), _) = *heads.last()?;
        let ((cheapest, _), _) = *heads.first()?;
        let used = heads.iter().map(|((_, [used]), _)| *used);
        let oldest = used.min()? as f64;
        let newest = heads.iter().filter_map(|((class, _), _)| {
            let [used] = ranks.last_of(*class)?;
            Some(used)
        });
        let newest = newest.max()? as f64;
        let scored = heads.iter().map(|((class, [used]), slot)| {
            let recency = scaled(*used as f64, oldest, newest);
            let efficiency = scaled(value_of(*class), value_of(cheapest), value_of(dearest));
            (recency + self.alpha * efficiency, *used, *slot)
        });
        let lowest =
            scored.min_by(|left, right| left.0.total_cmp(&right.0).then(left.1.cmp(&right.1)));
        lowest.map(|(.., slot)| slot)
    }
}
