//! The key chain, in tokens a second.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kvlab_core::key::{BlockKey, chain_end, chain_keys};

fn chain(c: &mut Criterion) {
    let tokens: Vec<u32> = (0..5120).map(|token| token * 29 % 150_000).collect();
    let mut group = c.benchmark_group("keys");
    group.throughput(Throughput::Elements(tokens.len() as u64));
    for block_tokens in [16, 64] {
        let mut keys = Vec::with_capacity(tokens.len());
        group.bench_function(format!("chain/{block_tokens}"), |b| {
            b.iter(|| {
                keys.clear();
                chain_keys(BlockKey::default(), &tokens, block_tokens, &mut keys);
            });
        });
    }
    group.bench_function("chain_end/16", |b| {
        b.iter(|| chain_end(BlockKey::default(), &tokens, 16));
    });
    group.finish();
}

criterion_group!(benches, chain);
criterion_main!(benches);
