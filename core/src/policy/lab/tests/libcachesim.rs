//! Hit counts of libCacheSim (`libcachesim` 0.3.5 from the package index, default parameters, objects of size 1) on a trace that
//! is made of integers alone. docs/policies.md says where the definitions differ.

use super::*;

const NAMES: u64 = 2_000;
const ACCESSES: usize = 50_000;
const CAPACITIES: [usize; 3] = [50, 200, 1_000];

/// Zipf's law with exponent 1: the name of rank `r` has a weight of 10^9 / r.
fn zipf() -> Vec<u64> {
    let mut total = 0;
    let upto: Vec<u64> = (1..=NAMES)
        .map(|rank| {
            total += 1_000_000_000 / rank;
            total
        })
        .collect();
    let mut draw = draw::Draw::new(1);
    let accesses = (0..ACCESSES).map(|_| {
        let at = draw.below(total as usize) as u64;
        upto.partition_point(|end| *end <= at) as u64
    });
    accesses.collect()
}

fn hits(policy: fn(u64) -> Policy, trace: &[u64]) -> [usize; 3] {
    CAPACITIES.map(|capacity| {
        let mut flat = Flat::new(policy(capacity as u64), capacity);
        flat.hits(trace.iter().copied())
    })
}

#[test]
fn the_same_hits_where_definitions_agree() {
    let trace = zipf();
    let lru: fn(u64) -> Policy = |_| Box::new(crate::policy::Lru::default());
    for (name, policy, theirs) in [
        ("LRU", lru, [20_360, 30_754, 43_481]),
        ("FIFO", fifo, [17_742, 28_192, 41_974]),
        ("Clock", clock, [21_141, 31_431, 43_635]),
        ("TwoQ", two_q, [24_857, 33_289, 43_252]),
        ("LFU", length_aware, [25_956, 34_185, 44_047]),
    ] {
        assert_eq!(hits(policy, &trace), theirs, "{name}");
    }
}

/// ARC replaces before it adapts here; their LIRS makes an LIR entry HIR when an HIR entry outside the stack is used.
#[test]
fn nearly_the_same_hits_where_details_differ() {
    let trace = zipf();
    for (name, policy, theirs) in [
        ("ARC", arc as fn(u64) -> Policy, [25_405, 33_735, 43_649]),
        ("LIRS", lirs, [25_713, 33_863, 43_956]),
    ] {
        for (ours, theirs) in hits(policy, &trace).into_iter().zip(theirs) {
            let apart = ours.abs_diff(theirs);
            assert!(apart * 1_000 < theirs, "{name}: {ours}, theirs {theirs}");
        }
    }
}
