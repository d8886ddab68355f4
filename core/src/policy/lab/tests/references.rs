//! The policies once more, as plainly as can be: lists that are searched from end to end.

use std::collections::HashMap;

use super::{Outcome, Reference};
use crate::policy::lab::draw::{Draw, SEED};

fn position(list: &[u64], name: u64) -> Option<usize> {
    list.iter().position(|held| *held == name)
}

fn take(list: &mut Vec<u64>, name: u64) -> bool {
    let found = position(list, name);
    found.map(|at| list.remove(at)).is_some()
}

/// The end of the list that gives the victim.
pub(super) enum End {
    /// First in, first out: uses move nothing.
    Front,
    /// Most recently used: uses move to the back.
    Back,
}

pub(super) struct Queue {
    capacity: usize,
    end: End,
    list: Vec<u64>,
}

impl Queue {
    pub(super) fn new(capacity: usize, end: End) -> Self {
        let list = Vec::new();
        Self {
            capacity,
            end,
            list,
        }
    }
}

impl Reference for Queue {
    fn access(&mut self, name: u64) -> Outcome {
        if let Some(at) = position(&self.list, name) {
            if matches!(self.end, End::Back) {
                self.list.remove(at);
                self.list.push(name);
            }
            return (true, None);
        }
        let full = self.list.len() == self.capacity;
        let victim = full.then(|| match self.end {
            End::Front => self.list.remove(0),
            End::Back => self.list.remove(self.capacity - 1),
        });
        self.list.push(name);
        (false, victim)
    }
}

/// CLOCK with frames and a hand.
pub(super) struct Ring {
    capacity: usize,
    frames: Vec<(u64, bool)>,
    hand: usize,
}

impl Ring {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            frames: Vec::new(),
            hand: 0,
        }
    }
}

impl Reference for Ring {
    fn access(&mut self, name: u64) -> Outcome {
        if let Some(frame) = self.frames.iter_mut().find(|frame| frame.0 == name) {
            frame.1 = true;
            return (true, None);
        }
        if self.frames.len() < self.capacity {
            self.frames.push((name, false));
            return (false, None);
        }
        while self.frames[self.hand].1 {
            self.frames[self.hand].1 = false;
            self.hand = (self.hand + 1) % self.capacity;
        }
        let victim = self.frames[self.hand].0;
        self.frames[self.hand] = (name, false);
        self.hand = (self.hand + 1) % self.capacity;
        (false, Some(victim))
    }
}

/// LRU-2 by its backward distances, computed from all uses.
pub(super) struct Backward {
    capacity: usize,
    now: usize,
    uses: HashMap<u64, Vec<usize>>,
    held: Vec<u64>,
    retained: Vec<u64>,
}

impl Backward {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            now: 0,
            uses: HashMap::new(),
            held: Vec::new(),
            retained: Vec::new(),
        }
    }

    /// How far back the use before the last is, and the last.
    fn distance(&self, name: u64) -> (usize, usize) {
        let uses = &self.uses[&name];
        let back = |k: usize| match uses.len().checked_sub(k) {
            Some(at) => self.now - uses[at],
            None => usize::MAX,
        };
        (back(2), back(1))
    }
}

impl Reference for Backward {
    fn access(&mut self, name: u64) -> Outcome {
        self.now += 1;
        let hit = self.held.contains(&name);
        let mut victim = None;
        if !hit {
            if self.held.len() == self.capacity {
                let held = self.held.iter().copied();
                victim = held.max_by_key(|held| self.distance(*held));
            }
            if let Some(victim) = victim {
                take(&mut self.held, victim);
                self.retained.push(victim);
            }
            take(&mut self.retained, name);
            while self.retained.len() > self.capacity {
                self.uses.remove(&self.retained.remove(0));
            }
            self.held.push(name);
        }
        self.uses.entry(name).or_default().push(self.now);
        (hit, victim)
    }
}

/// 2Q, full version.
pub(super) struct TwoQ {
    capacity: usize,
    first_in: Vec<u64>,
    out: Vec<u64>,
    main: Vec<u64>,
}

impl TwoQ {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            first_in: Vec::new(),
            out: Vec::new(),
            main: Vec::new(),
        }
    }

    /// The paper's `reclaimfor`.
    fn reclaim(&mut self) -> Option<u64> {
        if self.first_in.len() + self.main.len() < self.capacity {
            return None;
        }
        if self.first_in.len() > self.capacity / 4 || self.main.is_empty() {
            let victim = self.first_in.remove(0);
            self.out.push(victim);
            if self.out.len() > self.capacity / 2 {
                self.out.remove(0);
            }
            return Some(victim);
        }
        Some(self.main.remove(0))
    }
}

impl Reference for TwoQ {
    fn access(&mut self, name: u64) -> Outcome {
        if take(&mut self.main, name) {
            self.main.push(name);
            return (true, None);
        }
        if self.first_in.contains(&name) {
            return (true, None);
        }
        let known = take(&mut self.out, name);
        let victim = self.reclaim();
        let list = if known {
            &mut self.main
        } else {
            &mut self.first_in
        };
        list.push(name);
        (false, victim)
    }
}

/// ARC by the paper's four cases, but for the order of adapting and replacing.
pub(super) struct Arc {
    capacity: usize,
    target: f64,
    t1: Vec<u64>,
    t2: Vec<u64>,
    b1: Vec<u64>,
    b2: Vec<u64>,
}

impl Arc {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            target: 0.0,
            t1: Vec::new(),
            t2: Vec::new(),
            b1: Vec::new(),
            b2: Vec::new(),
        }
    }

    fn replace(&mut self) -> u64 {
        let from_first = self.t1.len() as f64 > self.target || self.t2.is_empty();
        let (list, ghosts) = if from_first {
            (&mut self.t1, &mut self.b1)
        } else {
            (&mut self.t2, &mut self.b2)
        };
        let victim = list.remove(0);
        ghosts.push(victim);
        victim
    }
}

impl Reference for Arc {
    fn access(&mut self, name: u64) -> Outcome {
        if take(&mut self.t1, name) || take(&mut self.t2, name) {
            self.t2.push(name);
            return (true, None);
        }
        let (first, second) = (self.b1.len() as f64, self.b2.len() as f64);
        if self.b1.contains(&name) {
            let victim = Some(self.replace());
            self.target = (self.target + (second / first).max(1.0)).min(self.capacity as f64);
            take(&mut self.b1, name);
            self.t2.push(name);
            return (false, victim);
        }
        if self.b2.contains(&name) {
            let victim = Some(self.replace());
            self.target = (self.target - (first / second).max(1.0)).max(0.0);
            take(&mut self.b2, name);
            self.t2.push(name);
            return (false, victim);
        }
        let held = self.t1.len() + self.t2.len();
        let known = held + self.b1.len() + self.b2.len();
        let mut victim = None;
        if self.t1.len() + self.b1.len() == self.capacity {
            if self.t1.len() < self.capacity {
                self.b1.remove(0);
                victim = Some(self.replace());
            } else {
                victim = Some(self.t1.remove(0));
            }
        } else if known >= self.capacity {
            if known == 2 * self.capacity {
                self.b2.remove(0);
            }
            victim = Some(self.replace());
        }
        self.t1.push(name);
        (false, victim)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Status {
    Low,
    High,
    Gone,
}

/// LIRS with its stack and queue as lists, bottom and front first.
pub(super) struct Lirs {
    capacity: usize,
    status: HashMap<u64, Status>,
    stack: Vec<u64>,
    queue: Vec<u64>,
    gone: Vec<u64>,
}

impl Lirs {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            status: HashMap::new(),
            stack: Vec::new(),
            queue: Vec::new(),
            gone: Vec::new(),
        }
    }

    fn low(&self) -> usize {
        let low = self
            .status
            .values()
            .filter(|status| **status == Status::Low);
        low.count()
    }

    fn prune(&mut self) {
        while let Some(&bottom) = self.stack.first()
            && self.status[&bottom] != Status::Low
        {
            self.stack.remove(0);
            if self.status[&bottom] == Status::Gone {
                self.status.remove(&bottom);
                take(&mut self.gone, bottom);
            }
        }
    }

    fn demote(&mut self) {
        let bottom = self.stack.remove(0);
        self.status.insert(bottom, Status::High);
        self.queue.push(bottom);
        self.prune();
    }
}

impl Reference for Lirs {
    fn access(&mut self, name: u64) -> Outcome {
        let share = self.capacity - (self.capacity / 100).max(1);
        let status = self.status.get(&name).copied();
        let stacked = take(&mut self.stack, name);
        let mut victim = None;
        match status {
            Some(Status::Low) => {
                self.stack.push(name);
                self.prune();
            }
            Some(Status::High) => {
                self.stack.push(name);
                take(&mut self.queue, name);
                if stacked {
                    self.status.insert(name, Status::Low);
                    self.demote();
                } else {
                    self.queue.push(name);
                }
            }
            Some(Status::Gone) | None => {
                if self.low() + self.queue.len() == self.capacity {
                    let front = self.queue.remove(0);
                    victim = Some(front);
                    if self.stack.contains(&front) {
                        self.status.insert(front, Status::Gone);
                        self.gone.push(front);
                    } else {
                        self.status.remove(&front);
                    }
                }
                self.stack.push(name);
                if status.is_some() {
                    take(&mut self.gone, name);
                    self.status.insert(name, Status::Low);
                    self.demote();
                } else if self.low() < share {
                    self.status.insert(name, Status::Low);
                } else {
                    self.status.insert(name, Status::High);
                    self.queue.push(name);
                }
            }
        }
        while self.stack.len() > 2 * self.capacity && !self.gone.is_empty() {
            let oldest = self.gone.remove(0);
            take(&mut self.stack, oldest);
            self.status.remove(&oldest);
        }
        (matches!(status, Some(Status::Low | Status::High)), victim)
    }
}

/// `LeCaR` with the same draws.
pub(super) struct LeCaR {
    capacity: usize,
    draw: Draw,
    now: usize,
    weights: [f64; 2],
    /// Name, count, last use.
    held: Vec<(u64, usize, usize)>,
    /// By expert: name, count, when it was evicted.
    gone: [Vec<(u64, usize, usize)>; 2],
}

impl LeCaR {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            draw: Draw::new(SEED),
            now: 0,
            weights: [0.5; 2],
            held: Vec::new(),
            gone: [Vec::new(), Vec::new()],
        }
    }

    fn evict(&mut self) -> u64 {
        let held = self.held.iter().copied();
        let lru = held.clone().min_by_key(|held| held.2).unwrap();
        let lfu = held.min_by_key(|held| (held.1, held.2)).unwrap();
        let expert = usize::from(self.draw.fraction() >= self.weights[0]);
        let victim = [lru, lfu][expert];
        self.held.retain(|held| held.0 != victim.0);
        if lru != lfu {
            // The clock of the paper stands while room is made.
            self.gone[expert].push((victim.0, victim.1, self.now - 1));
        }
        victim.0
    }
}

impl Reference for LeCaR {
    fn access(&mut self, name: u64) -> Outcome {
        self.now += 1;
        if let Some(held) = self.held.iter_mut().find(|held| held.0 == name) {
            (held.1, held.2) = (held.1 + 1, self.now);
            return (true, None);
        }
        let full = self.held.len() == self.capacity;
        let victim = full.then(|| self.evict());
        let mut count = 0;
        for expert in 0..2 {
            let Some(at) = self.gone[expert].iter().position(|gone| gone.0 == name) else {
                continue;
            };
            let gone = self.gone[expert].remove(at);
            count = gone.1;
            let entries = self.held.len().max(1) as f64;
            let regret = 0.005_f64.powf((self.now - gone.2) as f64 / entries);
            self.weights[1 - expert] *= (0.45 * regret).exp();
            let sum: f64 = self.weights.iter().sum();
            self.weights = self.weights.map(|weight| weight / sum);
        }
        for gone in &mut self.gone {
            while gone.len() > (self.capacity / 2).max(1) {
                gone.remove(0);
            }
        }
        self.held.push((name, count + 1, self.now));
        (false, victim)
    }
}

/// LHD before it has learned: density is `(class + 1) / (age + 1)`.
pub(super) struct Lhd {
    capacity: usize,
    now: usize,
    /// Name, last use, ages of the last two hits.
    held: Vec<(u64, usize, [usize; 2])>,
}

impl Lhd {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            now: 0,
            held: Vec::new(),
        }
    }

    fn density(&self, (_, last, ages): (u64, usize, [usize; 2])) -> f64 {
        let sum = ages[0] + ages[1];
        let class = match sum {
            0 => 15,
            // Doubled until it is as much as all ages.
            _ => (0..15)
                .find(|class| sum << (class + 1) > 1_024)
                .unwrap_or(15),
        };
        f64::from(class + 1) / (self.now - last + 1) as f64
    }
}

impl Reference for Lhd {
    fn access(&mut self, name: u64) -> Outcome {
        if let Some(held) = self.held.iter_mut().find(|held| held.0 == name) {
            self.now += 1;
            *held = (name, self.now, [self.now - held.1, held.2[0]]);
            return (true, None);
        }
        let mut victim = None;
        if self.held.len() == self.capacity {
            let held = self.held.iter().map(|held| self.density(*held));
            let least = held.clone().fold(f64::INFINITY, f64::min);
            let at = held.clone().position(|density| density <= least).unwrap();
            // As the candidates move when one leaves.
            victim = Some(self.held.swap_remove(at).0);
        }
        self.now += 1;
        self.held.push((name, self.now, [0, 1_024]));
        (false, victim)
    }
}
