//! int8 on L3: through the disk tier with slices and targets of many shapes, and what a cache does with what was decoded.
#![expect(clippy::expect_used, reason = "helpers of tests")]

mod disk_support;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use disk_support::{config, header, namespace, open, slice_bytes, source};
use kvlab_core::buffer::CacheBuffer;
use kvlab_core::cache::{CacheConfig, Lease, PrefixCache, Request};
use kvlab_core::codec::{Codec, Element};
use kvlab_core::config::{StoreConfig, WritePolicy};
use kvlab_core::layout::{LayerLayout, Layout};
use kvlab_core::memory::{Piece, Region};
use kvlab_core::run::{RunHeader, RunTarget, Terms};
use kvlab_core::store::BlockStore;
use kvlab_core::tier::disk::DiskTier;
use kvlab_core::tier::{DurableTier, PinnedRun, Put, ReadFailure, Tier};
use proptest::prelude::*;

const LONG: Duration = Duration::from_secs(60);

fn coded(mut run: RunHeader, codec: Codec) -> RunHeader {
    run.terms = Terms {
        codec,
        ..Terms::default()
    };
    run
}

/// Reads a run into pieces cut at `cuts` (parts of a slice, in 1000ths), every `spare`th of them left out; what is left out stays 0.
fn read(pinned: &dyn PinnedRun, cuts: &[usize], spare: usize) -> Result<Vec<Vec<u8>>, ReadFailure> {
    let lengths = pinned.header().slices.clone();
    let total = lengths.iter().map(|&len| len as usize).sum::<usize>();
    let region = Arc::new(Region::new(total).expect("memory"));
    let (mut at, mut count) = (0, 0);
    let mut slices = Vec::new();
    for &len in lengths.iter() {
        let len = len as usize;
        let mut ends = cuts.iter().map(|cut| cut * len / 1000).collect::<Vec<_>>();
        ends.push(len);
        ends.sort_unstable();
        let mut from = 0;
        let pieces = ends.into_iter().map(|end| {
            count += 1;
            let piece = Piece {
                spare: count % spare == 0,
                offset: at + from,
                len: end - from,
            };
            from = end;
            piece
        });
        slices.push(pieces.collect::<Vec<_>>());
        at += len;
    }
    let target = RunTarget {
        region: Arc::clone(&region),
        lease: None,
        slices,
    };
    pinned.read_slices(0..lengths.len(), &target)?;
    let mut at = 0;
    let slices = target
        .slices
        .iter()
        .zip(lengths.iter())
        .map(|(pieces, &len)| {
            let mut bytes = vec![0; len as usize];
            let mut from = 0;
            for piece in pieces {
                if !piece.spare {
                    region.read(at + from, &mut bytes[from..from + piece.len]);
                }
                from += piece.len;
            }
            at += len as usize;
            bytes
        });
    Ok(slices.collect())
}

fn singles(bytes: &[u8]) -> Vec<f32> {
    let parts = bytes.chunks_exact(4);
    let number = |part: &[u8]| f32::from_le_bytes([part[0], part[1], part[2], part[3]]);
    parts.map(number).collect()
}

/// Whether a group came back as int8 does it.
fn is_close(exact: &[u8], back: &[u8]) -> bool {
    let (exact, back) = (singles(exact), singles(back));
    if exact.iter().any(|value| !value.is_finite()) {
        return back.iter().all(|value| value.is_nan());
    }
    let largest = exact
        .iter()
        .fold(0_f32, |most, value| most.max(value.abs()));
    let bound = f64::from(largest) / 127.0 * 0.501 + f64::from(f32::from_bits(1));
    let mut pairs = exact.iter().zip(&back);
    pairs.all(|(x, y)| (f64::from(*x) - f64::from(*y)).abs() <= bound)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_run_comes_back_close_through_every_shape_of_target(
        group in prop::sample::select(vec![1_u16, 16, 20, 64, 576]),
        groups in prop::collection::vec(1..60_u32, 1..6),
        direct: bool,
        cuts in prop::collection::vec(0..=1000_usize, 0..5),
        spare in 2..4_usize,
        seed: u32,
    ) {
        let directory = tempfile::tempdir().expect("a directory");
        let config = kvlab_core::config::DiskConfig {
            direct,
            ..config(directory.path())
        };
        let codec = Codec::Int8 { element: Element::F32, group };
        let exact = u32::from(group) * 4;
        let lengths = groups.iter().map(|groups| groups * exact).collect::<Vec<_>>();
        let names = namespace("one");
        let run = coded(header(names, names, seed, 3, &lengths), codec);
        let (tier, _) = open(&config);
        prop_assert_eq!(tier.put(&run, &source(&run)).expect("valid"), Put::Stored);
        let whole = {
            let (pinned, _) = tier.find(&run.keys[1]).expect("stored");
            read(&*pinned, &[], usize::MAX).expect("sound")
        };
        for (slice, back) in whole.iter().enumerate() {
            let given = slice_bytes(&run, slice);
            let mut parts = given.chunks(exact as usize).zip(back.chunks(exact as usize));
            prop_assert!(parts.all(|(given, back)| is_close(given, back)), "slice {}", slice);
        }
        tier.close().expect("closed");
        drop(tier);
        // After a restart, and however the target is cut, it is the same.
        let (tier, report) = open(&config);
        prop_assert_eq!(report.runs, 1);
        let (pinned, _) = tier.find(&run.keys[0]).expect("stored");
        prop_assert_eq!(pinned.header(), &run);
        let cut = read(&*pinned, &cuts, usize::MAX).expect("sound");
        prop_assert!(cut == whole);
        let some = read(&*pinned, &cuts, spare).expect("sound");
        for (some, whole) in some.iter().zip(&whole) {
            prop_assert!(some.iter().zip(whole).all(|(a, b)| a == b || *a == 0));
        }
        tier.validate().expect("sound");
    }
}

const INT8: Codec = Codec::Int8 {
    element: Element::F32,
    group: 64,
};

#[test]
fn it_takes_a_quarter_of_the_room_and_damage_is_a_miss() {
    let directory = tempfile::tempdir().expect("a directory");
    let names = namespace("one");
    let lengths = [64 * 4 * 300, 64 * 4 * 100];
    let run = coded(header(names, names, 1, 2, &lengths), INT8);
    let (tier, _) = open(&config(directory.path()));
    assert_eq!(tier.put(&run, &source(&run)).expect("valid"), Put::Stored);
    let page = |bytes: u64| bytes.div_ceil(4096) * 4096;
    let record = 4096 + page(300 * 68) + page(100 * 68);
    assert_eq!(tier.stats().write_bytes, record);
    tier.close().expect("closed");
    drop(tier);
    let file = directory.path().join("00000001.seg");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(file)
        .expect("there");
    // The last stored byte of the first slice.
    let at = 4096 + 4096 + 300 * 68 - 1;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("inside");
    file.write_all_at(&[byte[0] ^ 1], at).expect("written");
    let (tier, _) = open(&config(directory.path()));
    let (pinned, _) = tier.find(&run.keys[0]).expect("listed");
    assert_eq!(read(&*pinned, &[], usize::MAX), Err(ReadFailure::Corrupt));
    assert_eq!(tier.stats().dropped.corrupt, 1);
    assert!(tier.find(&run.keys[0]).is_none());
}

#[test]
fn a_record_longer_than_the_working_memory_comes_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let names = namespace("one");
    let lengths = [(18 << 20) / 256 * 256, 256 * 3];
    let run = coded(header(names, names, 1, 1, &lengths), INT8);
    let (tier, _) = open(&config(directory.path()));
    assert_eq!(tier.put(&run, &source(&run)).expect("valid"), Put::Stored);
    let (pinned, _) = tier.find(&run.keys[0]).expect("stored");
    let back = read(&*pinned, &[500], usize::MAX).expect("sound");
    for (slice, back) in back.iter().enumerate() {
        let given = slice_bytes(&run, slice);
        assert!(
            given
                .chunks(256)
                .zip(back.chunks(256))
                .all(|(given, back)| is_close(given, back))
        );
    }
}

#[test]
fn what_a_codec_cannot_take_is_refused_with_a_reason() {
    let directory = tempfile::tempdir().expect("a directory");
    let (tier, _) = open(&config(directory.path()));
    let names = namespace("one");
    let run = coded(header(names, names, 1, 1, &[64 * 4 + 4]), INT8);
    let error = tier.put(&run, &source(&run)).expect_err("no whole groups");
    assert!(error.to_string().contains("260 bytes"), "{error}");
    let mut run = coded(header(names, names, 1, 1, &[64 * 4]), INT8);
    run.terms.decoded = true;
    let put = tier.put(&run, &source(&run)).expect("valid");
    assert_eq!(put, Put::Refused(kvlab_core::tier::Refusal::Decoded));
    assert_eq!(tier.stats().refused.decoded, 1);
}

#[test]
fn a_layout_tells_its_group() {
    let layout = |dims: [u32; 2], element| {
        let layer = LayerLayout {
            k_heads: 2,
            k_dim: dims[0],
            v_heads: 1,
            v_dim: dims[1],
        };
        Layout::new(&[layer], element, 16).expect("valid")
    };
    let group = |group| Codec::Int8 {
        element: Element::Bf16,
        group,
    };
    let int8 = |layout: &Layout| Codec::int8(Element::Bf16, layout);
    assert_eq!(int8(&layout([64, 64], 2)).expect("fits"), group(64));
    assert_eq!(int8(&layout([512, 64], 2)).expect("fits"), group(64));
    assert_eq!(int8(&layout([96, 80], 2)).expect("fits"), group(16));
    assert!(int8(&layout([64, 65], 2)).is_err());
    assert!(int8(&layout([64, 64], 4)).is_err());
}

const BLOCK: usize = 4;

fn layout() -> Layout {
    let layer = LayerLayout {
        k_heads: 2,
        k_dim: 64,
        v_heads: 1,
        v_dim: 64,
    };
    Layout::new(&[layer; 3], 4, BLOCK as u32).expect("valid")
}

/// A cache with room for 32 blocks in L1 over an L3 of its own that tests may empty behind its back.
fn cache(path: &Path, l2_bytes: u64, write_policy: WritePolicy) -> (PrefixCache, Arc<DiskTier>) {
    let disk = Arc::new(open(&config(path)).0);
    let config = StoreConfig {
        l2_bytes,
        write_policy,
        ..StoreConfig::default()
    };
    let l3 = Arc::clone(&disk) as Arc<dyn DurableTier>;
    let store = BlockStore::with_l3(&config, Some(l3)).expect("a store");
    let config = CacheConfig {
        block_bytes: 32 * layout().block_bytes() as u64,
        buffer_bytes: 4 << 20,
        residents: 0,
        policy: "lru".to_owned(),
    };
    let cache = PrefixCache::new(layout(), store, &config).expect("a cache");
    let terms = Terms {
        codec: Codec::int8(Element::F32, &layout()).expect("fits"),
        ..Terms::default()
    };
    cache.set_terms(namespace("model"), terms);
    (cache, disk)
}

/// `blocks` whole blocks and one token.
fn prompt(blocks: usize) -> Vec<u32> {
    (0..=(blocks * BLOCK) as u32).collect()
}

/// The numbers that stand in the buffer's rows of a token, in the order of layers, K and V, heads.
fn row(buffer: &CacheBuffer, token: usize) -> Vec<f32> {
    let layout = layout();
    let places = buffer.layout();
    let mut out = Vec::new();
    for layer in 0..places.layers() {
        for (tensor, base) in layout.tensors(layer).into_iter().zip(places.tensors(layer)) {
            for head in 0..tensor.heads {
                let mut bytes = vec![0; tensor.row];
                let at = base + (head * places.capacity() + token) * tensor.row;
                buffer.region().read(at, &mut bytes);
                out.extend(singles(&bytes));
            }
        }
    }
    out
}

/// "Computes" the KV of the tokens from `from` on.
fn compute(buffer: &CacheBuffer, tokens: &[u32], from: usize) {
    let layout = layout();
    let places = buffer.layout();
    for layer in 0..places.layers() {
        let tensors = layout.tensors(layer).into_iter().zip(places.tensors(layer));
        for (which, (tensor, base)) in tensors.enumerate() {
            for head in 0..tensor.heads {
                for (at, token) in tokens.iter().enumerate().skip(from) {
                    let seed = (token + 1) as f32 * 0.37 + (which * 2 + head) as f32;
                    let numbers = (0..tensor.row / 4).map(|index| {
                        let number = (seed + (index * (layer + 1)) as f32).sin();
                        number.to_le_bytes()
                    });
                    let place = base + (head * places.capacity() + at) * tensor.row;
                    let bytes = numbers.flatten().collect::<Vec<_>>();
                    buffer.region().write(place, &bytes);
                }
            }
        }
    }
}

/// Restores and gives back the rows that came.
fn restore(cache: &PrefixCache, tokens: &[u32]) -> (Request, Arc<Lease>, Vec<Vec<f32>>) {
    let begun = cache.begin(namespace("model"), tokens.to_vec(), 0);
    let mut request = begun.expect("begin");
    let buffer = Arc::new(cache.lease(tokens.len()).expect("lease"));
    let hit = request.restore(&buffer).expect("restore").tokens.total();
    let rows = (0..hit).map(|token| row(&buffer, token)).collect();
    (request, buffer, rows)
}

/// Serves a prompt as an engine does; gives back the rows that were restored.
fn serve(cache: &PrefixCache, tokens: &[u32]) -> Vec<Vec<f32>> {
    let (mut request, buffer, rows) = restore(cache, tokens);
    compute(&buffer, tokens, rows.len());
    request.commit(tokens.to_vec(), &buffer).expect("commit");
    assert!(request.wait_committed(LONG));
    rows
}

/// Empties L1 (and, without it, L2), so that the next hit comes from below.
fn evict(cache: &PrefixCache) {
    cache.evict(usize::MAX).expect("evict");
    cache.flush(LONG).expect("flush");
}

fn refused(cache: &PrefixCache) -> u64 {
    cache.store().stats().expect("stats").refusals.decoded
}

#[test]
fn what_came_back_from_a_lossy_tier_is_never_encoded_again() {
    for policy in [WritePolicy::WriteThrough, WritePolicy::WriteBack] {
        let directory = tempfile::tempdir().expect("a directory");
        let (cache, disk) = cache(directory.path(), 0, policy);
        assert!(serve(&cache, &prompt(6)).is_empty());
        let exact = serve(&cache, &prompt(6));
        evict(&cache);
        assert_eq!(disk.usage().blocks, 6);
        // From disk into L1, and out of L1 again: the same bytes, once decoded.
        let decoded = serve(&cache, &prompt(6));
        assert_eq!(decoded.len(), 6 * BLOCK);
        assert!(decoded != exact);
        for (decoded, exact) in decoded.iter().flatten().zip(exact.iter().flatten()) {
            assert!((decoded - exact).abs() <= 1.0 / 127.0 / 2.0 * 1.001);
        }
        assert!(serve(&cache, &prompt(6)) == decoded);
        // While L3 has them, nothing is refused.
        assert_eq!(refused(&cache), 0);
        // L3 loses all. Neither going on with the prompt nor eviction writes what was decoded, or anything behind it.
        disk.clear(None).expect("cleared");
        assert!(serve(&cache, &prompt(9)) == decoded);
        evict(&cache);
        assert_eq!(disk.usage().blocks, 0, "{policy:?}");
        assert!(refused(&cache) > 0);
        // Computed anew, it is stored again.
        assert!(serve(&cache, &prompt(9)).is_empty());
        evict(&cache);
        assert_eq!(disk.usage().blocks, 9, "{policy:?}");
        assert!(serve(&cache, &prompt(6)) == decoded);
        cache.validate().expect("sound");
    }
}

#[test]
fn what_a_prefetch_decoded_stays_marked_in_l2() {
    let directory = tempfile::tempdir().expect("a directory");
    let (cache, disk) = cache(directory.path(), 4 << 20, WritePolicy::WriteThrough);
    serve(&cache, &prompt(6));
    let exact = serve(&cache, &prompt(6));
    cache.flush(LONG).expect("flush");
    // L2 takes what L1 gives up as it was, so a hit there is exact.
    evict(&cache);
    assert!(serve(&cache, &prompt(6)) == exact);
    evict(&cache);
    cache.store().evict_l2(LONG).expect("evicted");
    let ticket = cache
        .prefetch(namespace("model"), &prompt(6))
        .expect("a ticket");
    assert!(ticket.wait(LONG));
    assert_eq!(ticket.progress().loaded, 6);
    disk.clear(None).expect("cleared");
    let (request, _, decoded) = restore(&cache, &prompt(6));
    assert_eq!((request.found().l2, decoded.len()), (6 * BLOCK, 6 * BLOCK));
    assert!(decoded != exact);
    drop(request);
    cache.store().evict_l2(LONG).expect("evicted");
    cache.flush(LONG).expect("flush");
    assert_eq!((disk.usage().blocks, refused(&cache)), (0, 1));
}

#[test]
fn only_what_was_decoded_is_held_back() {
    // L1 has the first blocks exact; the rest comes from disk. Then L3 loses all.
    let directory = tempfile::tempdir().expect("a directory");
    let (cache, disk) = cache(directory.path(), 0, WritePolicy::WriteThrough);
    serve(&cache, &prompt(8));
    evict(&cache);
    disk.clear(None).expect("cleared");
    serve(&cache, &prompt(3));
    cache.flush(LONG).expect("flush");
    assert_eq!(disk.usage().blocks, 3);
    let (mut request, buffer, rows) = restore(&cache, &prompt(8));
    assert_eq!(rows.len(), 3 * BLOCK);
    compute(&buffer, &prompt(8), rows.len());
    request.commit(prompt(8), &buffer).expect("commit");
    drop((request, buffer));
    cache.flush(LONG).expect("flush");
    assert_eq!(disk.usage().blocks, 8);
    // Blocks 0..3 exact in L1, 3..8 from disk.
    cache.evict(5).expect("evict");
    serve(&cache, &prompt(8));
    disk.clear(None).expect("cleared");
    serve(&cache, &prompt(10));
    evict(&cache);
    assert_eq!(disk.usage().blocks, 3, "the exact ones");
    assert!(refused(&cache) > 0);
}
