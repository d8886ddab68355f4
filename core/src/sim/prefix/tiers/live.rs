//! A live store on disk and the simulated one, asked the same: what is found in which tier, and what goes, is the same, run by run.
//!
//! The live store writes what is queued for L3 at once, as the simulated one does, and L3 is as large as one tenant's quota: the
//! directory's own measure, where the tier's counts segment files and the index.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use proptest::prelude::*;

use super::tests::COSTS;
use super::{Names, Tiers, TiersConfig};
use crate::cache::{CacheConfig, PrefixCache};
use crate::config::{DiskConfig, StoreConfig, WritePolicy};
use crate::cost::RestoreMode;
use crate::key::{BlockKey, chain_keys};
use crate::layout::{LayerLayout, Layout};
use crate::policy::live_names;
use crate::run::Terms;
use crate::sim::capture::{Capture, Otherwise, Recorder, Replayed, replay, requests, rerun};
use crate::sim::trace::testing::prefixes;
use crate::sim::trace::{BlockTokens, Requests, TraceBuilder};
use crate::store::BlockStore;
use crate::tier::disk;
use crate::tier::memory::ARENA_PAGE;

const BLOCK: usize = 16;
const NAMESPACE: BlockKey = BlockKey([7; 32]);
const LONG: Duration = Duration::from_secs(60);

/// What a tier found for a request, in blocks.
type Hits = [u64; 3];

/// Sizes in blocks, and who chooses; one for L2 and L3, as a store's configuration has it in practice.
#[derive(Clone, Debug)]
struct Setup {
    sizes: [usize; 3],
    policies: [&'static str; 3],
    write: WritePolicy,
}

/// What came of it: hits by request, and the names of the victims of each tier.
#[derive(Debug, PartialEq)]
struct Outcome {
    hits: Vec<Hits>,
    victims: [Vec<u64>; 3],
}

/// A block of one layer, as large as a page of L2.
fn layout() -> Layout {
    let layer = LayerLayout {
        k_heads: 1,
        k_dim: 512,
        v_heads: 1,
        v_dim: 512,
    };
    let layout = Layout::new(&[layer], 4, BLOCK as u32).unwrap();
    assert_eq!(layout.block_bytes(), ARENA_PAGE);
    layout
}

/// The tokens of blocks: the first of each tells it from all others.
fn tokens(blocks: &[u64]) -> Vec<u32> {
    let tokens = blocks
        .iter()
        .flat_map(|&id| (0..BLOCK as u32).map(move |at| id as u32 * BLOCK as u32 + at));
    tokens.collect()
}

fn open(directory: &Path, setup: &Setup) -> (PrefixCache, Capture) {
    let bytes = |blocks: usize| (blocks * ARENA_PAGE) as u64;
    let [l1, l2, l3] = setup.sizes;
    let capture = Capture::start(directory.join("capture")).unwrap();
    let disk = DiskConfig {
        capacity: 256 << 20,
        free_reserve: 0,
        segment_bytes: 4 << 20,
        direct: false,
        policy: setup.policies[2].to_owned(),
        quota_per_tenant: Some(bytes(l3)),
        ..DiskConfig::new(directory.join("store"))
    };
    let config = StoreConfig {
        l2_bytes: bytes(l2),
        disk: (l3 > 0).then_some(disk),
        write_policy: setup.write,
        policy: setup.policies[1].to_owned(),
        io_workers: 1,
        capture: Some(capture.clone()),
        ..StoreConfig::default()
    };
    let store = BlockStore::open_at_once(&config).unwrap();
    let config = CacheConfig {
        block_bytes: bytes(l1),
        buffer_bytes: bytes(1000),
        residents: 0,
        policy: setup.policies[0].to_owned(),
    };
    let cache = PrefixCache::new(layout(), store, &config).unwrap();
    let terms = Terms {
        tenant: 7,
        ..Terms::default()
    };
    cache.set_terms(NAMESPACE, terms);
    (cache, capture)
}

/// Serves the prompts one after the other, each with one token more that is never cached.
fn lived(directory: &Path, prompts: &[Vec<u64>], setup: &Setup) -> (Outcome, Capture) {
    let (cache, capture) = open(directory, setup);
    let mut hits = Vec::new();
    for blocks in prompts {
        let whole = tokens(blocks);
        let prompt = [&whole[..], &[u32::MAX]].concat();
        let mut request = cache.begin(NAMESPACE, prompt.clone(), 0).unwrap();
        let found = request.found();
        hits.push([found.l1, found.l2, found.l3].map(|tokens| (tokens / BLOCK) as u64));
        let buffer = cache.lease(prompt.len()).unwrap();
        assert_eq!(request.restore(&buffer).unwrap().tokens, found);
        request.commit(whole, &buffer).unwrap();
        drop((request, buffer));
        cache.flush(LONG).unwrap();
    }
    cache.validate().unwrap();
    cache.store().validate().unwrap();
    // What closing writes back is no request's doing.
    capture.finish().unwrap();
    let replayed = replay(&directory.join("capture")).unwrap();
    let store = cache.store().clone();
    cache.close(LONG).unwrap();
    drop(cache);
    store.close(LONG).unwrap();
    let victims = |tier: u8, quota: bool| {
        let orders = replayed.iter();
        let orders = orders.filter(|order| order.tier == tier && (order.tenant != 0) == quota);
        orders.flat_map(|order| order.recorded.clone()).collect()
    };
    let victims = [victims(1, false), victims(2, false), victims(3, true)];
    (Outcome { hits, victims }, capture)
}

/// The same prompts, of blocks that are called as in the capture.
fn simulated(directory: &Path, capture: &Capture, prompts: &[Vec<u64>], setup: &Setup) -> Outcome {
    let mut builder = TraceBuilder::new();
    for blocks in prompts {
        let requests = Requests {
            at_ms: &[0.0],
            counts: &[blocks.len() as u32],
            ids: blocks,
            tokens: &[(blocks.len() * BLOCK) as u32],
            output_tokens: &[0],
            sessions: &[0],
            categories: &[0],
        };
        builder.push(&requests).unwrap();
    }
    let trace = builder.finish(BlockTokens::Fixed(BLOCK as u32)).unwrap();
    let trace = trace.prefix_ids();
    let mut names = [
        vec![0; trace.unique_blocks()],
        vec![0; trace.unique_blocks()],
    ];
    let captured = requests(&directory.join("capture")).unwrap();
    for ((request, captured), blocks) in trace.requests().zip(captured).zip(prompts) {
        let mut keys = Vec::new();
        chain_keys(NAMESPACE, &tokens(blocks), BLOCK, &mut keys);
        let captured = captured.unwrap().blocks;
        for ((&block, l1), key) in request.blocks.iter().zip(captured).zip(keys) {
            names[0][block as usize] = l1;
            names[1][block as usize] = capture.name(key.short()).0;
        }
    }
    let [l1, below] = names;
    let names = Names::Given { l1, below };
    let config = TiersConfig {
        capacities: setup.sizes.map(Some),
        policies: setup.policies.map(str::to_owned),
        write: setup.write,
        restore: RestoreMode::Always,
        costs: COSTS,
    };
    let chosen = Arc::<Mutex<Vec<Replayed>>>::default();
    let recorder = Recorder::Replay(Arc::clone(&chosen));
    let record = disk::record_bytes;
    let tiers = Tiers::with_records(&trace, &config, &names, Some(&recorder), record);
    let mut tiers = tiers.unwrap();
    let mut hits = Vec::new();
    for request in trace.requests() {
        let before = tiers.outcome.hits;
        tiers.serve(&trace, &request).unwrap();
        let now = tiers.outcome.hits;
        hits.push([0, 1, 2].map(|tier| now[tier] - before[tier]));
        tiers.below.validate().unwrap();
    }
    let mut victims = [Vec::new(), Vec::new(), Vec::new()];
    for order in std::mem::take(&mut *chosen.lock()) {
        victims[usize::from(order.tier) - 1] = order.victims;
    }
    Outcome { hits, victims }
}

fn setups() -> impl Strategy<Value = Setup> {
    let sizes = (1..9_usize, 0..8_usize, prop_oneof![Just(0), 3..16_usize]);
    let policy = || prop::sample::select(live_names().collect::<Vec<_>>());
    // The tree of a trace counts a request's use when its new blocks come in, a live one when the request begins, before it evicts:
    // what ages by uses, and what weighs the tokens of a block, may choose otherwise there.
    let in_l1 = prop::sample::select(vec!["lru", "slru", "sieve", "s3-fifo"]);
    let write = prop::sample::select(vec![
        WritePolicy::WriteThrough,
        WritePolicy::WriteThroughSelective,
        WritePolicy::WriteBack,
    ]);
    (sizes, (in_l1, policy(), policy()), write).prop_map(|((l1, l2, l3), policies, write)| Setup {
        sizes: [l1, l2, l3],
        policies: [policies.0, policies.1, policies.2],
        write,
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_simulated_store_finds_and_gives_up_what_a_live_one_does(
        prompts in prefixes(40),
        setup in setups(),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let (lived, capture) = lived(directory.path(), &prompts, &setup);
        let simulated = simulated(directory.path(), &capture, &prompts, &setup);
        prop_assert_eq!(lived.hits, simulated.hits);
        for tier in 0..3 {
            prop_assert_eq!(&lived.victims[tier], &simulated.victims[tier], "tier {}", tier + 1);
        }
    }

    /// L3 has no tenants here and counts no headers: it holds nothing or all.
    #[test]
    fn a_capture_tells_what_tiers_below_would_have_found(
        prompts in prefixes(40),
        live in setups(),
        other in setups(),
        all: bool,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let sizes = [other.sizes[0], other.sizes[1], if all { 1000 } else { 0 }];
        let policies = [other.policies[0]; 3];
        let other = Setup { sizes, policies, ..other };
        let [captured, again] = ["captured", "again"].map(|name| directory.path().join(name));
        for directory in [&captured, &again] {
            std::fs::create_dir(directory).unwrap();
        }
        lived(&captured, &prompts, &live);
        let (lived, _) = lived(&again, &prompts, &other);
        let otherwise = Otherwise {
            policy: Some(policies[0].to_owned()),
            l1_blocks: Some(sizes[0] as u64),
            l2_blocks: Some(sizes[1] as u64),
            l3_blocks: if all { None } else { Some(0) },
            write: other.write,
            ..Otherwise::default()
        };
        let rerun = rerun(&captured.join("capture"), &otherwise).unwrap();
        let found = [rerun[0].hits, rerun[0].l2_hits, rerun[0].l3_hits];
        let sums = [0, 1, 2].map(|tier| lived.hits.iter().map(|hits| hits[tier]).sum::<u64>());
        prop_assert_eq!(found, sums);
        prop_assert_eq!(rerun[0].victims.len(), lived.victims[0].len());
    }
}
