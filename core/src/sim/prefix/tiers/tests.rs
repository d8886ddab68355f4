use std::ops::ControlFlow;

use proptest::prelude::*;

use super::{CostModel, Names, ReadCost, Tiers, TiersConfig, TiersOutcome, replay_tiers};
use crate::config::WritePolicy;
use crate::cost::RestoreMode;
use crate::sim::prefix::{Config, Mode, Outcome, replay};
use crate::sim::trace::Trace;
use crate::sim::trace::testing::{prefixes, trace};

pub(super) const COSTS: CostModel = CostModel {
    prefill: [0.02, 1.2e-3, 4e-7],
    decode: 0.05,
    token_bytes: 46_080,
    read: [ReadCost {
        latency: 1e-4,
        bandwidth: 2e9,
        transfers: 2,
    }; 3],
    overlap: 0.8,
    concurrency: 1,
};

fn config(l1: usize, l2: Option<usize>, l3: Option<usize>, write: WritePolicy) -> TiersConfig {
    TiersConfig {
        capacities: [Some(l1), l2, l3],
        policies: ["lru", "lru", "lru"].map(str::to_owned),
        write,
        restore: RestoreMode::Always,
        costs: COSTS,
    }
}

fn run(trace: &Trace, config: &TiersConfig) -> TiersOutcome {
    replay_tiers(trace, config, |_| ControlFlow::Continue(())).unwrap()
}

fn one_tier(trace: &Trace, capacity: Option<usize>) -> Outcome {
    let config = Config {
        mode: Mode::Prefix,
        policy: "lru".to_owned(),
        capacity,
    };
    replay(trace, &config, |_| ControlFlow::Continue(())).unwrap()
}

fn write() -> impl Strategy<Value = WritePolicy> {
    prop_oneof![
        Just(WritePolicy::WriteThrough),
        Just(WritePolicy::WriteThroughSelective),
        Just(WritePolicy::WriteBack)
    ]
}

proptest! {
    #[test]
    fn l1_does_not_know_of_what_is_below(
        requests in prefixes(50),
        sizes in (1..20_usize, 0..30_usize, 0..40_usize),
        write in write(),
    ) {
        let trace = trace(&requests);
        let config = config(sizes.0, Some(sizes.1), Some(sizes.2), write);
        let mut tiers = Tiers::new(&trace, &config, &Names::Numbers, None).unwrap();
        for request in trace.requests() {
            tiers.serve(&trace, &request).unwrap();
            prop_assert_eq!(tiers.below.validate(), Ok(()));
        }
        let (alone, outcome) = (one_tier(&trace, Some(sizes.0)), run(&trace, &config));
        prop_assert_eq!(outcome.hits[0], alone.hits);
        prop_assert_eq!(outcome.evictions[0], alone.evictions);
        prop_assert!(outcome.hits.iter().sum::<u64>() <= one_tier(&trace, None).hits);
    }

    #[test]
    fn a_tier_that_holds_all_finds_all(requests in prefixes(50), l1 in 1..20_usize, deep: bool) {
        let trace = trace(&requests);
        let (l2, l3) = if deep { (Some(3), None) } else { (None, Some(0)) };
        // L2 gets only what was in L1 once.
        prop_assume!(deep || requests.iter().all(|blocks| blocks.len() <= l1));
        let outcome = run(&trace, &config(l1, l2, l3, WritePolicy::WriteThrough));
        let ideal = one_tier(&trace, None);
        prop_assert_eq!(outcome.hits.iter().sum::<u64>(), ideal.hits);
        prop_assert_eq!(outcome.lost, 0);
    }

    #[test]
    fn without_a_tier_below_it_is_one_cache(requests in prefixes(50), l1 in 1..20_usize) {
        let trace = trace(&requests);
        let outcome = run(&trace, &config(l1, Some(0), Some(0), WritePolicy::WriteThrough));
        let alone = one_tier(&trace, Some(l1));
        prop_assert_eq!(outcome.hits, [alone.hits, 0, 0]);
        prop_assert_eq!(outcome.lost, alone.evictions);
        prop_assert_eq!(outcome.bytes_read[1..].to_vec(), [0, 0]);
    }

    /// The rule looks at one request by itself, so the first that finds anything below is never slower for it.
    #[test]
    fn the_rule_never_waits_longer_than_restoring_all_or_nothing(
        blocks in 1..60_usize, bandwidth in 1e5..1e10_f64, latency in 0.0..2.0_f64,
    ) {
        let prompt: Vec<u64> = (0..blocks as u64).collect();
        let trace = trace(&[prompt.clone(), vec![1000], prompt]);
        let first_token = |restore| {
            let mut config = config(blocks, Some(0), None, WritePolicy::WriteThrough);
            config.capacities[0] = Some(1);
            config.restore = restore;
            config.costs.read = [ReadCost { latency, bandwidth, transfers: 1 }; 3];
            config.costs.concurrency = 9;
            run(&trace, &config).first_token[2]
        };
        let auto = first_token(RestoreMode::Auto);
        let all = first_token(RestoreMode::Always);
        let best = all.min(first_token(RestoreMode::Never));
        // What is saved by less than the margin is not left alone.
        let margin = 0.002_f32.max(0.05 * all);
        prop_assert!(auto <= best * 1.000_01 + margin + 0.002, "{} {}", auto, best);
    }
}

#[test]
fn what_is_left_alone_is_tried_again_at_times() {
    // Every other prompt is found in L3, which is slower than computing.
    let prompts = (0..80).map(|at| match at % 2 {
        0 => vec![0, 1, 2, 3],
        _ => vec![4 + at],
    });
    let trace = trace(&prompts.collect::<Vec<_>>());
    let mut config = config(1, Some(0), None, WritePolicy::WriteThrough);
    config.restore = RestoreMode::Auto;
    config.costs.read[2].bandwidth = 2e7;
    let outcome = run(&trace, &config);
    // The one run that they are in, after as many requests as the live rule waits at least.
    let tried = outcome.hits[2] / 4;
    assert!((1..=39 / 16).contains(&tried), "{tried}");
    assert!(outcome.left_alone > 4 * 30);
}

#[test]
fn what_a_policy_says_is_over_goes_from_every_tier() {
    // A request a second: after 310 of them nothing was done with the first prompt for five minutes.
    let mut prompts = (0..311).map(|at| vec![10 + at]).collect::<Vec<_>>();
    prompts[0] = vec![0, 1, 2];
    prompts[310] = vec![0, 1, 2];
    let trace = trace(&prompts);
    let found = |tier: usize, policy: &str| {
        let mut config = config(2, Some(5), None, WritePolicy::WriteThrough);
        config.policies[tier] = policy.to_owned();
        match tier {
            0 => config.capacities = [Some(400), Some(0), Some(0)],
            1 => config.capacities = [Some(3), Some(400), Some(0)],
            _ => {}
        }
        let outcome = run(&trace, &config);
        assert_eq!(outcome.lost > 0, policy == "ttl", "tier {tier}");
        outcome.hits.iter().sum::<u64>()
    };
    for tier in 0..3 {
        assert_eq!(
            (found(tier, "lru"), found(tier, "ttl")),
            (3, 0),
            "tier {tier}"
        );
    }
}

#[test]
fn write_back_writes_what_l2_gives_up_and_selective_what_is_used_twice() {
    let trace = trace(&[vec![0, 1, 2], vec![3, 4, 5], vec![0, 1, 6], vec![7, 8, 9]]);
    let stored = |write| run(&trace, &config(3, Some(2), None, write)).stored;
    assert_eq!(stored(WritePolicy::WriteThrough)[2], 10);
    // 0 and 1, when they were used again.
    let selective = stored(WritePolicy::WriteThroughSelective);
    let back = stored(WritePolicy::WriteBack);
    assert!(selective[2] >= 2 && selective[2] < 10, "{selective:?}");
    assert!(back[2] > 0 && back[2] < 10, "{back:?}");
}
