//! What [`RestoreMode::Auto`](super::RestoreMode) does with predictions, wherever they come from: predictions have errors, and a tier
//! that is left alone is never measured again unless it is tried.

use std::collections::BTreeMap;

use super::decide::{Cut, best};
use crate::tier::TierId;

/// What must be predicted to be saved before a found prefix is cut: predictions are no better than this.
const MARGIN_SECONDS: f64 = 0.002;
/// The same, as a share of what restoring all would take.
const MARGIN_SHARE: f64 = 0.05;
/// Requests that leave a tier alone before it is tried again.
pub(super) const TRIAL_REQUESTS: u32 = 16;
/// The share of the predicted time of requests that trials may add.
const TRIAL_SHARE: f64 = 0.05;

/// Where to stop restoring.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Weighed {
    /// All of it, or the cut of the least predicted time where that saves more than the margin.
    pub(crate) chosen: Cut,
    /// The cut after one that is not all: it reads one run more, or as many as it takes to get to the grid.
    pub(crate) next: Option<Cut>,
    pub(super) all: Cut,
    pub(super) none: Cut,
}

/// Chooses among cuts, the shortest first; none of no cuts.
pub(crate) fn weigh(cuts: &[Cut]) -> Option<Weighed> {
    let (&none, &all, &cheapest) = (cuts.first()?, cuts.last()?, best(cuts)?);
    let saved = all.total - cheapest.total;
    let whole = saved <= MARGIN_SECONDS.max(MARGIN_SHARE * all.total);
    let next = cuts.iter().find(|cut| cut.tokens > cheapest.tokens);
    Some(Weighed {
        chosen: if whole { all } else { cheapest },
        next: next.copied().filter(|_| !whole),
        all,
        none,
    })
}

/// Whether a tier that is left alone is due to be tried again.
#[derive(Clone, Copy, Debug, Default)]
struct Trial {
    /// Requests since that left it alone.
    requests: u32,
    /// Seconds that a trial may cost.
    credit: f64,
    /// What the last of them added to that.
    share: f64,
    /// The last trial went much better than predicted: the next one need not wait.
    promising: bool,
}

/// The tiers that are left alone.
#[derive(Debug, Default)]
pub(crate) struct Trials(BTreeMap<TierId, Trial>);

impl Trials {
    /// Whether to spend the difference between two cuts on a look at a tier.
    pub(crate) fn tries(&mut self, tier: TierId, chosen: &Cut, next: &Cut) -> bool {
        let trial = self.0.entry(tier).or_default();
        trial.requests = trial.requests.saturating_add(1);
        trial.share = TRIAL_SHARE * chosen.total;
        trial.credit += trial.share;
        let due = trial.requests >= TRIAL_REQUESTS && trial.credit >= next.total - chosen.total;
        trial.promising || due
    }

    /// A request did without a tier that is left alone, and did not even ask it: it counts as the last one that did.
    pub(crate) fn pass_over(&mut self, tier: TierId) {
        if let Some(trial) = self.0.get_mut(&tier) {
            trial.requests = trial.requests.saturating_add(1);
            trial.credit += trial.share;
        }
    }

    /// A tier was read, which starts the wait anew; it took so long, in seconds.
    pub(crate) fn read(&mut self, tier: TierId, predicted: f64, seconds: f64) {
        let trial = Trial {
            promising: seconds < predicted / 2.0,
            ..Trial::default()
        };
        self.0.insert(tier, trial);
    }
}
