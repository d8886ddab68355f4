//! Orders of a tier's pages by a score that fades as steps go by.
//!
//! Such a score is a constant plus `fading / step`, so the order of two pages changes at most once, at a step that can be told
//! in advance. A tournament over the pages keeps, with each winner, the step until which it is sure to win.

use super::ranking::{Order, Places};
use super::workload::{PageId, TierIndex};

const NOBODY: u32 = u32::MAX;
const FOREVER: u64 = u64::MAX;
/// Scores that are nearer than this, relative to their size, are compared as they are rounded, at every step anew.
const MARGIN: f64 = 1e-12;

/// `(steady + fading / step) + extra`, rounded in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Fading {
    pub(super) steady: f64,
    pub(super) fading: f64,
    pub(super) extra: f64,
}

#[derive(Clone, Copy, Debug)]
struct Leaf {
    key: Fading,
    /// The score at the end of time.
    limit: f64,
    margin: f64,
    /// Counts up with each page that enters a tier.
    entered: u64,
    /// [`NOBODY`] if the leaf is free.
    page: PageId,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Node {
    /// The winning leaf.
    winner: u32,
    /// The first step at which it, or a winner below, may not win any more.
    until: u64,
}

/// Below the root at 1 stand the nodes, then the leaves: node `n` has the children `2n` and `2n + 1`, leaf `i` is number
/// `leaves + i`.
#[derive(Debug, Default)]
struct Tournament {
    leaves: Vec<Leaf>,
    nodes: Vec<Node>,
    free: Vec<u32>,
}

const VACANT: Leaf = Leaf {
    key: Fading {
        steady: 0.0,
        fading: 0.0,
        extra: 0.0,
    },
    limit: 0.0,
    margin: 0.0,
    entered: 0,
    page: NOBODY,
};

impl Leaf {
    fn new(step: u64, key: Fading, entered: u64, page: PageId) -> Self {
        let faded = key.fading / step.max(1) as f64;
        let size = key.steady.abs() + key.extra.abs() + faded.abs() + 1.0;
        Self {
            key,
            limit: key.steady + key.extra,
            margin: MARGIN * size,
            entered,
            page,
        }
    }
}

fn score(key: Fading, step: u64) -> f64 {
    key.steady + key.fading / step.max(1) as f64 + key.extra
}

impl Tournament {
    fn enter(&mut self, step: u64, page: PageId, key: Fading, entered: u64) -> u32 {
        let leaf = match self.free.pop() {
            Some(leaf) => leaf,
            None => self.grow(step),
        };
        self.leaves[leaf as usize] = Leaf::new(step, key, entered, page);
        self.play(step, leaf);
        leaf
    }

    fn leave(&mut self, step: u64, leaf: u32) {
        self.leaves[leaf as usize] = VACANT;
        self.free.push(leaf);
        self.play(step, leaf);
    }

    fn update(&mut self, step: u64, leaf: u32, key: Fading) {
        let Leaf {
            key: before,
            entered,
            page,
            ..
        } = self.leaves[leaf as usize];
        if before == key {
            return;
        }
        self.leaves[leaf as usize] = Leaf::new(step, key, entered, page);
        self.play(step, leaf);
    }

    fn first(&mut self, step: u64) -> Option<PageId> {
        if self.leaves.is_empty() {
            return None;
        }
        let root = self.refresh(step, 1);
        (root.winner != NOBODY).then(|| self.leaves[root.winner as usize].page)
    }

    /// Doubles the leaves; gives out one of the new.
    fn grow(&mut self, step: u64) -> u32 {
        let before = self.leaves.len();
        let leaves = (before * 2).max(2);
        self.leaves.resize(leaves, VACANT);
        self.nodes = vec![
            Node {
                winner: NOBODY,
                until: FOREVER,
            };
            leaves
        ];
        for node in (1..leaves).rev() {
            self.nodes[node] = self.contest(step, node);
        }
        self.free.extend((before as u32 + 1..leaves as u32).rev());
        before as u32
    }

    /// Plays the contests above a leaf that changed, as far up as they can end otherwise.
    fn play(&mut self, step: u64, leaf: u32) {
        let mut node = (self.leaves.len() + leaf as usize) / 2;
        while node >= 1 {
            let outcome = self.contest(step, node);
            if outcome == self.nodes[node] && outcome.winner != leaf {
                break;
            }
            self.nodes[node] = outcome;
            node /= 2;
        }
    }

    /// Plays the contests again that may end otherwise by now.
    fn refresh(&mut self, step: u64, node: usize) -> Node {
        let known = self.player(node);
        if known.until > step {
            return known;
        }
        self.refresh(step, 2 * node);
        self.refresh(step, 2 * node + 1);
        self.nodes[node] = self.contest(step, node);
        self.nodes[node]
    }

    fn player(&self, number: usize) -> Node {
        if number < self.leaves.len() {
            return self.nodes[number];
        }
        let leaf = number - self.leaves.len();
        let vacant = self.leaves[leaf].page == NOBODY;
        Node {
            winner: if vacant { NOBODY } else { leaf as u32 },
            until: FOREVER,
        }
    }

    fn contest(&self, step: u64, node: usize) -> Node {
        let (left, right) = (self.player(2 * node), self.player(2 * node + 1));
        let (winner, until) = match (left.winner, right.winner) {
            (winner, NOBODY) | (NOBODY, winner) => (winner, FOREVER),
            (left, right) => self.compare(step, left, right),
        };
        Node {
            winner,
            until: until.min(left.until).min(right.until),
        }
    }

    /// The leaf that goes first, and the step from which on that is not sure.
    fn compare(&self, step: u64, left: u32, right: u32) -> (u32, u64) {
        let (x, y) = (&self.leaves[left as usize], &self.leaves[right as usize]);
        let older = if x.entered < y.entered { left } else { right };
        if x.key == y.key {
            return (older, FOREVER);
        }
        let margin = x.margin + y.margin;
        let ahead = x.limit - y.limit;
        let fading = x.key.fading - y.key.fading;
        let now = ahead + fading / step.max(1) as f64;
        if now.abs() <= margin {
            let (x, y) = (score(x.key, step), score(y.key, step));
            let first = if x == y {
                older
            } else if x < y {
                left
            } else {
                right
            };
            return (first, step + 1);
        }
        let first = if now < 0.0 { left } else { right };
        let stays = (now < 0.0) == (ahead < 0.0) && ahead.abs() > margin;
        if stays {
            return (first, FOREVER);
        }
        // The difference goes straight from `now` to `ahead` and is within the margin from here on.
        let meets = fading / (margin.copysign(now) - ahead);
        (first, (meets as u64).max(step + 1))
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
            let mut keys = [Fading { steady: 0.0, fading: -1.0, extra: -0.4 }; 12];
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
                            fading: step as f64,
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
            fading: 0.0,
            extra: 0.0,
        };
        let new = Fading {
            steady: 0.0,
            fading: 100.0,
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
