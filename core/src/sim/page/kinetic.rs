//! Orders of a tier's pages by a score that fades as steps go by.
//!
//! Such a score is a constant plus `recency / step`, so the order of two pages changes at most once, at a step that can be told
//! in advance. A tournament over the pages keeps, with each winner, the step until which it is sure to win.

use std::cmp::Ordering;

use super::ranking::{Order, Places};
use super::workload::{PageId, TierIndex};

const NOBODY: u32 = u32::MAX;
const FOREVER: u64 = u64::MAX;
/// Scores that are nearer than this, relative to their size, are compared as they are rounded, at every step anew.
const MARGIN: f64 = 1e-12;

/// `(steady + recency / step) + extra`, rounded in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Fading {
    pub(super) steady: f64,
    pub(super) recency: f64,
    pub(super) extra: f64,
}

#[derive(Clone, Copy, Debug)]
struct Leaf {
    key: Fading,
    /// Counts up with each page that enters a tier.
    entered: u64,
    page: PageId,
}

/// Who wins below a number of the tournament, with what a contest needs of it at hand.
#[derive(Clone, Copy, Debug)]
struct Player {
    /// The score at the end of time.
    limit: f64,
    recency: f64,
    margin: f64,
    /// The first step at which this, or who wins below, may not be so any more.
    until: u64,
    /// [`NOBODY`] if there is none.
    leaf: u32,
}

const VACANT: Player = Player {
    limit: 0.0,
    recency: 0.0,
    margin: 0.0,
    until: FOREVER,
    leaf: NOBODY,
};

impl Player {
    fn new(step: u64, key: Fading, leaf: u32) -> Self {
        let faded = key.recency / step.max(1) as f64;
        let size = key.steady.abs() + key.extra.abs() + faded.abs() + 1.0;
        Self {
            limit: key.steady + key.extra,
            recency: key.recency,
            margin: MARGIN * size,
            until: FOREVER,
            leaf,
        }
    }
}

/// A moment, with what is divided by often.
#[derive(Clone, Copy, Debug)]
struct Now {
    step: u64,
    /// 1 / step.
    inverse: f64,
}

impl Now {
    fn new(step: u64) -> Self {
        Self {
            step,
            inverse: 1.0 / step.max(1) as f64,
        }
    }
}

fn score(key: Fading, step: u64) -> f64 {
    key.steady + key.recency / step.max(1) as f64 + key.extra
}

/// Number 1 has the overall winner; below number `n` are `2n` and `2n + 1`, and leaf `i` is number `leaves + i`.
#[derive(Debug, Default)]
struct Tournament {
    leaves: Vec<Leaf>,
    players: Vec<Player>,
    free: Vec<u32>,
}

impl Tournament {
    fn enter(&mut self, step: u64, page: PageId, key: Fading, entered: u64) -> u32 {
        let leaf = match self.free.pop() {
            Some(leaf) => leaf,
            None => self.grow(step),
        };
        self.leaves[leaf as usize] = Leaf { key, entered, page };
        self.play(step, leaf, Player::new(step, key, leaf));
        leaf
    }

    fn leave(&mut self, step: u64, leaf: u32) {
        self.free.push(leaf);
        self.play(step, leaf, VACANT);
    }

    fn update(&mut self, step: u64, leaf: u32, key: Fading) {
        let known = &mut self.leaves[leaf as usize];
        if known.key != key {
            known.key = key;
            self.play(step, leaf, Player::new(step, key, leaf));
        }
    }

    fn first(&mut self, step: u64) -> Option<PageId> {
        if self.leaves.is_empty() {
            return None;
        }
        let winner = self.refresh(Now::new(step), 1).leaf;
        (winner != NOBODY).then(|| self.leaves[winner as usize].page)
    }

    /// Doubles the leaves; gives out one of the new.
    fn grow(&mut self, step: u64) -> u32 {
        let before = self.leaves.len();
        let leaves = (before * 2).max(2);
        let vacant = Leaf {
            key: Fading::default(),
            entered: 0,
            page: 0,
        };
        self.leaves.resize(leaves, vacant);
        let mut players = vec![VACANT; 2 * leaves];
        players[leaves..leaves + before].copy_from_slice(&self.players[before..]);
        self.players = players;
        for number in (1..leaves).rev() {
            self.players[number] = self.contest(Now::new(step), 2 * number, 2 * number + 1);
        }
        self.free.extend((before as u32 + 1..leaves as u32).rev());
        before as u32
    }

    /// Puts a player at a leaf and plays the contests above, as far up as they can end otherwise.
    fn play(&mut self, step: u64, leaf: u32, player: Player) {
        let now = Now::new(step);
        let mut number = self.leaves.len() + leaf as usize;
        self.players[number] = player;
        while number > 1 {
            let above = number / 2;
            let outcome = self.contest(now, number, number ^ 1);
            let known = &mut self.players[above];
            // Who won before and does again has not changed, unless it is the one that was put there.
            if outcome.leaf == known.leaf && outcome.until == known.until && outcome.leaf != leaf {
                break;
            }
            *known = outcome;
            number = above;
        }
    }

    /// Plays the contests again that may end otherwise by now.
    fn refresh(&mut self, now: Now, number: usize) -> Player {
        let known = self.players[number];
        if known.until > now.step {
            return known;
        }
        self.refresh(now, 2 * number);
        self.refresh(now, 2 * number + 1);
        self.players[number] = self.contest(now, 2 * number, 2 * number + 1);
        self.players[number]
    }

    fn contest(&self, now: Now, one: usize, other: usize) -> Player {
        let (one, other) = (&self.players[one], &self.players[other]);
        let below = one.until.min(other.until);
        let (winner, until) = if other.leaf == NOBODY {
            (one, FOREVER)
        } else if one.leaf == NOBODY {
            (other, FOREVER)
        } else {
            let (first, until) = self.compare(now, one, other);
            (if first { one } else { other }, until)
        };
        Player {
            until: until.min(below),
            ..*winner
        }
    }

    /// Whether the first of two goes before the other, and the step from which on that is not sure.
    fn compare(&self, now: Now, one: &Player, other: &Player) -> (bool, u64) {
        let margin = one.margin + other.margin;
        let ahead = one.limit - other.limit;
        let recency = one.recency - other.recency;
        let difference = ahead + recency * now.inverse;
        if difference.abs() <= margin {
            return self.compare_rounded(now.step, one.leaf, other.leaf);
        }
        let first = difference < 0.0;
        if first == (ahead < 0.0) && ahead.abs() > margin {
            return (first, FOREVER);
        }
        // It goes straight from here to `ahead`, and is within the margin at this step.
        let meets = recency / (margin.copysign(difference) - ahead);
        (first, (meets as u64).max(now.step + 1))
    }

    fn compare_rounded(&self, step: u64, one: u32, other: u32) -> (bool, u64) {
        let (one, other) = (&self.leaves[one as usize], &self.leaves[other as usize]);
        let older = one.entered < other.entered;
        if one.key == other.key {
            return (older, FOREVER);
        }
        let (x, y) = (score(one.key, step), score(other.key, step));
        let first = match x.partial_cmp(&y) {
            Some(Ordering::Less) => true,
            Some(Ordering::Greater) => false,
            _ => older,
        };
        (first, step + 1)
    }
}

/// A tournament a tier: every change is O(log n), the first page O(1) but for contests that have to be played again, of which
/// there are few.
#[derive(Debug, Default)]
pub(super) struct Kinetic {
    tiers: Vec<Tournament>,
    places: Places,
    entries: u64,
}

impl Order for Kinetic {
    type Key = Fading;

    fn reserve(&mut self, pages: usize, tiers: usize) {
        self.places.reserve(pages, tiers);
        self.tiers.resize_with(tiers, Tournament::default);
    }

    fn enter(&mut self, step: u64, tier: TierIndex, page: PageId, key: Fading) {
        self.entries += 1;
        let leaf = self.tiers[tier].enter(step, page, key, self.entries);
        self.places.set(tier, page, leaf);
    }

    fn leave(&mut self, step: u64, tier: TierIndex, page: PageId) {
        if let Some(leaf) = self.places.get(tier, page) {
            self.places.clear(tier, page);
            self.tiers[tier].leave(step, leaf);
        }
    }

    fn update(&mut self, step: u64, page: PageId, key: Fading) {
        for tier in 0..self.places.tiers() {
            if let Some(leaf) = self.places.get(tier, page) {
                self.tiers[tier].update(step, leaf, key);
            }
        }
    }

    fn first(&mut self, step: u64, tier: TierIndex) -> Option<PageId> {
        self.tiers[tier].first(step)
    }

    fn score(key: Fading, step: u64) -> f64 {
        score(key, step)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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

    proptest! {
        /// Keys of few values, so that scores meet and tie, at steps that are near and far.
        #[test]
        fn the_first_is_what_a_scan_over_rounded_scores_finds(
            happenings in prop::collection::vec((happening(), prop_oneof![0..3u64, 0..500u64]), 1..120)
        ) {
            let mut order = Kinetic::default();
            order.reserve(12, 2);
            let mut keys = [Fading { steady: 0.0, recency: -1.0, extra: -0.4 }; 12];
            let mut members: [Vec<PageId>; 2] = Default::default();
            let mut step = 0;
            for (happening, later) in happenings {
                step += later;
                match happening {
                    Happening::Enter(tier, page) if !members[tier].contains(&page) => {
                        members[tier].push(page);
                        order.enter(step, tier, page, keys[page as usize]);
                    }
                    Happening::Leave(tier, page) => {
                        members[tier].retain(|&member| member != page);
                        order.leave(step, tier, page);
                    }
                    Happening::Enter(..) => {}
                    Happening::Use(page, uses, size) => {
                        keys[page as usize] = Fading {
                            steady: 2.0 * f64::from(uses),
                            recency: step as f64,
                            extra: -0.4 * (f64::from(size) * 2560.0 / 1024.0),
                        };
                        order.update(step, page, keys[page as usize]);
                    }
                }
                for (tier, members) in members.iter().enumerate() {
                    let scan = members.iter().copied().min_by(|&a, &b| {
                        let (a, b) = (keys[a as usize], keys[b as usize]);
                        Kinetic::score(a, step).total_cmp(&Kinetic::score(b, step))
                    });
                    prop_assert_eq!(order.first(step, tier), scan);
                }
            }
        }
    }

    #[test]
    fn an_old_page_is_overtaken_at_the_step_at_which_the_scores_meet() {
        let mut order = Kinetic::default();
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
