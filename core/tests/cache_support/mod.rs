//! A prefix cache whose KV bytes follow from the tokens, so that every restore can be checked.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::expect_used, reason = "a helper of tests")]

use std::sync::Arc;
use std::time::Duration;

use kvlab_core::buffer::CacheBuffer;
use kvlab_core::cache::{HitTokens, Lease, PrefixCache, Request};
use kvlab_core::key::{BlockKey, namespace_digest};
use kvlab_core::layout::{LayerLayout, Layout};

/// Longer than anything takes, so that running into it is a failure.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Tokens in a block.
pub(crate) const BLOCK: usize = 4;

/// Three layers whose K and V differ in shape.
pub(crate) fn layout() -> Layout {
    let layer = LayerLayout {
        k_heads: 2,
        k_dim: 24,
        v_heads: 1,
        v_dim: 40,
    };
    Layout::new(&[layer; 3], 4, BLOCK as u32).expect("a valid layout")
}

pub(crate) fn namespace(name: &str) -> BlockKey {
    namespace_digest([("model", name.as_bytes())])
}

/// For each position, a number that depends on the namespace and all tokens up to it.
fn states(namespace: &BlockKey, tokens: &[u32]) -> Vec<u64> {
    let mut state = u64::from_le_bytes(namespace.0[..8].try_into().expect("8 bytes")) | 1;
    let step = |token: &u32| {
        state = (state ^ u64::from(*token)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        state ^= state >> 29;
        state
    };
    tokens.iter().map(step).collect()
}

/// Calls `row` with the offset in the buffer and the bytes of every head of every token in `from..`.
fn rows(
    buffer: &CacheBuffer,
    namespace: &BlockKey,
    tokens: &[u32],
    from: usize,
    mut row: impl FnMut(usize, &[u8]),
) {
    let layout = layout();
    let places = buffer.layout();
    let states = states(namespace, tokens);
    for layer in 0..places.layers() {
        let tensors = layout.tensors(layer).into_iter().zip(places.tensors(layer));
        for (which, (tensor, base)) in tensors.enumerate() {
            for head in 0..tensor.heads {
                for (at, state) in states.iter().enumerate().skip(from) {
                    let mut byte = state ^ ((layer * 8 + which * 4 + head) as u64) << 7;
                    let bytes = (0..tensor.row).map(|_| {
                        byte = byte.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1);
                        (byte >> 56) as u8
                    });
                    let bytes = bytes.collect::<Vec<_>>();
                    row(base + (head * places.capacity() + at) * tensor.row, &bytes);
                }
            }
        }
    }
}

/// "Computes" the KV of the tokens from `from` on.
pub(crate) fn fill(buffer: &CacheBuffer, namespace: &BlockKey, tokens: &[u32], from: usize) {
    rows(buffer, namespace, tokens, from, |offset, bytes| {
        buffer.region().write(offset, bytes);
    });
}

/// Panics unless the buffer holds the KV of `tokens`.
pub(crate) fn check(buffer: &CacheBuffer, namespace: &BlockKey, tokens: &[u32]) {
    rows(buffer, namespace, tokens, 0, |offset, bytes| {
        let mut found = vec![0; bytes.len()];
        buffer.region().read(offset, &mut found);
        assert_eq!(found, bytes, "wrong bytes");
    });
}

/// Serves a prompt as an engine does: match, restore, compute the rest, commit all. Gives back what was restored.
pub(crate) fn serve(cache: &PrefixCache, namespace: &BlockKey, tokens: &[u32]) -> HitTokens {
    let (mut request, buffer, hit) = restore(cache, namespace, tokens);
    fill(&buffer, namespace, tokens, hit.total());
    request.commit(tokens.to_vec(), &buffer).expect("commit");
    assert!(request.wait_committed(LONG));
    hit
}

/// The first half of [`serve`].
pub(crate) fn restore(
    cache: &PrefixCache,
    namespace: &BlockKey,
    tokens: &[u32],
) -> (Request, Arc<Lease>, HitTokens) {
    let mut request = cache.begin(*namespace, tokens.to_vec(), 0).expect("begin");
    let buffer = Arc::new(cache.lease(tokens.len()).expect("lease"));
    let restored = request.restore(&buffer).expect("restore");
    let hit = restored.tokens;
    check(&buffer, namespace, &tokens[..hit.total()]);
    (request, buffer, hit)
}
