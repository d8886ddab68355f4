//! Cost of the block pool and of sequences over it; payload-free, so that bookkeeping is all there is.
//!
//! `cargo bench --bench blocks`
#![expect(
    clippy::expect_used,
    reason = "a bench that cannot set up has nothing to measure"
)]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use kvlab_core::Result;
use kvlab_core::block::{BlockPool, PagedAllocator};

const BLOCK_TOKENS: usize = 16;
const SEQUENCE_BLOCKS: usize = 256;

fn pool(criterion: &mut Criterion) {
    let mut pool = BlockPool::new(4096, 0).expect("a pool");
    criterion.bench_function("allocate + free a block", |bencher| {
        bencher.iter(|| -> Result<bool> {
            let id = pool.allocate()?;
            pool.release(black_box(id))
        });
    });
    // One thousand at once, so that not only the hottest block is measured.
    let mut held = Vec::with_capacity(1000);
    criterion.bench_function("allocate + free 1,000 blocks", |bencher| {
        bencher.iter(|| -> Result<()> {
            pool.allocate_many(1000, &mut held)?;
            for id in held.drain(..) {
                pool.release(id)?;
            }
            Ok(())
        });
    });
}

fn sequences(criterion: &mut Criterion) {
    let mut allocator = PagedAllocator::new(4096, BLOCK_TOKENS, 0).expect("an allocator");
    let parent = allocator
        .allocate_sequence(SEQUENCE_BLOCKS * BLOCK_TOKENS)
        .expect("room");
    criterion.bench_function("fork + free a sequence of 256 blocks", |bencher| {
        bencher.iter(|| -> Result<usize> {
            let child = allocator.fork(parent)?;
            allocator.free_sequence(black_box(child))
        });
    });
    criterion.bench_function("append 1 token, 4,096 times from empty", |bencher| {
        bencher.iter(|| -> Result<usize> {
            let id = allocator.allocate_sequence(0)?;
            for _ in 0..SEQUENCE_BLOCKS * BLOCK_TOKENS {
                allocator.append_tokens(id, 1)?;
            }
            allocator.free_sequence(id)
        });
    });
}

fn copy_on_write(criterion: &mut Criterion) {
    // SmolLM2-135M in bf16: 23,040 bytes a token.
    let mut allocator =
        PagedAllocator::new(8, BLOCK_TOKENS, BLOCK_TOKENS * 23_040).expect("an allocator");
    let parent = allocator.allocate_sequence(BLOCK_TOKENS).expect("room");
    let row = vec![1; 23_040];
    allocator.write(parent, 0, &row).expect("in range");
    criterion.bench_function("first divergent write, 360 KiB block", |bencher| {
        bencher.iter(|| -> Result<usize> {
            let child = allocator.fork(parent)?;
            allocator.write(child, 3, &row)?;
            allocator.free_sequence(child)
        });
    });
}

criterion_group!(benches, pool, sequences, copy_on_write);
criterion_main!(benches);
