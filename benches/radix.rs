//! The radix tree: match, insert, evict, lock. One thread, blocks of 16 tokens.

#![expect(clippy::expect_used, reason = "a bench may fail loudly")]

#[path = "workload.rs"]
mod workload;

use std::cell::Cell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use kvlab_core::key::BlockKey;
use kvlab_core::policy::by_name;
use kvlab_core::radix::{Match, RadixTree};
use workload::{Rng, prompts};

const BLOCK: usize = 16;
const NAMESPACE: BlockKey = BlockKey([7; 32]);

fn empty() -> RadixTree {
    RadixTree::new(BLOCK, by_name("lru", 0).expect("a known policy")).expect("a valid block size")
}

fn insert(tree: &mut RadixTree, prompt: &[u32], blocks: &[u32]) -> Match {
    let blocks = &blocks[..prompt.len() / BLOCK];
    let inserted = tree.insert(&NAMESPACE, prompt, blocks);
    inserted.expect("whole blocks").path
}

/// Calls `timed` for every item of a cycle, without what criterion's own loop would add to the item.
fn cycle<'a, T>(items: &'a [T], mut timed: impl FnMut(&'a T)) -> impl FnMut(u64) -> Duration {
    let mut items = items.iter().cycle();
    move |iterations| {
        let start = Instant::now();
        for item in items.by_ref().take(iterations as usize) {
            timed(item);
        }
        start.elapsed()
    }
}

fn matching(c: &mut Criterion) {
    let prompts = prompts(BLOCK);
    let blocks: Vec<u32> = (0..1024).collect();
    let mut tree = empty();
    for prompt in &prompts {
        insert(&mut tree, prompt, &blocks);
    }
    let mut order = prompts.clone();
    Rng::new(2).shuffle(&mut order);
    let wide: Vec<Vec<Cell<i64>>> = order
        .iter()
        .map(|prompt| {
            prompt
                .iter()
                .map(|&token| Cell::new(token.into()))
                .collect()
        })
        .collect();

    let mut group = c.benchmark_group("radix");
    group.bench_function("match_full_hit", |b| {
        b.iter_custom(cycle(&order, |prompt| {
            assert_eq!(tree.match_prefix(&NAMESPACE, prompt).tokens(), prompt.len());
        }));
    });
    group.bench_function("match_full_hit_one_prompt", |b| {
        b.iter_custom(cycle(&order[..1], |prompt| {
            assert_eq!(tree.match_prefix(&NAMESPACE, prompt).tokens(), prompt.len());
        }));
    });
    group.bench_function("match_full_hit_wide", |b| {
        b.iter_custom(cycle(&wide, |prompt| {
            let found = tree.match_wide(&NAMESPACE, prompt).expect("token ids");
            assert_eq!(found.tokens(), prompt.len());
        }));
    });
    let mut ids = Vec::new();
    let found: Vec<Match> = order
        .iter()
        .map(|prompt| tree.match_prefix(&NAMESPACE, prompt))
        .collect();
    group.bench_function("blocks_of", |b| {
        b.iter_custom(cycle(&found, |found| {
            ids.clear();
            tree.blocks_of(black_box(found), &mut ids).expect("held");
        }));
    });
    group.bench_function("lock_unlock", |b| {
        b.iter_custom(cycle(&found, |found| {
            let lock = tree.lock(black_box(found)).expect("held");
            tree.unlock(lock).expect("locked");
        }));
    });
    group.finish();
}

fn inserting(c: &mut Criterion) {
    let prompts = prompts(BLOCK);
    let blocks: Vec<u32> = (0..1024).collect();
    c.bench_function("radix/insert_cold", |b| {
        b.iter_custom(|iterations| {
            let mut spent = Duration::ZERO;
            let mut left = iterations as usize;
            while left > 0 {
                let mut tree = empty();
                let now = left.min(prompts.len());
                let start = Instant::now();
                for prompt in &prompts[..now] {
                    black_box(insert(&mut tree, prompt, &blocks));
                }
                spent += start.elapsed();
                left -= now;
            }
            spent
        });
    });
}

/// Pool full: 128 tokens are evicted, then as many inserted. Every other leaf is locked; only the eviction is timed.
fn evicting(c: &mut Criterion) {
    for (name, leaf_blocks) in [("8_leaves", 1), ("1_leaf", 8), ("tail_of_1_leaf", 64)] {
        for leaves in [1_000, 50_000] {
            if leaf_blocks * leaves > 1_000_000 {
                continue;
            }
            let mut rng = Rng::new(3);
            let roots: Vec<Vec<u32>> = (0..50).map(|_| rng.tokens(512)).collect();
            let blocks: Vec<u32> = (0..1024).collect();
            let mut tree = empty();
            let prompt = |rng: &mut Rng| {
                let root = rng.between(0, roots.len());
                [&roots[root][..], &rng.tokens(leaf_blocks * BLOCK)].concat()
            };
            for index in 0..leaves {
                let path = insert(&mut tree, &prompt(&mut rng), &blocks);
                if index % 2 == 0 {
                    tree.lock(&path).expect("held");
                }
            }
            c.bench_function(&format!("radix/evict_128_tokens/{name}/{leaves}"), |b| {
                b.iter_custom(|iterations| {
                    let mut spent = Duration::ZERO;
                    let mut evicted = Vec::with_capacity(8);
                    for _ in 0..iterations {
                        evicted.clear();
                        let start = Instant::now();
                        let freed = tree.evict(8, &mut evicted);
                        spent += start.elapsed();
                        assert_eq!(freed, 8);
                        while tree.stats().leaves < leaves {
                            insert(&mut tree, &prompt(&mut rng), &blocks);
                        }
                    }
                    spent
                });
            });
        }
    }
}

criterion_group!(benches, matching, inserting, evicting);
criterion_main!(benches);
