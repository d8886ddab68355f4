//! What a page's score is made from.

use std::hint::select_unpredictable;

/// A moment, with what is divided by often.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) step: u64,
    /// 1 / step, where step 0 counts as 1.
    pub(super) inverse: f64,
}

impl Now {
    pub(super) fn new(step: u64) -> Self {
        Self {
            step,
            inverse: 1.0 / step.max(1) as f64,
        }
    }
}

/// A key that scores can be compared by.
pub(super) trait Key: Copy + PartialEq + Send + std::fmt::Debug {
    /// Goes behind all others.
    const VACANT: Self;
    /// Whether scores change though their keys do not.
    const FADES: bool;

    /// The score at a step, rounded as its definition says.
    fn score(self, step: u64) -> f64;
    /// The score, but for the [`margin`](Self::margin).
    fn estimate(self, now: Now) -> f64;
    /// How much the difference of two estimates may be off, from this step on, if it is no less for the other.
    fn margin(self, step: u64) -> f64;
    /// The time until which a key stays ahead of another that is more than `margin` behind it: `gap`, which is below zero if
    /// it is the other that is ahead.
    fn until(self, other: Self, gap: f64, margin: f64) -> f64;
}

/// No step comes then.
pub(super) const FOREVER: f64 = f64::INFINITY;

/// A score that changes only when something happens to the page.
impl Key for f64 {
    const VACANT: Self = f64::INFINITY;
    const FADES: bool = false;

    fn score(self, _step: u64) -> f64 {
        self
    }

    fn estimate(self, _now: Now) -> f64 {
        self
    }

    fn margin(self, _step: u64) -> f64 {
        0.0
    }

    fn until(self, _other: Self, _gap: f64, _margin: f64) -> f64 {
        FOREVER
    }
}

/// `(steady + recency / step) + extra`, rounded in this order: a score that fades as steps go by. The order of two such scores
/// changes at most once, at a step that can be told in advance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Fading {
    pub(super) steady: f64,
    pub(super) recency: f64,
    pub(super) extra: f64,
}

/// Rounding puts a difference of scores off by some 16 units of 2^-53, relative to the size of what is added.
const ROUNDING: f64 = 1e-14;

impl Fading {
    /// The score at the end of time.
    fn limit(self) -> f64 {
        self.steady + self.extra
    }
}

impl Key for Fading {
    const VACANT: Self = Self {
        steady: f64::INFINITY,
        recency: 0.0,
        extra: 0.0,
    };
    const FADES: bool = true;

    fn score(self, step: u64) -> f64 {
        self.steady + self.recency / step.max(1) as f64 + self.extra
    }

    fn estimate(self, now: Now) -> f64 {
        self.limit() + self.recency * now.inverse
    }

    fn margin(self, step: u64) -> f64 {
        let faded = self.recency / step.max(1) as f64;
        ROUNDING * (self.steady.abs() + self.extra.abs() + faded.abs())
    }

    fn until(self, other: Self, gap: f64, margin: f64) -> f64 {
        // The gap goes straight from here to `ahead` as 1 / step goes to 0, and is too narrow to be sure at `meets`.
        let ahead = other.limit() - self.limit();
        let narrows = margin.copysign(gap) - ahead;
        let meets = (other.recency - self.recency) / narrows;
        f64::from_bits(select_unpredictable(
            narrows * gap > 0.0,
            meets.to_bits(),
            FOREVER.to_bits(),
        ))
    }
}
