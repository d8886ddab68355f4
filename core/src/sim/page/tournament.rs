//! The pages of each tier in the order of their scores.
//!
//! A tournament over a tier's pages: below number `n` play `2n` and `2n + 1`, and number 1 has the overall winner. For scores that
//! fade, a number also knows until when its winner is sure to win (a kinetic tournament: Basch, Guibas, Hershberger, "Data
//! structures for mobile data", SODA 1997).

use std::cmp::Ordering;
use std::hint::select_unpredictable;

use super::key::{FOREVER, Key, Now};
use super::workload::{PageId, TierIndex};

/// The place of a page that is not in the tier, and the page of a place that has none.
const NOBODY: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Leaf<K> {
    key: K,
    /// Counts up with each page that enters a tier.
    entered: u64,
    /// [`NOBODY`] if the key is vacant.
    page: PageId,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Contest {
    /// A leaf.
    winner: u32,
    /// The time from which on this, or who wins below, may be otherwise.
    until: f64,
}

/// One tier.
#[derive(Debug)]
struct Tournament<K> {
    /// As many as a power of two. Leaf `i` is the winner of number `leaves + i`.
    leaves: Vec<Leaf<K>>,
    contests: Vec<Contest>,
    vacant: Vec<u32>,
    /// Leaves whose pages left, but still stand as winners: most are taken by the next page, and played once for both.
    leaving: Vec<u32>,
    /// The most that any key asked for.
    margin: f64,
}

impl<K: Key> Tournament<K> {
    fn new() -> Self {
        Self {
            leaves: Vec::new(),
            contests: Vec::new(),
            vacant: Vec::new(),
            leaving: Vec::new(),
            margin: 0.0,
        }
    }

    /// Doubles the leaves; gives out one of the new.
    fn grow(&mut self, now: Now) -> u32 {
        let before = self.leaves.len();
        let leaves = (before * 2).max(2);
        let vacant = Leaf {
            key: K::VACANT,
            entered: 0,
            page: NOBODY,
        };
        self.leaves.resize(leaves, vacant);
        self.vacant.extend((before as u32 + 1..leaves as u32).rev());
        let alone = |winner| Contest {
            winner,
            until: FOREVER,
        };
        self.contests = vec![alone(0); leaves];
        self.contests.extend((0..leaves as u32).map(alone));
        for number in (1..leaves).rev() {
            self.contests[number] = self.contest(now, number);
        }
        before as u32
    }

    fn enter(&mut self, step: u64, page: PageId, key: K, entered: u64) -> u32 {
        let now = Now::new(step);
        let leaf = match self.leaving.pop().or_else(|| self.vacant.pop()) {
            Some(leaf) => leaf,
            None => self.grow(now),
        };
        self.leaves[leaf as usize] = Leaf { key, entered, page };
        self.margin = self.margin.max(key.margin(step));
        self.play(now, leaf);
        leaf
    }

    fn leave(&mut self, leaf: u32) {
        self.leaving.push(leaf);
    }

    fn update(&mut self, step: u64, leaf: u32, key: K) {
        let known = &mut self.leaves[leaf as usize];
        if known.key != key {
            known.key = key;
            self.margin = self.margin.max(key.margin(step));
            self.play(Now::new(step), leaf);
        }
    }

    fn first(&mut self, step: u64) -> Option<PageId> {
        let now = Now::new(step);
        while let Some(leaf) = self.leaving.pop() {
            let left = &mut self.leaves[leaf as usize];
            left.key = K::VACANT;
            left.page = NOBODY;
            self.vacant.push(leaf);
            self.play(now, leaf);
        }
        let winner = self.contests.get(1)?;
        if K::FADES && winner.until <= step as f64 {
            self.refresh(now, 1);
        }
        let page = self.leaves[self.contests[1].winner as usize].page;
        (page != NOBODY).then_some(page)
    }

    /// Plays the contests above a leaf that changed, as far up as they can end otherwise.
    fn play(&mut self, now: Now, leaf: u32) {
        let mut number = self.leaves.len() + leaf as usize;
        let mut contest = self.contests[number];
        let mut score = self.leaves[leaf as usize].key.estimate(now);
        while number > 1 {
            let other = self.contests[number ^ 1];
            (contest, score) = self.meet(now, (contest, score), other);
            number /= 2;
            let known = &mut self.contests[number];
            if contest == *known && contest.winner != leaf {
                break;
            }
            *known = contest;
        }
    }

    /// Plays the contests again that may end otherwise by now.
    fn refresh(&mut self, now: Now, number: usize) {
        if self.contests[number].until <= now.step as f64 {
            self.refresh(now, 2 * number);
            self.refresh(now, 2 * number + 1);
            self.contests[number] = self.contest(now, number);
        }
    }

    fn contest(&self, now: Now, number: usize) -> Contest {
        let one = self.contests[2 * number];
        let score = self.leaves[one.winner as usize].key.estimate(now);
        self.meet(now, (one, score), self.contests[2 * number + 1])
            .0
    }

    /// Who wins of one, whose score is known, and another; with the score. Which of them it is cannot be foreseen, so nothing
    /// branches on it.
    #[inline]
    fn meet(&self, now: Now, (one, score): (Contest, f64), other: Contest) -> (Contest, f64) {
        let leaf = &self.leaves[one.winner as usize];
        let rival = &self.leaves[other.winner as usize];
        let rival_score = rival.key.estimate(now);
        let gap = rival_score - score;
        let (first, until, score) = if gap.abs() <= self.margin {
            let (first, until) = compare_rounded(now.step, leaf, rival);
            (first, until, if first { score } else { rival_score })
        } else {
            let until = leaf.key.until(rival.key, gap, self.margin);
            (gap > 0.0, until, least(score, rival_score))
        };
        let outcome = Contest {
            winner: select_unpredictable(first, one.winner, other.winner),
            until: if K::FADES {
                least(until, least(one.until, other.until))
            } else {
                FOREVER
            },
        };
        (outcome, score)
    }
}

/// The lesser of two numbers, in one instruction: without the care of [`f64::min`] for what is no number.
fn least(one: f64, other: f64) -> f64 {
    if one < other { one } else { other }
}

/// Whether the first of two goes before the other, and until when that is sure.
#[cold]
fn compare_rounded<K: Key>(step: u64, one: &Leaf<K>, other: &Leaf<K>) -> (bool, f64) {
    let older = one.entered < other.entered;
    if one.key == other.key {
        return (older, FOREVER);
    }
    let first = match one.key.score(step).partial_cmp(&other.key.score(step)) {
        Some(Ordering::Less) => true,
        Some(Ordering::Greater) => false,
        _ => older,
    };
    (first, (step + 1) as f64)
}

/// The pages of several tiers, the one of the lowest score first in each; of equals, the one that entered the tier first. Every
/// change is O(log n), the first page O(1) but for contests that have to be played again, of which there are few.
#[derive(Debug)]
pub(super) struct Order<K> {
    tiers: Vec<Tournament<K>>,
    /// The leaf of page `p` in tier `t`, at `p * tiers + t`, or [`NOBODY`].
    leaves: Vec<u32>,
    entries: u64,
}

impl<K> Default for Order<K> {
    fn default() -> Self {
        Self {
            tiers: Vec::new(),
            leaves: Vec::new(),
            entries: 0,
        }
    }
}

impl<K: Key> Order<K> {
    /// Makes room for so many pages and tiers; keeps what is in.
    pub(super) fn reserve(&mut self, pages: usize, tiers: usize) {
        debug_assert!(self.tiers.is_empty() || self.tiers.len() == tiers);
        self.tiers.resize_with(tiers, Tournament::new);
        self.leaves.resize(pages * tiers, NOBODY);
    }

    /// The page is in the tier from now on.
    pub(super) fn enter(&mut self, step: u64, tier: TierIndex, page: PageId, key: K) {
        self.entries += 1;
        let leaf = self.tiers[tier].enter(step, page, key, self.entries);
        *self.leaf(tier, page) = leaf;
    }

    /// The page is in the tier no more.
    pub(super) fn leave(&mut self, tier: TierIndex, page: PageId) {
        let leaf = std::mem::replace(self.leaf(tier, page), NOBODY);
        if leaf != NOBODY {
            self.tiers[tier].leave(leaf);
        }
    }

    /// The page's key changed, wherever it is.
    pub(super) fn update(&mut self, step: u64, page: PageId, key: K) {
        for tier in 0..self.tiers.len() {
            let leaf = *self.leaf(tier, page);
            if leaf != NOBODY {
                self.tiers[tier].update(step, leaf, key);
            }
        }
    }

    /// The first page of the tier. `step` never goes back between calls.
    pub(super) fn first(&mut self, step: u64, tier: TierIndex) -> Option<PageId> {
        self.tiers[tier].first(step)
    }

    fn leaf(&mut self, tier: TierIndex, page: PageId) -> &mut u32 {
        &mut self.leaves[page as usize * self.tiers.len() + tier]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::key::Fading;
    use super::*;

    /// What happens to a page of 12, in one of two tiers.
    #[derive(Clone, Copy, Debug)]
    enum Happening {
        Enter(TierIndex, PageId),
        Leave(TierIndex, PageId),
        Use(PageId, u8, u8),
    }

    fn happening() -> impl Strategy<Value = Happening> {
        let (tier, page) = (0..2usize, 0..12u32);
        prop_oneof![
            (tier.clone(), page.clone()).prop_map(|(tier, page)| Happening::Enter(tier, page)),
            (tier, page.clone()).prop_map(|(tier, page)| Happening::Leave(tier, page)),
            (page, 0..4u8, 0..3u8).prop_map(|(page, uses, size)| Happening::Use(page, uses, size)),
        ]
    }

    /// Happenings, how many steps after the one before each is, and whether first pages are asked for then.
    fn history() -> impl Strategy<Value = Vec<(Happening, u64, bool)>> {
        let later = prop_oneof![0..3u64, 0..500u64];
        prop::collection::vec((happening(), later, any::<bool>()), 1..120)
    }

    /// What an order says is what a scan says.
    fn agree<K: Key>(
        history: Vec<(Happening, u64, bool)>,
        new: K,
        used: impl Fn(u64, u8, u8) -> K,
    ) -> Result<(), TestCaseError> {
        let mut order = Order::default();
        order.reserve(12, 2);
        let mut keys = [new; 12];
        let mut members: [Vec<PageId>; 2] = Default::default();
        let mut step = 0;
        for (happening, later, ask) in history {
            step += later;
            match happening {
                Happening::Enter(tier, page) if !members[tier].contains(&page) => {
                    members[tier].push(page);
                    order.enter(step, tier, page, keys[page as usize]);
                }
                Happening::Leave(tier, page) => {
                    members[tier].retain(|&member| member != page);
                    order.leave(tier, page);
                }
                Happening::Enter(..) => {}
                Happening::Use(page, uses, size) => {
                    keys[page as usize] = used(step, uses, size);
                    order.update(step, page, keys[page as usize]);
                }
            }
            for (tier, members) in members.iter().enumerate().filter(|_| ask) {
                let scan = members.iter().copied().min_by(|&a, &b| {
                    let (a, b) = (keys[a as usize], keys[b as usize]);
                    a.score(step).total_cmp(&b.score(step))
                });
                prop_assert_eq!(order.first(step, tier), scan);
            }
        }
        Ok(())
    }

    proptest! {
        /// Keys of few values, so that scores meet and tie, at steps that are near and far.
        #[test]
        fn the_first_is_what_a_scan_over_rounded_scores_finds(history in history()) {
            let new = Fading { steady: 0.0, recency: -1.0, extra: -0.4 };
            agree(history, new, |step, uses, size| Fading {
                steady: 2.0 * f64::from(uses),
                recency: step as f64,
                extra: -0.4 * (f64::from(size) * 2560.0 / 1024.0),
            })?;
        }

        #[test]
        fn the_first_of_steady_scores_is_what_a_scan_finds(history in history()) {
            agree(history, -1.0, |_, uses, size| f64::from(uses) - f64::from(size))?;
        }
    }

    #[test]
    fn an_old_page_is_overtaken_at_the_step_at_which_the_scores_meet() {
        let mut order = Order::default();
        order.reserve(2, 1);
        let old = Fading {
            steady: 1.0,
            recency: 0.0,
            extra: 0.0,
        };
        let new = Fading {
            steady: 0.0,
            recency: 100.0,
            extra: 0.0,
        };
        order.enter(50, 0, 0, old);
        order.enter(50, 0, 1, new);
        assert_eq!(order.first(99, 0), Some(0));
        // A tie at 100 goes to the one that entered first.
        assert_eq!(order.first(100, 0), Some(0));
        assert_eq!(order.first(101, 0), Some(1));
    }
}
