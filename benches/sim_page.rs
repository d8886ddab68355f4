//! Accesses a second of page mode, at 4,000 pages over the default tiers with prefetch: each policy on three patterns.
//!
//! `cargo bench -p kvlab-core --bench sim_page [-- WORD...]`, where words are the patterns and policies to measure. One thread;
//! a run makes its tiers, its policy and all tables anew. Processor time is what counts, so that the arms can be compared on a
//! busy machine.

#![expect(clippy::expect_used, reason = "a bench may fail loudly")]
#![expect(clippy::print_stdout, reason = "a bench says what it measured")]

use std::hint::black_box;

use kvlab_core::sim::page::{
    Access, Hierarchy, Page, PageId, Workload, policy, simulate, tier_preset,
};

const PAGES: u32 = 4_000;
const ACCESSES: usize = 1_000_000;
const ROUNDS: usize = 7;

type Pattern = fn(&mut Random) -> Vec<PageId>;

/// A generator of random numbers that is the same everywhere (`SplitMix64`).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((((bits ^ (bits >> 31)) >> 32) * u64::from(limit)) >> 32) as u32
    }
}

/// A working set of 12 pages, of which one changes every 17 steps.
fn chat(random: &mut Random) -> Vec<PageId> {
    let mut set: Vec<PageId> = (0..12).collect();
    (0..ACCESSES)
        .map(|step| {
            if step % 17 == 0 {
                set[random.below(12) as usize] = random.below(PAGES);
            }
            set[4 + random.below(8) as usize]
        })
        .collect()
}

/// Seven uses of ten go to 10 pages, the others to a tail that thins out as 1 / rank.
fn long_tail(random: &mut Random) -> Vec<PageId> {
    (0..ACCESSES)
        .map(|_| {
            if random.below(10) < 7 {
                return random.below(10);
            }
            let spread =
                f64::from(PAGES - 10).powf(f64::from(random.below(1 << 24)) / 2f64.powi(24));
            9 + spread as PageId
        })
        .collect()
}

/// Any page, so that nearly every access misses and demotes a page in every tier: the worst case.
fn uniform(random: &mut Random) -> Vec<PageId> {
    (0..ACCESSES).map(|_| random.below(PAGES)).collect()
}

fn workload(random: &mut Random, trace: Pattern) -> Workload {
    let page = |random: &mut Random| Page {
        bytes: u64::from(2 * (1_984 + random.below(129))),
        decode_ms: 0.0,
        tier: None,
    };
    let pages = (0..PAGES).map(|_| page(random)).collect();
    let rows = trace(random).into_iter().enumerate();
    let rows = rows.map(|(step, page)| Access {
        step: step as u64,
        page,
        hint: false,
    });
    Workload::new(pages, rows.collect()).expect("a workload of the bench")
}

/// Nanoseconds that this thread has computed: other load on the machine does not count.
fn computed() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

fn main() {
    let mut random = Random(7);
    let patterns: [(&str, Pattern); 3] = [
        ("chat", chat),
        ("long_tail", long_tail),
        ("uniform", uniform),
    ];
    let mut hierarchy = Hierarchy::new(tier_preset("default").expect("a preset"));
    hierarchy.prefetch = true;
    let capacities: Vec<u64> = hierarchy
        .tiers
        .iter()
        .map(|tier| tier.capacity_bytes)
        .collect();
    let traces = patterns.map(|(name, trace)| (name, workload(&mut random, trace)));
    let words: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |known: &[&str], name: &str| {
        let mut given = words.iter().filter(|word| known.contains(&word.as_str()));
        given.clone().next().is_none() || given.any(|word| word == name)
    };
    let mut arms = Vec::new();
    for (trace, workload) in &traces {
        for (policy, ..) in policy::NAMES {
            if wanted(&patterns.map(|(name, _)| name), trace)
                && wanted(&policy::NAMES.map(|(name, ..)| name), policy)
            {
                arms.push((trace, workload, policy));
            }
        }
    }
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); arms.len()];
    let mut evictions = vec![0; arms.len()];
    for round in 0..=ROUNDS {
        for (arm, &(_, workload, name)) in arms.iter().enumerate() {
            let mut policy = policy::by_name(name, &[], &capacities).expect("a policy");
            let before = computed().expect("a Linux kernel");
            let outcome = simulate(&hierarchy, black_box(workload), policy.as_mut());
            let seconds = (computed().expect("a Linux kernel") - before) as f64 / 1e9;
            evictions[arm] = outcome.expect("a run").evictions;
            // The first round warms up.
            if round > 0 {
                rates[arm].push(ACCESSES as f64 / seconds / 1e6);
            }
        }
    }
    println!(
        "{PAGES} pages, {ACCESSES} accesses, {ROUNDS} rounds; million accesses a second of processor time"
    );
    for (arm, (trace, _, name)) in arms.into_iter().enumerate() {
        rates[arm].sort_by(f64::total_cmp);
        println!(
            "{trace:10} {name:18} {:7.2} ({:.2} to {:.2}), {:.2} evictions an access",
            rates[arm][ROUNDS / 2],
            rates[arm][0],
            rates[arm][ROUNDS - 1],
            evictions[arm] as f64 / ACCESSES as f64
        );
    }
}
