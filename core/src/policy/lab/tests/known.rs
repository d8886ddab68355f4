//! Sequences with outcomes that papers and textbooks give.

use std::collections::HashMap;

use super::*;

fn evictions(policy: Policy, capacity: usize, trace: &[u64]) -> Vec<u64> {
    let mut flat = Flat::new(policy, capacity);
    let outcomes = trace.iter().map(|name| flat.access(*name));
    outcomes.filter_map(|(_, evicted)| evicted).collect()
}

/// Bélády, Nelson and Shedler, "An anomaly in space-time characteristics of certain programs running in a paging machine", 1969.
#[test]
fn fifo_shows_beladys_anomaly() {
    let trace = [1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5];
    for (frames, faults) in [(3, 9), (4, 10)] {
        let hits = Flat::new(fifo(0), frames).hits(trace);
        assert_eq!(trace.len() - hits, faults, "{frames} frames");
    }
}

#[test]
fn clock_gives_a_second_chance_and_only_one() {
    // 1 was used again and is spared; by the next miss that is forgotten.
    assert_eq!(evictions(clock(0), 3, &[1, 2, 3, 1, 4, 5, 6]), [2, 3, 1]);
    // All used: the hand goes round once, and FIFO decides.
    assert_eq!(evictions(clock(0), 3, &[1, 2, 3, 1, 2, 3, 4]), [1]);
}

/// A loop over one more than there is room for: LRU and FIFO never hit, MRU misses one in a turn but for the last that came.
#[test]
fn a_loop_suits_mru_and_not_fifo() {
    let turns = 20;
    let trace = || (0..turns * 10).map(|step| step % 10);
    assert_eq!(Flat::new(fifo(9), 9).hits(trace()), 0);
    let hits = Flat::new(mru(9), 9).hits(trace());
    assert!(hits as u64 >= (turns - 1) * 8, "{hits}");
}

/// The case LIRS is made for (Jiang and Zhang, section 1.1: "a loop whose size is slightly larger than the cache"): in every turn
/// the LIR entries hit, and nothing else.
#[test]
fn lirs_keeps_all_but_one_of_a_loop() {
    let trace = (0..20 * 11).map(|step| step % 11);
    assert_eq!(Flat::new(lirs(10), 10).hits(trace), 19 * 9);
}

/// O'Neil et al., example 1.1: index pages and record pages in turn, each drawn at random. LRU-2 keeps the index pages; FIFO (and
/// LRU) keep as many of both.
#[test]
fn lru_k_tells_index_pages_from_records() {
    let mut draw = draw::Draw::new(1);
    let trace: Vec<u64> = (0..20_000)
        .map(|step| match step % 2 {
            0 => draw.below(100) as u64,
            _ => 1_000 + draw.below(10_000) as u64,
        })
        .collect();
    let late = trace.len() / 2;
    let share = |policy: Policy| {
        let mut flat = Flat::new(policy, 101);
        flat.hits(trace[..late].iter().copied());
        flat.hits(trace[late..].iter().copied()) as f64 / late as f64
    };
    let (by_two, by_first) = (share(lru_k(101)), share(fifo(101)));
    assert!(
        by_two > 0.42,
        "{by_two}: nearly every access to an index page"
    );
    assert!(by_first < 0.25, "{by_first}");
}

/// Uses within one request are correlated: they count once.
#[test]
fn lru_k_counts_a_request_once() {
    let mut flat = Flat::new(lru_k(2), 2);
    flat.policy.request(0, 0);
    for name in [1, 1, 1, 2] {
        flat.access(name);
    }
    flat.policy.request(1, 0);
    assert_eq!(flat.access(2), (true, None));
    assert_eq!(
        flat.access(3),
        (false, Some(1)),
        "1 was used in one request only"
    );
}

/// Johnson and Shasha, section 2: what is used again at once is no better than what was used once, what is used again after it
/// left `A1in` is.
#[test]
fn two_q_does_not_take_bursts_for_heat() {
    let mut flat = Flat::new(two_q(8), 8);
    flat.hits([1, 1, 1, 1]);
    flat.hits(2..=9);
    assert!(!flat.slots.contains_key(&1), "first in, first out of A1in");
    assert!(!flat.access(1).0);
    flat.hits(20..100);
    assert!(flat.slots.contains_key(&1), "now it is in Am");
}

/// Megiddo and Modha, section I: a scan passes through `T1` and leaves `T2` alone. So with LIRS and LRU-2.
#[test]
fn a_scan_does_not_push_out_what_was_used_twice() {
    for (name, policy, kept) in [
        ("arc", arc(20), 10),
        ("lirs", lirs(20), 10),
        ("lru-k", lru_k(20), 10),
        ("fifo", fifo(20), 0),
        ("clock", clock(20), 0),
    ] {
        let mut flat = Flat::new(policy, 20);
        flat.hits(0..10);
        flat.hits(0..10);
        flat.hits(1_000..1_500);
        let held = (0..10).filter(|name| flat.slots.contains_key(name));
        assert_eq!(held.count(), kept, "{name}");
    }
}

/// Each of eight candidates goes about as often as any other, and the draws are the same in another run.
#[test]
fn random_is_fair_and_repeats_itself() {
    let run = || {
        evictions(
            random(8),
            8,
            &(0..16_000).map(|step| step % 16).collect::<Vec<_>>(),
        )
    };
    let victims = run();
    assert_eq!(victims, run());
    let mut draw = draw::Draw::new(draw::SEED);
    let mut counts: HashMap<usize, u32> = HashMap::new();
    for _ in 0..8_000 {
        *counts.entry(draw.below(8)).or_default() += 1;
    }
    assert_eq!(counts.len(), 8);
    assert!(
        counts.values().all(|count| (900..1_100).contains(count)),
        "{counts:?}"
    );
}

/// With a few hot names among many cold ones, what learns beats chance.
#[test]
fn what_learns_beats_chance_on_a_skewed_trace() {
    let mut draw = draw::Draw::new(7);
    let trace: Vec<u64> = (0..60_000)
        .map(|_| (1_000.0_f64.powf(draw.fraction()) - 1.0) as u64)
        .collect();
    let hits = |policy: Policy| Flat::new(policy, 50).hits(trace.iter().copied());
    let chance = hits(random(50));
    for (name, policy) in [
        ("lhd", lhd(50)),
        ("arc", arc(50)),
        ("2q", two_q(50)),
        ("lirs", lirs(50)),
        ("lru-k", lru_k(50)),
        ("lecar", lecar(50)),
        ("clock", clock(50)),
        ("length-aware", length_aware(50)),
    ] {
        let learned = hits(policy);
        assert!(learned > chance, "{name}: {learned}, chance: {chance}");
    }
}
