//! Policies that look at time, category, position, cost or size, against searches of all entries.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::policy::lab::classes::{class_of, value_of};

/// What is known of a held entry.
#[derive(Clone, Copy, Debug)]
struct Held {
    name: u64,
    meta: EntryMeta,
    count: u64,
    last: u64,
    at_ms: u64,
    category: u32,
}

#[derive(Clone, Debug)]
struct Access {
    wait_ms: u64,
    category: u32,
    name: u64,
}

fn accesses() -> impl Strategy<Value = Vec<Access>> {
    let one = (0..2_000_u64, 0..4_u32, 0..20_u64);
    let one = one.prop_map(|(wait_ms, category, name)| Access {
        // Several in the same millisecond, as blocks of one request.
        wait_ms: wait_ms.saturating_sub(1_000),
        category,
        name,
    });
    prop::collection::vec(one, 1..250)
}

/// Position, cost and size follow from the name, so that an entry that comes back is what it was.
fn meta(name: u64) -> EntryMeta {
    EntryMeta {
        bytes: 1 + name % 3,
        tokens: 16,
        depth: (name % 5) as u32,
        cost: (1 + name % 7) as f32,
        category: 0,
    }
}

/// Runs a policy beside a list of what it should know; `choose` says which of those must go.
fn follows(
    policy: Policy,
    capacity: usize,
    accesses: &[Access],
    mut choose: impl FnMut(&[Held], u64) -> u64,
    mut noted: impl FnMut(Option<Held>, Held),
) -> Result<(), TestCaseError> {
    let mut flat = Flat::new(policy, capacity);
    let mut held: Vec<Held> = Vec::new();
    let mut now_ms = 0;
    for (step, access) in (1..).zip(accesses) {
        now_ms += access.wait_ms;
        flat.policy.request(now_ms, access.category);
        let known = held.iter().position(|held| held.name == access.name);
        let full = held.len() == capacity;
        let victim = (known.is_none() && full).then(|| choose(&held, now_ms));
        let outcome = flat.access_as(access.name, meta(access.name));
        prop_assert_eq!(
            outcome,
            (known.is_some(), victim),
            "step {}: {:?}",
            step,
            held
        );
        prop_assert_eq!(flat.policy.validate(), Ok(()));
        let before = known.map(|at| held.remove(at));
        held.retain(|held| Some(held.name) != victim);
        let now = Held {
            name: access.name,
            meta: meta(access.name),
            count: before.map_or(0, |before| before.count) + 1,
            last: step,
            at_ms: now_ms,
            category: access.category,
        };
        noted(before, now);
        held.push(now);
    }
    Ok(())
}

fn least<K: PartialOrd>(held: &[Held], key: impl Fn(&Held) -> K) -> u64 {
    let mut least = &held[0];
    for other in held {
        if key(other) < key(least) {
            least = other;
        }
    }
    least.name
}

/// Uses, reuses and idle time by category, as `reuse.rs` keeps them before the first halving.
#[derive(Default)]
struct Counts(HashMap<u32, [f64; 3]>);

impl Counts {
    fn note(&mut self, before: Option<(u32, u64)>, now: &Held) {
        self.0.entry(now.category).or_default()[0] += 1.0;
        if let Some((category, at_ms)) = before {
            let counts = self.0.entry(category).or_default();
            counts[1] += 1.0;
            counts[2] += (now.at_ms - at_ms) as f64;
        }
    }

    fn of(&self, category: u32) -> [f64; 3] {
        self.0.get(&category).copied().unwrap_or_default()
    }

    fn share(&self, category: u32) -> f64 {
        let [uses, reuses, _] = self.of(category);
        (reuses + 1.0) / (uses + 2.0)
    }
}

proptest! {
    #[test]
    fn length_aware_drops_the_least_used_and_of_those_the_latest_in_a_prompt(
        capacity in 1..10_usize, accesses in accesses(),
    ) {
        let choose = |held: &[Held], _| {
            least(held, |held| (held.count, u32::MAX - held.meta.depth, held.last))
        };
        follows(length_aware(0), capacity, &accesses, choose, |_, _| ())?;
    }

    #[test]
    fn flop_aware_drops_the_lowest_score(
        capacity in 1..10_usize, accesses in accesses(), alpha in 0.0..4.0_f64,
    ) {
        let efficiency = |held: &Held| value_of(class_of(held.meta.cost / held.meta.bytes as f32));
        let choose = |held: &[Held], _| {
            let range = |key: &dyn Fn(&Held) -> f64| {
                let keys = || held.iter().map(key);
                (keys().fold(f64::INFINITY, f64::min), keys().fold(0.0, f64::max))
            };
            let scaled = |value: f64, (least, most): (f64, f64)| {
                if most > least { (value - least) / (most - least) } else { 0.0 }
            };
            let (uses, efficiencies) = (range(&|held| held.last as f64), range(&efficiency));
            least(held, |held| {
                let recency = scaled(held.last as f64, uses);
                (recency + alpha * scaled(efficiency(held), efficiencies), held.last)
            })
        };
        let policy = ranked(flop_aware::FlopAware::new(alpha));
        follows(policy, capacity, &accesses, choose, |_, _| ())?;
    }

    #[test]
    fn wa_lru_drops_the_highest_score(
        capacity in 1..10_usize, accesses in accesses(), weights in prop::array::uniform3(0.0..1.0_f64),
    ) {
        let counts = std::cell::RefCell::new(Counts::default());
        let size = |held: &Held| value_of(class_of(held.meta.bytes as f32));
        let choose = |held: &[Held], now_ms: u64| {
            let ages = held.iter().map(|held| now_ms - held.at_ms);
            let oldest = ages.max().unwrap_or_default().max(1) as f64;
            let largest = held.iter().map(size).fold(0.0, f64::max);
            least(held, |held| {
                let score = weights[0] * ((now_ms - held.at_ms) as f64 / oldest)
                    + weights[1] * (1.0 - counts.borrow().share(held.category))
                    + weights[2] * size(held) / largest;
                (-score, held.last)
            })
        };
        let note = |before: Option<Held>, now: Held| {
            let before = before.map(|before| (before.category, before.at_ms));
            counts.borrow_mut().note(before, &now);
        };
        follows(ranked(wa_lru::WaLru::new(weights)), capacity, &accesses, choose, note)?;
    }

    #[test]
    fn workload_aware_drops_the_least_likely_to_be_used_in_time(
        capacity in 1..10_usize, accesses in accesses(),
    ) {
        let counts = std::cell::RefCell::new(Counts::default());
        let gone: std::cell::RefCell<Vec<(u64, u32, u64)>> = Vec::new().into();
        let mut life: Option<f64> = None;
        let choose = |held: &[Held], now_ms: u64| {
            // Of each category what was used longest ago, tail first.
            let mut heads: Vec<Held> = Vec::new();
            for category in 0..4 {
                let of = held.iter().filter(|held| held.category == category);
                heads.extend(of.min_by_key(|held| (held.at_ms, u32::MAX - held.meta.depth, held.last)));
            }
            let life_ms = life.unwrap_or(f64::INFINITY);
            let victim = least(&heads, |held| {
                let [_, reuses, idle] = counts.borrow().of(held.category);
                let rate = (reuses + 1.0) / (idle + 60_000.0);
                let reached = |after: f64| (-rate * after).exp();
                let idle_ms = (now_ms - held.at_ms) as f64;
                let within = -(-rate * life_ms).exp_m1();
                let probability = counts.borrow().share(held.category) * reached(idle_ms) * within;
                (probability, u32::MAX - held.meta.depth, held.at_ms)
            });
            let entry = held.iter().find(|held| held.name == victim).expect("it is one of them");
            let idle = (now_ms - entry.at_ms) as f64;
            life = Some(life.map_or(idle, |life| life + 0.01 * (idle - life)));
            gone.borrow_mut().push((victim, entry.category, entry.at_ms));
            victim
        };
        let note = |before: Option<Held>, now: Held| {
            let mut gone = gone.borrow_mut();
            let ghost = gone.iter().position(|gone| gone.0 == now.name);
            let ghost = ghost.map(|at| gone.remove(at)).map(|(_, category, at_ms)| (category, at_ms));
            let before = before.map(|before| (before.category, before.at_ms));
            counts.borrow_mut().note(before.or(ghost), &now);
        };
        // Names of as much as there are: none is forgotten.
        follows(workload_aware(1_000), capacity, &accesses, choose, note)?;
    }

    #[test]
    fn ttl_drops_the_oldest_and_lets_go_of_what_has_expired(
        capacity in 1..10_usize, accesses in accesses(), idle_ms in 500..5_000_u64,
    ) {
        let mut flat = Flat::new(ranked(ttl::Ttl::new(idle_ms)), capacity);
        let mut held: Vec<(u64, u64)> = Vec::new();
        let mut now_ms = 0;
        for access in accesses {
            now_ms += access.wait_ms;
            flat.policy.request(now_ms, access.category);
            while let Some(slot) = flat.policy.expired() {
                flat.policy.remove(slot);
                let name = flat.leave(slot);
                let (oldest, at_ms) = held.remove(0);
                prop_assert_eq!(name, oldest);
                prop_assert!(now_ms - at_ms >= idle_ms);
            }
            prop_assert!(held.iter().all(|(_, at_ms)| now_ms - at_ms < idle_ms));
            let known = held.iter().position(|held| held.0 == access.name);
            let victim = (known.is_none() && held.len() == capacity).then(|| held.remove(0).0);
            if let Some(at) = known {
                held.remove(at);
            }
            held.push((access.name, now_ms));
            prop_assert_eq!(flat.access(access.name), (known.is_some(), victim));
            prop_assert_eq!(flat.policy.validate(), Ok(()));
        }
    }
}
