//! Terms of a namespace over the real cache, store and disk tier: what is over is served by no tier, what must stay off the disk does.
#![expect(clippy::expect_used, reason = "helpers of tests stop the test")]

mod cache_support;

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use cache_support::{BLOCK, LONG, layout, namespace, serve};
use kvlab_core::cache::{CacheConfig, HitTokens, PrefixCache};
use kvlab_core::config::{DiskConfig, StoreConfig};
use kvlab_core::run::Terms;
use kvlab_core::store::BlockStore;

fn open(path: &Path) -> PrefixCache {
    let config = StoreConfig {
        l2_bytes: 16 * 65_536,
        disk: Some(DiskConfig {
            capacity: 64 << 20,
            free_reserve: 0,
            segment_bytes: 1 << 20,
            ..DiskConfig::new(path)
        }),
        io_workers: 2,
        ..StoreConfig::default()
    };
    let store = BlockStore::open(&config).expect("the store opens");
    let config = CacheConfig {
        block_bytes: 64 * layout().block_bytes() as u64,
        buffer_bytes: 4 << 20,
        policy: "lru".to_owned(),
        residents: 0,
    };
    PrefixCache::new(layout(), store, &config).expect("a cache")
}

fn prompt(seed: u32, blocks: usize) -> Vec<u32> {
    let tokens = 0..=(blocks * BLOCK) as u32;
    tokens.map(|at| seed * 1000 + at).collect()
}

fn close(cache: PrefixCache) {
    cache.validate().expect("sound");
    cache.close(LONG).expect("close");
    let store = cache.store().clone();
    store.close(LONG).expect("close");
    store.validate().expect("sound");
    drop(cache);
}

fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

#[test]
fn what_is_over_is_served_by_no_tier_however_often_it_was_used() {
    const TTL: u32 = 1000;
    let directory = tempfile::tempdir().expect("a directory");
    let cache = open(directory.path());
    let (brief, lasting) = (namespace("brief"), namespace("lasting"));
    let terms = Terms {
        ttl_seconds: TTL,
        ..Terms::default()
    };
    cache.set_terms(brief, terms);
    let tokens = prompt(1, 5);
    let whole = 5 * BLOCK;
    for space in [&brief, &lasting] {
        assert_eq!(serve(&cache, space, &tokens), HitTokens::default());
    }
    let over = unix_seconds() + u64::from(TTL);
    // Through L2 and L3 and back into L1: none of this makes it younger.
    cache.flush(LONG).expect("flush");
    assert_eq!(serve(&cache, &brief, &tokens).l1, whole);
    assert!(cache.evict(usize::MAX).expect("evict") > 0);
    assert_eq!(serve(&cache, &brief, &tokens).l2, whole);
    assert!(cache.evict(usize::MAX).expect("evict") > 0);
    cache.store().evict_l2(LONG).expect("evict");
    assert_eq!(serve(&cache, &brief, &tokens).l3, whole);
    assert_eq!(serve(&cache, &brief, &tokens).l1, whole);
    // Its continuation is younger, but leads nowhere without it.
    let longer = [&tokens[..whole], &prompt(2, 2)[..]].concat();
    assert_eq!(serve(&cache, &brief, &longer).l1, whole);
    cache.store().disk().expect("a disk").clock().seen(over);
    assert_eq!(serve(&cache, &brief, &longer), HitTokens::default());
    // Stored anew, it lives again.
    assert_eq!(serve(&cache, &brief, &tokens).l1, whole);
    assert_eq!(serve(&cache, &lasting, &tokens).total(), whole);
    cache.flush(LONG).expect("flush");
    assert!(cache.store().disk().expect("a disk").stats().expired > 0);
    close(cache);
}

#[test]
fn what_must_stay_off_the_disk_lives_in_memory() {
    let directory = tempfile::tempdir().expect("a directory");
    let cache = open(directory.path());
    let secret = namespace("secret");
    let terms = Terms {
        persist: false,
        ..Terms::default()
    };
    cache.set_terms(secret, terms);
    let tokens = prompt(1, 5);
    serve(&cache, &secret, &tokens);
    cache.flush(LONG).expect("flush");
    assert!(cache.evict(usize::MAX).expect("evict") > 0);
    assert_eq!(serve(&cache, &secret, &tokens).l2, 5 * BLOCK);
    assert!(cache.evict(usize::MAX).expect("evict") > 0);
    cache.store().evict_l2(LONG).expect("evict");
    cache.flush(LONG).expect("flush");
    let stats = cache.store().stats().expect("stats");
    assert_eq!((stats.l3.blocks, stats.l3.writes), (0, 0));
    assert!(stats.refusals.not_persisted > 0 && stats.dropped_victims > 0);
    assert_eq!(serve(&cache, &secret, &tokens), HitTokens::default());
    close(cache);
}
