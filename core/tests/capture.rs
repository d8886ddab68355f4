//! What a live store recorded is what it did: replayed, every policy chooses the same victims, and the requests are those that came.
#![expect(clippy::expect_used, reason = "helpers of tests stop the test")]

mod cache_support;

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use cache_support::{BLOCK, LONG, layout, namespace, serve};
use kvlab_core::Error;
use kvlab_core::cache::{CacheConfig, PrefixCache};
use kvlab_core::config::{DiskConfig, StoreConfig, WritePolicy};
use kvlab_core::policy::live_names;
use kvlab_core::run::Terms;
use kvlab_core::sim::capture::{Capture, Replayed, replay, requests};
use kvlab_core::store::BlockStore;
use proptest::prelude::*;

/// Small enough for every tier to evict.
fn open(path: &Path, capture: &Path, policy: &str, write_policy: WritePolicy) -> PrefixCache {
    let config = StoreConfig {
        l2_bytes: 12 * 65_536,
        disk: Some(DiskConfig {
            capacity: 1 << 20,
            free_reserve: 0,
            segment_bytes: 128 << 10,
            policy: policy.to_owned(),
            quota_per_tenant: Some(400 << 10),
            ..DiskConfig::new(path)
        }),
        write_policy,
        io_workers: 2,
        policy: policy.to_owned(),
        capture: Some(Capture::start(capture).expect("a capture")),
        ..StoreConfig::default()
    };
    let store = BlockStore::open(&config).expect("the store opens");
    let config = CacheConfig {
        block_bytes: 24 * layout().block_bytes() as u64,
        buffer_bytes: 4 << 20,
        residents: 0,
        policy: policy.to_owned(),
    };
    PrefixCache::new(layout(), store, &config).expect("a cache")
}

/// A prompt: from which earlier one it goes on, after how many of its blocks, and how many blocks of its own it adds.
#[derive(Clone, Debug)]
struct Prompt {
    from: prop::sample::Index,
    kept: usize,
    added: usize,
    tenant: usize,
}

fn prompts(count: usize) -> impl Strategy<Value = Vec<Prompt>> {
    let prompt = (
        any::<prop::sample::Index>(),
        0..12_usize,
        0..6_usize,
        0..3_usize,
    );
    let prompt = prompt.prop_map(|(from, kept, added, tenant)| Prompt {
        from,
        kept,
        added,
        tenant,
    });
    prop::collection::vec(prompt, count)
}

/// The prompts' tokens. Each ends with one token that is never cached.
fn tokens(prompts: &[Prompt]) -> Vec<Vec<u32>> {
    let mut all: Vec<Vec<u32>> = Vec::new();
    for (seed, prompt) in prompts.iter().enumerate() {
        let own = (0..prompt.added * BLOCK).map(|at| (seed * 1000 + at) as u32);
        let before = all
            .get(prompt.from.index(seed.max(1)))
            .map_or(&[][..], |tokens| {
                &tokens[..(tokens.len() - 1).min(prompt.kept * BLOCK)]
            });
        all.push(
            before
                .iter()
                .copied()
                .chain(own)
                .chain([u32::MAX])
                .collect(),
        );
    }
    all
}

fn space(tenant: usize) -> kvlab_core::key::BlockKey {
    namespace(["alone", "one", "two"][tenant])
}

/// Serves all, from two threads at once, and closes the store.
fn run(cache: &PrefixCache, prompts: &[Prompt], all: &[Vec<u32>]) {
    for tenant in 0..3 {
        let terms = Terms {
            tenant: tenant as u64,
            ..Terms::default()
        };
        cache.set_terms(space(tenant), terms);
    }
    std::thread::scope(|scope| {
        for half in 0..2 {
            scope.spawn(move || {
                for (prompt, tokens) in prompts.iter().zip(all).skip(half).step_by(2) {
                    serve(cache, &space(prompt.tenant), tokens);
                }
            });
        }
    });
    cache.close(LONG).expect("close");
    let store = cache.store().clone();
    store.close(LONG).expect("close");
    cache.validate().expect("sound");
    store.validate().expect("sound");
}

fn victims(replayed: &[Replayed], tier: u8) -> usize {
    let tier = replayed.iter().filter(|order| order.tier == tier);
    tier.map(|order| order.victims.len()).sum()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_policy_chooses_the_same_victims_again(
        prompts in prompts(120),
        back in any::<bool>(),
    ) {
        let all = tokens(&prompts);
        for policy in live_names() {
            let directory = tempfile::tempdir().expect("a directory");
            let file = directory.path().join("capture");
            let write_policy = if back { WritePolicy::WriteBack } else { WritePolicy::WriteThrough };
            let cache = open(&directory.path().join("store"), &file, policy, write_policy);
            run(&cache, &prompts, &all);

            let replayed = replay(&file).expect("a sound capture");
            for order in &replayed {
                prop_assert_eq!(&order.policy, policy);
                prop_assert_eq!(&order.recorded, &order.victims, "tier {}", order.tier);
            }
            for tier in 1..=3 {
                prop_assert!(victims(&replayed, tier) > 0, "{}: nothing left tier {}", policy, tier);
            }
            let quotas = replayed.iter().filter(|order| order.tenant != 0);
            prop_assert_eq!(quotas.count(), 2);

            // Requests with the same names share exactly the blocks that their prompts share.
            let found = requests(&file).expect("a capture");
            let found = found.collect::<Result<Vec<_>, _>>().expect("sound requests");
            let whole = |tokens: &Vec<u32>| (tokens.len() - 1) / BLOCK;
            let mut lengths = found.iter().map(|request| request.blocks.len()).collect::<Vec<_>>();
            let mut expected = all.iter().map(whole).collect::<Vec<_>>();
            lengths.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(lengths, expected);
            let mut names: HashMap<(usize, &[u32]), u32> = HashMap::new();
            for (prompt, tokens) in prompts.iter().zip(&all) {
                for end in 1..=whole(tokens) {
                    *names.entry((prompt.tenant, &tokens[..end * BLOCK])).or_default() += 1;
                }
            }
            let mut ids: HashMap<u64, u32> = HashMap::new();
            for block in found.iter().flat_map(|request| &request.blocks) {
                *ids.entry(*block).or_default() += 1;
            }
            let mut names = names.into_values().collect::<Vec<_>>();
            let mut ids = ids.into_values().collect::<Vec<_>>();
            names.sort_unstable();
            ids.sort_unstable();
            prop_assert_eq!(names, ids);
            prop_assert!(found.is_sorted_by_key(|request| request.time_ms));
        }
    }
}

#[test]
fn a_torn_capture_ends_at_its_last_whole_frame_and_damage_is_said() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("capture");
    let cache = open(
        &directory.path().join("store"),
        &file,
        "s3-fifo",
        WritePolicy::WriteThrough,
    );
    for seed in 0..40_u32 {
        let tokens = (0..21).map(|at| seed * 1000 + at).collect::<Vec<_>>();
        serve(&cache, &namespace("alone"), &tokens);
        if seed % 10 == 0 {
            // Longer than the recorder waits: another frame.
            std::thread::sleep(std::time::Duration::from_millis(250));
        }
    }
    cache.close(LONG).expect("close");
    cache.store().close(LONG).expect("close");
    let whole = fs::read(&file).expect("a file");
    let torn = directory.path().join("torn");
    let count = |bytes: &[u8]| {
        fs::write(&torn, bytes).expect("written");
        requests(&torn).map(|found| found.flatten().count())
    };
    assert_eq!(count(&whole).expect("sound"), 40);
    let mut last = 40;
    for end in (20..whole.len()).rev().step_by(97) {
        let found = count(&whole[..end]).expect("a capture");
        assert!(
            found <= last,
            "{found} requests of {end} bytes, {last} of more"
        );
        last = found;
    }
    assert_eq!(last, 0, "a header alone has no requests");
    for (at, byte) in [(20, 1), (24, 1), (28, 1), (40, 0x40)] {
        let mut damaged = whole.clone();
        damaged[at] ^= byte;
        fs::write(&torn, &damaged).expect("written");
        let error = replay(&torn).expect_err("damaged");
        assert!(error.to_string().contains("at offset 20"), "{error}");
        let mut found = requests(&torn).expect("a header");
        assert!(matches!(found.next(), Some(Err(Error::Format { .. }))));
        assert!(found.next().is_none());
    }
    for foreign in [&b""[..], b"KVLABCAP", &[0; 64]] {
        assert!(matches!(count(foreign), Err(Error::Format { .. })));
    }
    assert!(
        matches!(Capture::start(&file), Err(Error::Io { .. })),
        "it is there already"
    );
}

/// No token and no block key is in the file, and two captures of the same requests share no name.
#[test]
fn names_are_keyed_anew_in_each_capture() {
    let captured = [0, 1].map(|_| {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("capture");
        let cache = open(
            &directory.path().join("store"),
            &file,
            "lru",
            WritePolicy::WriteThrough,
        );
        serve(&cache, &namespace("alone"), &(0..41).collect::<Vec<_>>());
        cache.close(LONG).expect("close");
        cache.store().close(LONG).expect("close");
        let found = requests(&file).expect("a capture").next();
        found.expect("a request").expect("sound").blocks
    });
    assert_eq!(captured.each_ref().map(Vec::len), [10, 10]);
    assert!(captured[0].iter().all(|name| !captured[1].contains(name)));
}
