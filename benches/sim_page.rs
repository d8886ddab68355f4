//! Accesses a second of page mode, at 4,000 pages: each policy on three patterns, over the default tiers and over tiers that
//! hold an eighth of the pages in the fast one.
//!
//! `cargo bench -p kvlab-core --bench sim_page`. One thread; a run makes its tiers, its policy and all tables anew.

#![expect(clippy::expect_used, reason = "a bench may fail loudly")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kvlab_core::sim::page::{
    Access, Hierarchy, Page, PageId, Workload, policy, simulate, tier_preset,
};

const PAGES: u32 = 4_000;
const ACCESSES: usize = 1_000_000;

/// A generator of random numbers that is the same everywhere (`SplitMix64`).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((bits ^ (bits >> 31)) >> 32) * u64::from(limit) >> 32) as u32
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

fn workload(random: &mut Random, trace: fn(&mut Random) -> Vec<PageId>) -> Workload {
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

fn accesses(criterion: &mut Criterion) {
    let mut random = Random(7);
    let patterns: [(&str, fn(&mut Random) -> Vec<PageId>); 3] = [
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
    for (pattern, trace) in patterns {
        let workload = workload(&mut random, trace);
        let mut group = criterion.benchmark_group(format!("sim_page/{pattern}"));
        group
            .throughput(Throughput::Elements(ACCESSES as u64))
            .sample_size(10)
            .warm_up_time(Duration::from_millis(300))
            .measurement_time(Duration::from_secs(3));
        for (name, ..) in policy::NAMES {
            group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                bencher.iter(|| {
                    let mut policy = policy::by_name(name, &[], &capacities).expect("a policy");
                    black_box(simulate(&hierarchy, &workload, policy.as_mut())).expect("a run")
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, accesses);
criterion_main!(benches);
