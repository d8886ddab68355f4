//! Requests on one small L1: match and lock, copy, evict, publish, lend, fork, drop.

use std::sync::Arc;

use shuttle::thread;

use super::{LONG, config, ends_clean, explore, open};
use crate::cache::{CacheConfig, PrefixCache};
use crate::config::WritePolicy;
use crate::key::BlockKey;
use crate::layout::{LayerLayout, Layout};
use crate::tier::testing::{FakeDisk, namespace};

const BLOCK: usize = 2;

fn layout() -> Layout {
    let layer = LayerLayout {
        k_heads: 1,
        k_dim: 3,
        v_heads: 1,
        v_dim: 2,
    };
    Layout::new(&[layer; 2], 1, BLOCK as u32).expect("a layout")
}

fn cache(
    disk: &Arc<FakeDisk>,
    l1_blocks: usize,
    l2_pages: u64,
    policy: WritePolicy,
) -> PrefixCache {
    let store = open(&config(l2_pages, policy), disk);
    let config = CacheConfig {
        block_bytes: (l1_blocks * layout().block_bytes()) as u64,
        buffer_bytes: 1 << 20,
        residents: 0,
        policy: "lru".to_owned(),
    };
    PrefixCache::new(layout(), store, &config).expect("a cache")
}

fn prompt(seed: u32, blocks: usize) -> Vec<u32> {
    (0..=(blocks * BLOCK) as u32)
        .map(|at| seed * 100 + at)
        .collect()
}

/// The byte of a token's row: it depends on the token and the layer only, so each prompt has tokens of its own.
fn byte(token: u32, layer: usize, tensor: usize) -> u8 {
    (token as usize * 7 + layer * 3 + tensor + 1) as u8
}

/// Serves a prompt and checks what was restored. Gives back how many tokens that were.
fn serve(cache: &PrefixCache, space: BlockKey, tokens: &[u32], finish: Finish) -> usize {
    let mut request = cache.begin(space, tokens.to_vec(), 0).expect("begin");
    if finish == Finish::Begun {
        return 0;
    }
    let buffer = Arc::new(cache.lease(tokens.len()).expect("lease"));
    let hit = request.restore(&buffer).expect("restore").tokens.total();
    let places = buffer.layout().clone();
    for layer in 0..places.layers() {
        let tensors = layout()
            .tensors(layer)
            .into_iter()
            .zip(places.tensors(layer));
        for (which, (tensor, base)) in tensors.enumerate() {
            for (at, token) in tokens.iter().enumerate() {
                let expected = vec![byte(*token, layer, which); tensor.row];
                let offset = base + at * tensor.row;
                if at < hit {
                    let mut found = vec![0; tensor.row];
                    buffer.region().read(offset, &mut found);
                    assert_eq!(found, expected, "token {at} of {hit}");
                } else {
                    buffer.region().write(offset, &expected);
                }
            }
        }
    }
    if finish == Finish::Restored {
        return hit;
    }
    request.commit(tokens.to_vec(), &buffer).expect("commit");
    if finish == Finish::Waited {
        assert!(request.wait_committed(LONG));
    }
    hit
}

/// Where a request is dropped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Finish {
    Begun,
    Restored,
    Committed,
    Waited,
}

/// At the end all blocks are free or may go, all buffers are back, nothing is lent.
fn ends_empty(cache: &PrefixCache) {
    cache.flush(LONG).expect("flush");
    cache.validate().expect("sound");
    cache.evict(usize::MAX).expect("evict");
    cache.flush(LONG).expect("flush");
    let stats = cache.stats();
    assert_eq!(stats.l1.pool.free, stats.l1.pool.blocks, "{:?}", stats.l1);
    assert_eq!(stats.buffers.idle, stats.buffers.mapped);
    assert_eq!(stats.pending_commits, 0);
    cache.validate().expect("sound");
    cache.close(LONG).expect("close");
    ends_clean(cache.store());
}

/// Three requests on an L1 that holds one and a half of their prompts, dropped at different stages.
#[test]
fn requests_on_a_tiny_l1() {
    explore(|| {
        let disk = FakeDisk::new(1 << 20);
        let cache = cache(&disk, 4, 4, WritePolicy::WriteThrough);
        let space = namespace(1);
        let served = [
            (1, Finish::Waited),
            (1, Finish::Committed),
            (2, Finish::Restored),
        ];
        let requests = served.map(|(seed, finish)| {
            let cache = cache.clone();
            thread::spawn(move || {
                serve(&cache, space, &prompt(seed, 3), finish);
            })
        });
        serve(&cache, space, &prompt(2, 3), Finish::Begun);
        serve(&cache, space, &prompt(2, 3), Finish::Committed);
        for thread in requests {
            thread.join().expect("a thread");
        }
        cache.flush(LONG).expect("flush");
        assert_eq!(
            serve(&cache, space, &prompt(1, 3), Finish::Waited),
            3 * BLOCK
        );
        ends_empty(&cache);
    });
}

/// Evictions that write a chain's end and its beginning out of L1, while requests use, fork and lengthen the chain.
#[test]
fn lend_against_evict_and_commit() {
    for l2_pages in [0, 1] {
        explore(move || {
            let disk = FakeDisk::new(1 << 20);
            let cache = cache(&disk, 6, l2_pages, WritePolicy::WriteBack);
            let space = namespace(1);
            serve(&cache, space, &prompt(1, 3), Finish::Waited);
            let evicter = thread::spawn({
                let cache = cache.clone();
                move || {
                    cache.evict(1).expect("evict");
                    cache.store().evict_l2(LONG).expect("evict");
                }
            });
            let server = thread::spawn({
                let cache = cache.clone();
                move || {
                    serve(&cache, space, &prompt(1, 4), Finish::Committed);
                }
            });
            let request = cache.begin(space, prompt(1, 3), 0).expect("begin");
            if let Some(fork) = request.fork(LONG).expect("fork") {
                assert!(fork.sequence().1 <= 3 * BLOCK);
            }
            drop(request);
            evicter.join().expect("a thread");
            server.join().expect("a thread");
            cache.flush(LONG).expect("flush");
            cache.validate().expect("sound");
            let stats = cache.store().stats().expect("stats");
            assert_eq!(
                (stats.dropped_victims, stats.refusals.parent_missing),
                (0, 0)
            );
            assert_eq!(
                serve(&cache, space, &prompt(1, 4), Finish::Waited),
                4 * BLOCK
            );
            ends_empty(&cache);
        });
    }
}

/// Blocks that are lent to the store to be written are not given to the next prompt before their bytes are down, even though L1
/// evicts them meanwhile.
#[test]
fn lent_blocks_are_not_overwritten() {
    explore(|| {
        let disk = FakeDisk::new(1 << 20);
        let cache = cache(&disk, 4, 0, WritePolicy::WriteBack);
        let space = namespace(1);
        serve(&cache, space, &prompt(1, 3), Finish::Waited);
        disk.writes.shut();
        // The last one goes down; those before it are lent, and stand in line first.
        assert_eq!(cache.evict(1).expect("evict"), 1);
        let opener = thread::spawn({
            let disk = Arc::clone(&disk);
            move || {
                thread::yield_now();
                disk.writes.open();
            }
        });
        // The partial block is free, and one more is needed: one that is lent.
        serve(&cache, space, &prompt(2, 1), Finish::Waited);
        opener.join().expect("a thread");
        cache.evict(usize::MAX).expect("evict");
        cache.flush(LONG).expect("flush");
        for (seed, blocks) in [(1, 3), (2, 1)] {
            let hit = serve(&cache, space, &prompt(seed, blocks), Finish::Restored);
            assert_eq!(hit, blocks * BLOCK);
        }
        ends_empty(&cache);
    });
}

/// What is in the tree has its bytes: a request finds a prompt while it is being put there.
#[test]
fn publish_against_match() {
    explore(|| {
        let disk = FakeDisk::new(1 << 20);
        let cache = cache(&disk, 8, 0, WritePolicy::WriteBack);
        let space = namespace(1);
        let readers = [(); 2].map(|()| {
            let cache = cache.clone();
            thread::spawn(move || {
                serve(&cache, space, &prompt(1, 3), Finish::Restored);
            })
        });
        serve(&cache, space, &prompt(1, 3), Finish::Committed);
        for thread in readers {
            thread.join().expect("a thread");
        }
        ends_empty(&cache);
    });
}

/// With write-back, a close leaves all that was committed on disk, whoever still holds it.
#[test]
fn close_writes_all_back() {
    explore(|| {
        let disk = FakeDisk::new(1 << 20);
        let cache = cache(&disk, 8, 1, WritePolicy::WriteBack);
        let space = namespace(1);
        let servers = [1, 2].map(|seed| {
            let cache = cache.clone();
            thread::spawn(move || {
                serve(&cache, space, &prompt(seed, 2), Finish::Committed);
            })
        });
        drop(cache.evict(1));
        for thread in servers {
            thread.join().expect("a thread");
        }
        let request = cache.begin(space, prompt(1, 2), 0).expect("begin");
        cache.close(LONG).expect("close");
        cache.store().close(LONG).expect("close");
        drop(request);
        cache.validate().expect("sound");
        assert_eq!(
            disk.keys().len(),
            4,
            "two prompts of two blocks: {:?}",
            cache.store().stats()
        );
        drop(cache);
    });
}

/// The last handles of cache and store end while their blocks are being written: no thread of a store closes it.
#[test]
fn dropped_with_leases_under_way() {
    explore(|| {
        let disk = FakeDisk::new(1 << 20);
        let cache = cache(&disk, 4, 0, WritePolicy::WriteBack);
        let space = namespace(1);
        serve(&cache, space, &prompt(1, 3), Finish::Waited);
        cache.evict(2).expect("evict");
        let store = cache.store().clone();
        drop(cache);
        drop(store);
        assert_eq!(disk.keys().len(), 3);
    });
}
