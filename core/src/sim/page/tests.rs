//! Page mode as a whole: what always holds, against plain models.

use proptest::prelude::*;

use super::policy::{NAMES, by_name};
use super::*;
use crate::policy::KNOWN;
use crate::{Error, Result};

fn tier(name: &str, capacity_bytes: u64) -> TierSpec {
    TierSpec {
        name: name.to_owned(),
        capacity_bytes,
        read_ms: 1.0,
        write_ms: 2.0,
        bytes_per_ms: 4.0,
        concurrency: None,
    }
}

fn page(bytes: u64) -> Page {
    Page {
        bytes,
        decode_ms: 0.5,
        tier: None,
    }
}

fn workload(sizes: &[u64], trace: &[PageId]) -> Workload {
    let rows = trace.iter().enumerate().map(|(step, &page)| Access {
        step: step as u64,
        page,
        hint: false,
    });
    let pages = sizes.iter().map(|&bytes| page(bytes)).collect();
    Workload::new(pages, rows.collect()).unwrap()
}

fn make(name: &str, hierarchy: &Hierarchy) -> Box<dyn PagePolicy> {
    let capacities: Vec<u64> = hierarchy
        .tiers
        .iter()
        .map(|tier| tier.capacity_bytes)
        .collect();
    by_name(name, &[], &capacities).unwrap()
}

fn run(name: &str, hierarchy: &Hierarchy, workload: &Workload) -> Result<Outcome> {
    simulate(hierarchy, workload, make(name, hierarchy).as_mut())
}

/// A policy that asks another for scores but looks at every candidate, in the order in which they came.
#[derive(Debug)]
struct Scan(Box<dyn PagePolicy>);

impl PagePolicy for Scan {
    fn reserve(&mut self, pages: usize, tiers: usize) {
        self.0.reserve(pages, tiers);
    }

    fn on_access(&mut self, context: &Context<'_>, page: PageId, hit_tier: Option<TierIndex>) {
        self.0.on_access(context, page, hit_tier);
    }

    fn on_insert(&mut self, context: &Context<'_>, page: PageId, tier: TierIndex) {
        self.0.on_insert(context, page, tier);
    }

    fn on_evict(&mut self, context: &Context<'_>, page: PageId, tier: TierIndex) {
        self.0.on_evict(context, page, tier);
    }

    fn select_eviction_candidate(
        &mut self,
        context: &Context<'_>,
        tier: TierIndex,
        _incoming: PageId,
    ) -> Result<PageId> {
        let score = |page| self.0.score_page(context, page, tier);
        let residents = context.residency.residents(tier);
        let least = residents.min_by(|&a, &b| score(a).total_cmp(&score(b)));
        least.ok_or_else(|| Error::invalid("no candidates"))
    }

    fn maybe_prefetch(&mut self, context: &Context<'_>, page: PageId, wanted: &mut Vec<PageId>) {
        self.0.maybe_prefetch(context, page, wanted);
    }
}

fn hierarchies() -> impl Strategy<Value = Hierarchy> {
    let tiers = prop::collection::vec((8..40u64, prop::option::of(1..3u32)), 2..5);
    let overlap = prop::option::of((0..20u8).prop_map(|ms| Overlap {
        compute_ms: f64::from(ms),
    }));
    (tiers, any::<bool>(), overlap).prop_map(|(tiers, prefetch, overlap)| {
        let tiers = tiers
            .into_iter()
            .enumerate()
            .map(|(at, (capacity, concurrency))| TierSpec {
                concurrency,
                ..tier(&at.to_string(), capacity)
            });
        Hierarchy {
            prefetch,
            overlap,
            ..Hierarchy::new(tiers.collect())
        }
    })
}

/// Short cycles, with jumps: what comes next is often known, and pages come back.
fn workloads() -> impl Strategy<Value = Workload> {
    let sizes = prop::collection::vec((1..9u64, prop::option::weighted(0.1, 0..2usize)), 2..14);
    sizes.prop_flat_map(|sizes| {
        let count = sizes.len() as u32;
        let row = (
            0..count,
            prop::bool::weighted(0.6),
            0..3u64,
            prop::bool::weighted(0.05),
        );
        prop::collection::vec(row, 0..150).prop_map(move |rows| {
            let (mut step, mut at) = (0, 0);
            let accesses = rows.into_iter().map(|(jump, onward, later, hint)| {
                at = if onward { (at + 1) % count } else { jump };
                step += later;
                Access {
                    step,
                    page: at,
                    hint,
                }
            });
            // At most one page starts in a tier of 8 bytes or more.
            let mut started = false;
            let pages = sizes.iter().map(|&(bytes, tier)| Page {
                tier: tier.filter(|_| !std::mem::replace(&mut started, true)),
                ..page(bytes)
            });
            Workload::new(pages.collect(), accesses.collect()).unwrap()
        })
    })
}

fn names() -> impl Strategy<Value = String> {
    let own = NAMES.iter().map(|(name, ..)| (*name).to_owned());
    let tiered = KNOWN.iter().map(|known| format!("per_tier:{}", known.name));
    prop::sample::select(own.chain(tiered).collect::<Vec<_>>())
}

proptest! {
    #[test]
    fn a_page_is_in_one_tier_and_what_came_in_is_there_or_was_dropped(
        hierarchy in hierarchies(), workload in workloads(), name in names()
    ) {
        let mut policy = make(&name, &hierarchy);
        let mut simulation = Simulation::new(&hierarchy, &workload, policy.as_mut()).unwrap();
        prop_assert_eq!(simulation.validate(), Ok(()));
        while simulation.advance().unwrap() {
            prop_assert_eq!(simulation.validate(), Ok(()));
        }
        let outcome = simulation.finish();
        let uses = workload.accesses().iter().filter(|access| !access.hint).count() as u64;
        prop_assert_eq!(outcome.accesses, uses);
        prop_assert_eq!(outcome.found[0] + outcome.misses, outcome.accesses);
        prop_assert_eq!(outcome.useful_prefetches + outcome.wasted_prefetches, outcome.prefetches);
        prop_assert_eq!(outcome.double_residencies, 0);
        prop_assert!(hierarchy.prefetch || outcome.prefetches == 0);
        prop_assert_eq!(outcome.clone(), run(&name, &hierarchy, &workload).unwrap());
        if let Some(timed) = outcome.overlapped {
            // Nobody waits for a demotion, so waiting is no longer than doing all in a row, queues aside.
            prop_assert!(timed.waited_ms <= outcome.total_ms + timed.queued_ms + 1e-6);
            prop_assert!(timed.elapsed_ms + 1e-6 >= timed.waited_ms);
        }
    }

    /// Structures against scans, in both engines.
    #[test]
    fn a_policy_evicts_what_a_scan_over_its_scores_would(
        mut hierarchy in hierarchies(), workload in workloads(), which in 0..NAMES.len(), compat: bool
    ) {
        if compat {
            hierarchy.engine = Engine::Compat;
        }
        let name = NAMES[which].0;
        let mut scan = Scan(make(name, &hierarchy));
        let scanned = simulate(&hierarchy, &workload, &mut scan).unwrap();
        prop_assert_eq!(run(name, &hierarchy, &workload).unwrap(), scanned);
    }

    #[test]
    fn the_engines_agree_where_no_page_lay_in_two_tiers(
        hierarchy in hierarchies(), workload in workloads(), name in names()
    ) {
        let compat = Hierarchy { engine: Engine::Compat, ..hierarchy.clone() };
        let mut policy = make(&name, &compat);
        let mut simulation = Simulation::new(&compat, &workload, policy.as_mut()).unwrap();
        while simulation.advance().unwrap() {
            prop_assert_eq!(simulation.validate(), Ok(()));
        }
        let outcome = simulation.finish();
        // A live policy may put off its choice, and then sees which candidates there are.
        let scored = NAMES.iter().any(|(own, ..)| *own == name);
        if scored && outcome.double_residencies == 0 {
            prop_assert_eq!(run(&name, &hierarchy, &workload).unwrap(), outcome);
        }
    }
}

#[test]
fn moves_cost_latencies_bytes_over_the_lesser_bandwidth_and_the_penalty() {
    let mut hierarchy = Hierarchy::new(vec![tier("fast", 8), tier("slow", 80)]);
    hierarchy.tiers[0].bytes_per_ms = 100.0;
    let outcome = run("lru", &hierarchy, &workload(&[8, 4], &[0, 0, 1])).unwrap();
    // Page 0 up (1 + 2 + 8 / 4 + 0.5), a hit (1 + 0.5), page 0 down, page 1 up (1 + 2 + 4 / 4 + 0.5).
    assert!((outcome.total_ms - (5.5 + 1.5 + 5.5 + 4.5)).abs() < 1e-12);
    assert_eq!(outcome.bytes_moved(), 8 + 8 + 4);
    assert_eq!(
        (outcome.misses, outcome.cold_misses, outcome.evictions),
        (2, 2, 1)
    );
    assert_eq!(outcome.resident_bytes, [4, 8]);
    assert_eq!(outcome.peak_bytes, [8, 12]);
}

#[test]
fn an_empty_trace_counts_nothing() {
    let hierarchy = Hierarchy::new(vec![tier("fast", 8), tier("slow", 80)]);
    let outcome = run("regret_aware", &hierarchy, &workload(&[], &[])).unwrap();
    assert_eq!((outcome.accesses, outcome.bytes_moved()), (0, 0));
    let ratios = [
        outcome.hit_rate(),
        outcome.mean_latency_ms(),
        outcome.useful_prefetch_ratio(),
    ];
    assert_eq!(ratios.map(f64::to_bits), [0; 3]);
}

#[test]
fn pages_that_fill_their_tiers_change_places() {
    let hierarchy = Hierarchy::new(vec![tier("fast", 8), tier("slow", 8), tier("last", 80)]);
    let outcome = run("lru", &hierarchy, &workload(&[8, 8], &[0, 1, 0, 1, 0])).unwrap();
    assert_eq!(outcome.evictions, 4);
    assert_eq!(outcome.resident_bytes, [8, 8, 0]);
    // The same by the other rules: the page that is promoted is pushed down, and is in two tiers then.
    let compat = Hierarchy {
        engine: Engine::Compat,
        ..hierarchy
    };
    let outcome = run("lru", &compat, &workload(&[8, 8], &[0, 1, 0, 1, 0])).unwrap();
    assert!(outcome.double_residencies > 0);
    assert!(outcome.resident_bytes.iter().sum::<u64>() > 16);
}

#[test]
fn only_promotions_are_waited_for_and_places_run_short() {
    let mut hierarchy = Hierarchy::new(vec![tier("fast", 8), tier("slow", 80)]);
    hierarchy.overlap = Some(Overlap { compute_ms: 10.0 });
    let trace = workload(&[8, 4], &[0, 0, 1]);
    let timed = run("lru", &hierarchy, &trace).unwrap().overlapped.unwrap();
    assert!((timed.waited_ms - (5.5 + 1.5 + 4.5)).abs() < 1e-12);
    assert!((timed.elapsed_ms - (11.5 + 30.0)).abs() < 1e-12);
    assert!(timed.queued_ms.abs() < 1e-12);
    hierarchy.tiers[1].concurrency = Some(1);
    let timed = run("lru", &hierarchy, &trace).unwrap().overlapped.unwrap();
    // The promotion waits for the demotion that makes room.
    assert!((timed.waited_ms - (5.5 + 1.5 + 5.5 + 4.5)).abs() < 1e-12);
    assert!((timed.queued_ms - 5.5).abs() < 1e-12);
}

#[test]
fn a_hint_is_a_prefetch_and_no_use() {
    let mut hierarchy = Hierarchy::new(vec![tier("fast", 8), tier("slow", 80)]);
    let rows = [(0, true), (0, false), (1, true)];
    let accesses = rows.map(|(page, hint)| Access {
        step: 0,
        page,
        hint,
    });
    let trace = Workload::new(vec![page(4), page(4)], accesses.to_vec()).unwrap();
    let without = run("lru", &hierarchy, &trace).unwrap();
    assert_eq!(
        (without.accesses, without.misses, without.prefetches),
        (1, 1, 0)
    );
    hierarchy.prefetch = true;
    let with = run("lru", &hierarchy, &trace).unwrap();
    assert_eq!((with.accesses, with.misses, with.prefetches), (1, 0, 2));
    assert_eq!((with.useful_prefetches, with.wasted_prefetches), (1, 1));
}

/// Chooses what it cannot.
#[derive(Debug)]
struct Wrong(PageId);

impl PagePolicy for Wrong {
    fn reserve(&mut self, _pages: usize, _tiers: usize) {}

    fn select_eviction_candidate(
        &mut self,
        _context: &Context<'_>,
        _tier: TierIndex,
        _incoming: PageId,
    ) -> Result<PageId> {
        Ok(self.0)
    }

    fn maybe_prefetch(&mut self, _context: &Context<'_>, _page: PageId, wanted: &mut Vec<PageId>) {
        wanted.push(self.0);
    }
}

#[test]
fn a_choice_that_cannot_be_is_refused_by_name() {
    let mut hierarchy = Hierarchy::new(vec![tier("fast", 8), tier("slow", 80)]);
    let trace = workload(&[8, 8, 8], &[0, 1]);
    for choice in [2, 7] {
        let error = simulate(&hierarchy, &trace, &mut Wrong(choice))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!("page {choice}")) && error.contains("fast"),
            "{error}"
        );
    }
    hierarchy.prefetch = true;
    let error = simulate(&hierarchy, &trace, &mut Wrong(7))
        .unwrap_err()
        .to_string();
    assert!(error.contains("wants page 7"), "{error}");
}

#[test]
fn unknown_policies_and_parameters_are_told_the_known_ones() {
    let params = |name: &str, value| vec![(name.to_owned(), value)];
    let cases = [
        ("newest", vec![], "lru, windowed_recency"),
        ("per_tier:newest", vec![], "sieve"),
        ("lru", params("weight", 1.0), "takes none"),
        ("regret_aware", params("hrizon", 1.0), "weight, horizon"),
        (
            "regret_aware",
            params("horizon", 0.0),
            "whole number from 1",
        ),
        ("regret_aware", params("weight", f64::NAN), "finite"),
        ("windowed_recency", params("window", 1.5), "whole number"),
    ];
    for (name, params, said) in cases {
        let error = by_name(name, &params, &[1, 1]).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    for (name, _, params) in NAMES {
        let given: Vec<(String, f64)> = params.iter().map(|&name| (name.to_owned(), 3.0)).collect();
        by_name(name, &given, &[1, 1]).unwrap();
    }
}

#[test]
fn regret_of_weight_0_is_a_score_of_uses_alone() {
    let hierarchy = Hierarchy::new(vec![tier("fast", 8), tier("slow", 80)]);
    let mut trace = Vec::new();
    for round in 0..40 {
        trace.extend([round % 5, round % 3, round % 2]);
    }
    let trace = workload(&[4, 4, 4, 4, 4], &trace);
    let run = |params: &[(&str, f64)]| {
        let params: Vec<(String, f64)> = params
            .iter()
            .map(|&(name, value)| (name.to_owned(), value))
            .collect();
        let mut policy = by_name("regret_aware", &params, &[8, 80]).unwrap();
        simulate(&hierarchy, &trace, policy.as_mut()).unwrap()
    };
    assert_eq!(
        run(&[("weight", 0.0), ("horizon", 8.0)]),
        run(&[("weight", 0.0)])
    );
    assert_ne!(
        run(&[("weight", 0.0)]).misses,
        run(&[("weight", 100.0)]).misses
    );
}
