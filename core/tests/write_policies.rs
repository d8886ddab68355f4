//! What the write policies leave on disk, over the real cache, store and disk tier.
#![expect(clippy::expect_used, reason = "helpers of tests stop the test")]

mod cache_support;

use std::path::Path;

use cache_support::{BLOCK, LONG, layout, namespace, serve};
use kvlab_core::cache::{CacheConfig, PrefixCache};
use kvlab_core::config::{DiskConfig, StoreConfig, WritePolicy};
use kvlab_core::store::BlockStore;
use proptest::prelude::*;

fn open(path: &Path, write_policy: WritePolicy, l1_blocks: u64, l2_pages: u64) -> PrefixCache {
    let config = StoreConfig {
        l2_bytes: l2_pages * 65_536,
        disk: Some(DiskConfig {
            capacity: 64 << 20,
            free_reserve: 0,
            segment_bytes: 1 << 20,
            ..DiskConfig::new(path)
        }),
        write_policy,
        io_workers: 2,
        ..StoreConfig::default()
    };
    let store = BlockStore::open(&config).expect("the store opens");
    let config = CacheConfig {
        block_bytes: l1_blocks * layout().block_bytes() as u64,
        buffer_bytes: 4 << 20,
        residents: 0,
        policy: "lru".to_owned(),
    };
    PrefixCache::new(layout(), store, &config).expect("a cache")
}

fn close(cache: PrefixCache) {
    cache.close(LONG).expect("close");
    let store = cache.store().clone();
    store.close(LONG).expect("close");
    cache.validate().expect("sound");
    store.validate().expect("sound");
    drop(cache);
}

/// A prompt of `blocks` whole blocks and one token.
fn prompt(seed: u32, blocks: usize) -> Vec<u32> {
    (0..=(blocks * BLOCK) as u32)
        .map(|at| seed * 1000 + at)
        .collect()
}

fn on_disk(cache: &PrefixCache) -> usize {
    cache.flush(LONG).expect("flush");
    cache.store().stats().expect("stats").l3.blocks
}

#[test]
fn selective_writes_at_the_second_use() {
    let directory = tempfile::tempdir().expect("a directory");
    let cache = open(directory.path(), WritePolicy::WriteThroughSelective, 64, 16);
    let space = namespace("model");
    let (shared, other) = (prompt(1, 6), prompt(2, 4));
    serve(&cache, &space, &shared);
    serve(&cache, &space, &other);
    assert_eq!(on_disk(&cache), 0, "nothing was used twice");
    // The second prompt goes on where the first four blocks end.
    let branch = [&shared[..4 * BLOCK], &prompt(3, 3)[..]].concat();
    assert_eq!(serve(&cache, &space, &branch).l1, 4 * BLOCK);
    assert_eq!(on_disk(&cache), 4, "the part in common");
    // What went down to L2 unwritten counts its uses on.
    assert!(cache.evict(usize::MAX).expect("evict") > 0);
    assert_eq!(serve(&cache, &space, &other).l2, 4 * BLOCK);
    assert_eq!(on_disk(&cache), 8);
    close(cache);
    let cache = open(directory.path(), WritePolicy::WriteThroughSelective, 64, 16);
    assert_eq!(serve(&cache, &space, &shared).l3, 4 * BLOCK);
    assert_eq!(serve(&cache, &space, &other).l3, 4 * BLOCK);
}

#[test]
fn several_commits_of_one_request_are_one_use() {
    let directory = tempfile::tempdir().expect("a directory");
    let cache = open(directory.path(), WritePolicy::WriteThroughSelective, 64, 0);
    let space = namespace("model");
    let tokens = prompt(1, 6);
    let (mut request, buffer, _) = cache_support::restore(&cache, &space, &tokens);
    cache_support::fill(&buffer, &space, &tokens, 0);
    for blocks in [2, 4, 6] {
        request
            .commit(tokens[..blocks * BLOCK].to_vec(), &buffer)
            .expect("commit");
    }
    assert!(request.wait_committed(LONG));
    assert_eq!(on_disk(&cache), 0);
    drop(request);
    serve(&cache, &space, &tokens);
    assert_eq!(on_disk(&cache), 6);
}

#[test]
fn what_was_never_used_again_is_dropped_with_its_reason() {
    for l2_pages in [0, 1] {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = open(
            directory.path(),
            WritePolicy::WriteThroughSelective,
            8,
            l2_pages,
        );
        let space = namespace("model");
        for seed in 0..4 {
            serve(&cache, &space, &prompt(seed, 6));
        }
        assert!(cache.evict(usize::MAX).expect("evict") > 0);
        cache.store().evict_l2(LONG).expect("evict");
        assert_eq!(on_disk(&cache), 0);
        let stats = cache.store().stats().expect("stats");
        assert!(stats.refusals.too_few_uses > 0, "{stats:?}");
        assert_eq!(stats.refusals.parent_missing, 0);
        close(cache);
    }
}

#[test]
fn a_tail_goes_down_with_its_beginning_that_only_l1_has() {
    for l2_pages in [0, 1] {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = open(directory.path(), WritePolicy::WriteBack, 64, l2_pages);
        let space = namespace("model");
        let tokens = prompt(1, 8);
        serve(&cache, &space, &tokens);
        assert_eq!(on_disk(&cache), 0, "write-back writes nothing that stays");
        assert_eq!(cache.evict(3).expect("evict"), 3);
        cache.store().evict_l2(LONG).expect("evict");
        assert_eq!(
            on_disk(&cache),
            8,
            "five blocks of L1, then the three that left it"
        );
        assert_eq!(cache.stats().l1.evictable, 5, "what was lent stays");
        let hit = serve(&cache, &space, &tokens);
        assert_eq!((hit.l1, hit.l3), (5 * BLOCK, 3 * BLOCK));
        let stats = cache.store().stats().expect("stats");
        assert_eq!(
            (stats.dropped_victims, stats.refusals.parent_missing),
            (0, 0)
        );
        assert_eq!(stats.l3.writes, 2, "nothing is written twice");
        close(cache);
    }
}

#[test]
fn a_request_under_way_does_not_keep_its_blocks_from_being_written_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let cache = open(directory.path(), WritePolicy::WriteBack, 64, 16);
    let space = namespace("model");
    let tokens = prompt(1, 8);
    serve(&cache, &space, &tokens);
    let request = cache.begin(space, tokens.clone(), 0).expect("begin");
    close(cache);
    drop(request);
    let cache = open(directory.path(), WritePolicy::WriteBack, 64, 16);
    assert_eq!(serve(&cache, &space, &tokens).l3, 8 * BLOCK);
}

#[test]
fn a_cache_that_is_dropped_writes_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let space = namespace("model");
    let cache = open(directory.path(), WritePolicy::WriteBack, 64, 16);
    serve(&cache, &space, &prompt(1, 8));
    drop(cache);
    let cache = open(directory.path(), WritePolicy::WriteBack, 64, 16);
    assert_eq!(serve(&cache, &space, &prompt(1, 8)).l3, 8 * BLOCK);
}

#[derive(Clone, Debug)]
enum Op {
    /// A prompt out of a tree of prompts: which branches, how long.
    Serve(u8, u8, usize),
    Evict(usize),
    EvictBelow,
    Flush,
}

fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..3_u8, 0..3_u8, 1..14_usize).prop_map(|(a, b, blocks)| Op::Serve(a, b, blocks)),
        2 => (1..9_usize).prop_map(Op::Evict),
        1 => Just(Op::EvictBelow),
        1 => Just(Op::Flush),
    ]
}

/// Branches part after 4 blocks and again after 8.
fn branch(a: u8, b: u8, blocks: usize) -> Vec<u32> {
    let at = |at: usize| match at / (4 * BLOCK) {
        0 => at as u32,
        1 => at as u32 + 1000 * (1 + u32::from(a)),
        _ => at as u32 + 10_000 * (1 + u32::from(a) * 3 + u32::from(b)),
    };
    (0..=blocks * BLOCK).map(at).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever went where before: after a close, all that was committed and kept is on disk, from its beginning on.
    #[test]
    fn write_back_leaves_every_prefix_on_disk(
        script in prop::collection::vec(ops(), 1..24),
        l1_blocks in 16..40_u64,
        l2_pages in 0..4_u64,
    ) {
        let directory = tempfile::tempdir().expect("a directory");
        let space = namespace("model");
        let cache = open(directory.path(), WritePolicy::WriteBack, l1_blocks, l2_pages);
        let mut served = Vec::new();
        for op in script {
            match op {
                Op::Serve(a, b, blocks) => {
                    let tokens = branch(a, b, blocks);
                    serve(&cache, &space, &tokens);
                    served.push(tokens);
                }
                Op::Evict(blocks) => drop(cache.evict(blocks).expect("evict")),
                Op::EvictBelow => drop(cache.store().evict_l2(LONG).expect("evict")),
                Op::Flush => cache.flush(LONG).expect("flush"),
            }
            cache.validate().expect("sound");
            cache.store().validate().expect("sound");
        }
        let stats = cache.store().stats().expect("stats");
        prop_assert_eq!(stats.dropped_victims, 0);
        prop_assert_eq!(stats.refusals.parent_missing, 0);
        close(cache);
        let cache = open(directory.path(), WritePolicy::WriteBack, 64, 16);
        for tokens in &served {
            let request = cache.begin(space, tokens.clone(), 0).expect("begin");
            prop_assert_eq!(request.found().l3, tokens.len() / BLOCK * BLOCK);
        }
        for tokens in &served {
            serve(&cache, &space, tokens);
        }
    }
}
