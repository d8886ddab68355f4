//! What a live store recorded is what it did: driven by it, tree and directories choose the same victims, and the requests are those
//! that came.
#![expect(clippy::expect_used, reason = "helpers of tests stop the test")]

mod cache_support;

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use cache_support::{BLOCK, LONG, layout, namespace, serve};
use kvlab_core::Error;
use kvlab_core::cache::{Begin, CacheConfig, PrefixCache};
use kvlab_core::config::{DiskConfig, StoreConfig, WritePolicy};
use kvlab_core::policy::live_names;
use kvlab_core::run::Terms;
use kvlab_core::sim::capture::{Capture, Otherwise, Replayed, replay, requests, rerun};
use kvlab_core::store::BlockStore;
use proptest::prelude::*;

/// Blocks of L1, pages of L2. L3 has the least that it can have.
type Sizes = (u64, u64);

/// Small enough for every tier to evict.
const SMALL: Sizes = (24, 12);

fn open(
    path: &Path,
    capture: &Path,
    policy: &str,
    write_policy: WritePolicy,
    sizes: Sizes,
) -> PrefixCache {
    let config = StoreConfig {
        l2_bytes: sizes.1 * 65_536,
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
    cache_over(store, policy, sizes.0)
}

fn cache_over(store: BlockStore, policy: &str, blocks: u64) -> PrefixCache {
    let config = CacheConfig {
        block_bytes: blocks * layout().block_bytes() as u64,
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
            // Some expire while the test runs.
            ttl_seconds: u32::from(tenant == 2),
            ..Terms::default()
        };
        cache.set_terms(space(tenant), terms);
    }
    std::thread::scope(|scope| {
        for half in 0..2 {
            scope.spawn(move || {
                let numbered = prompts.iter().zip(all).enumerate();
                for (number, (prompt, tokens)) in numbered.skip(half).step_by(2) {
                    serve(cache, &space(prompt.tenant), tokens);
                    more(cache, number, &space(prompt.tenant), tokens);
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

/// Whatever else may be asked of a cache, now and then.
fn more(cache: &PrefixCache, number: usize, space: &kvlab_core::key::BlockKey, tokens: &[u32]) {
    match number % 16 {
        2 => assert!(cache.evict(3).expect("open") <= 3),
        5 => drop(cache.prefetch(*space, tokens).expect("open")),
        9 => {
            let request = cache.begin(*space, tokens.to_vec(), 0).expect("begin");
            let fork = request.fork(LONG).expect("open");
            drop((request, fork));
        }
        12 => {
            cache.store().evict_l2(LONG).expect("open");
        }
        15 => {
            cache.clear(Some(space)).expect("open");
            if number > 60 {
                cache.store().clear(Some(space)).expect("open");
            }
        }
        _ => {}
    }
}

fn same_victims(replayed: &[Replayed], policy: &str) -> Result<(), TestCaseError> {
    for order in replayed {
        prop_assert_eq!(&order.policy, policy);
        prop_assert_eq!(
            &order.recorded,
            &order.victims,
            "{} in tier {} of {}, tenant {}",
            policy,
            order.tier,
            order.capacity,
            order.tenant
        );
    }
    Ok(())
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
    fn tree_and_directories_choose_the_same_victims_again(
        prompts in prompts(120),
        back in any::<bool>(),
        sizes in prop::sample::select(vec![(13, 5), SMALL, (30, 8)]),
    ) {
        let all = tokens(&prompts);
        for policy in live_names() {
            let directory = tempfile::tempdir().expect("a directory");
            let file = directory.path().join("capture");
            let write_policy = if back { WritePolicy::WriteBack } else { WritePolicy::WriteThrough };
            let store = directory.path().join("store");
            let cache = open(&store, &file, policy, write_policy, sizes);
            run(&cache, &prompts, &all);
            drop(cache);
            let replayed = replay(&file).expect("a sound capture");
            same_victims(&replayed, policy)?;
            for tier in 1..=3 {
                prop_assert!(victims(&replayed, tier) > 0, "{}: nothing left tier {}", policy, tier);
            }
            let quotas = replayed.iter().filter(|order| order.tenant != 0);
            prop_assert!(quotas.count() >= 2);

            // A store that is there already: what L3 found on disk is in the capture.
            let again = directory.path().join("again");
            let cache = open(&store, &again, policy, write_policy, sizes);
            run(&cache, &prompts[80..], &all[80..]);
            drop(cache);
            same_victims(&replay(&again).expect("a sound capture"), policy)?;

            // Requests with the same names share exactly the blocks that their prompts share.
            let found = requests(&file).expect("a capture");
            let found = found.collect::<Result<Vec<_>, _>>().expect("sound requests");
            let whole = |tokens: &Vec<u32>| (tokens.len() - 1) / BLOCK;
            let mut lengths = found.iter().map(|request| request.blocks.len()).collect::<Vec<_>>();
            // Some were asked for twice.
            let twice = all.iter().skip(9).step_by(16);
            let mut expected = all.iter().chain(twice).map(whole).collect::<Vec<_>>();
            lengths.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(lengths, expected);
            let mut names: HashMap<(usize, &[u32]), u32> = HashMap::new();
            let pairs = || prompts.iter().zip(&all);
            for (prompt, tokens) in pairs().chain(pairs().skip(9).step_by(16)) {
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

/// Serves all, one after the other, from L1 alone, and tells the tokens that were found.
fn run_in_l1(file: &Path, policy: &str, blocks: u64, all: &[Vec<u32>]) -> usize {
    let config = StoreConfig {
        l2_bytes: 0,
        capture: Some(Capture::start(file).expect("a capture")),
        ..StoreConfig::default()
    };
    let store = BlockStore::open(&config).expect("the store opens");
    let cache = cache_over(store, policy, blocks);
    let found = all.iter().map(|tokens| serve(&cache, &space(0), tokens).l1);
    let found = found.sum();
    cache.close(LONG).expect("close");
    cache.store().close(LONG).expect("close");
    found
}

fn otherwise(policy: Option<&str>, l1_blocks: Option<u64>) -> Otherwise {
    Otherwise {
        policy: policy.map(str::to_owned),
        l1_blocks,
        ..Otherwise::default()
    }
}

/// Names in the order in which requests first have them: what is the same in two captures of the same requests.
fn numbered(file: &Path) -> HashMap<u64, usize> {
    let mut numbers = HashMap::new();
    for request in requests(file).expect("a capture") {
        for block in request.expect("sound").blocks {
            let next = numbers.len();
            numbers.entry(block).or_insert(next);
        }
    }
    numbers
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// All but w-tinylfu, which guesses how often a name came from a few of its bits: names differ from capture to capture.
    #[test]
    fn a_capture_tells_what_another_policy_and_size_would_have_done(prompts in prompts(60)) {
        let all = tokens(&prompts);
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("capture");
        run_in_l1(&file, "lru", 24, &all);
        let names = numbered(&file);
        for policy in live_names().filter(|name| *name != "w-tinylfu") {
            for blocks in [14, 24, 50] {
                let live = directory.path().join(format!("{policy}-{blocks}"));
                let found = run_in_l1(&live, policy, blocks, &all);
                let replayed = replay(&live).expect("a sound capture");
                same_victims(&replayed, policy)?;
                let live_names = numbered(&live);
                let lived = replayed[0].victims.iter().map(|name| live_names[name]).collect::<Vec<_>>();

                let reruns = rerun(&file, &otherwise(Some(policy), Some(blocks))).expect("a sound capture");
                prop_assert_eq!(reruns.len(), 1);
                let rerun = &reruns[0];
                let rerun_victims = rerun.victims.iter().map(|name| names[name]).collect::<Vec<_>>();
                prop_assert_eq!(rerun_victims, lived, "{} with {} blocks", policy, blocks);
                prop_assert_eq!((rerun.requests, rerun.hits as usize * BLOCK), (60, found));
                prop_assert!(blocks > 14 || rerun.evictions > 0);
            }
        }
        // One that is for the simulator alone, and the sizes of life where none are given.
        let arc = rerun(&file, &otherwise(Some("arc"), None)).expect("a sound capture");
        prop_assert_eq!((arc[0].blocks, arc[0].policy.as_str()), (24, "arc"));
        for (policy, blocks) in [(Some("belady"), None), (None, Some(0))] {
            prop_assert!(rerun(&file, &otherwise(policy, blocks)).is_err());
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
        SMALL,
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
            SMALL,
        );
        let tokens = (0..41).collect::<Vec<_>>();
        drop(
            cache
                .begin_with(
                    namespace("alone"),
                    tokens,
                    Begin {
                        category: 7,
                        ..Begin::default()
                    },
                )
                .expect("begin"),
        );
        cache.close(LONG).expect("close");
        cache.store().close(LONG).expect("close");
        let found = requests(&file).expect("a capture").next();
        let found = found.expect("a request").expect("sound");
        assert_eq!(found.category, 7);
        found.blocks
    });
    assert_eq!(captured.each_ref().map(Vec::len), [10, 10]);
    assert!(captured[0].iter().all(|name| !captured[1].contains(name)));
}

/// An engine's own blocks: each call that gets some is a request of them.
#[test]
fn a_block_store_is_captured_too() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("capture");
    let config = StoreConfig {
        l2_bytes: 4 * 65_536,
        capture: Some(Capture::start(&file).expect("a capture")),
        ..StoreConfig::default()
    };
    let store = BlockStore::open(&config).expect("the store opens");
    let keys = (0..9_u8).map(|byte| kvlab_core::key::BlockKey([byte + 1; 32]));
    let keys = keys.collect::<Vec<_>>();
    for key in &keys {
        store.put_bytes(*key, None, &[1; 100]).expect("stored");
    }
    store.get_many(&keys[4..8]).expect("open");
    store.get_bytes(&keys[8]).expect("open");
    store.close(LONG).expect("close");
    let replayed = replay(&file).expect("a sound capture");
    assert_eq!(replayed.len(), 1);
    assert_eq!((replayed[0].tier, replayed[0].victims.len()), (2, 5));
    assert_eq!(replayed[0].recorded, replayed[0].victims);
    let found = requests(&file).expect("a capture");
    let found = found.collect::<Result<Vec<_>, _>>().expect("sound");
    let lengths = found.iter().map(|request| request.blocks.len());
    assert_eq!(lengths.collect::<Vec<_>>(), [4, 1]);
    assert!(found.iter().all(|request| request.block_tokens == 1));
}
