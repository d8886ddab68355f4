//! Restores under way, over an L3 that can be slow or broken.

mod shared;

use std::sync::Arc;
use std::time::Duration;

use crate::cache::{CacheConfig, Lease, PrefixCache, Request};
use crate::config::StoreConfig;
use crate::key::BlockKey;
use crate::layout::{LayerLayout, Layout, RunWindow};
use crate::store::{BlockStore, ReadFailed};
use crate::tier::testing::FakeDisk;

const LAYERS: usize = 6;
const BLOCK: usize = 16;
/// Bytes of a token in one layer: large, so that each layer is a job of its own.
const ROW: usize = 2 * 4 * 1024 * 4;
const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(30);
const NAMESPACE: BlockKey = BlockKey([7; 32]);

fn layout() -> Layout {
    let layer = LayerLayout {
        k_heads: 4,
        k_dim: 1024,
        v_heads: 4,
        v_dim: 1024,
    };
    Layout::new(&[layer; LAYERS], 4, BLOCK as u32).expect("a valid layout")
}

struct Fixture {
    disk: Arc<FakeDisk>,
    cache: PrefixCache,
}

impl Fixture {
    fn new(residents: usize) -> Self {
        let disk = FakeDisk::new(1 << 30);
        let config = StoreConfig {
            l2_bytes: 0,
            ..StoreConfig::default()
        };
        let store = BlockStore::with_l3(&config, Some(disk.clone())).expect("a store");
        let config = CacheConfig {
            block_bytes: (12 * BLOCK * ROW * LAYERS) as u64,
            buffer_bytes: (40 * BLOCK * ROW * LAYERS) as u64,
            residents,
            policy: "lru".to_owned(),
        };
        let cache = PrefixCache::new(layout(), store, &config).expect("a cache");
        Self { disk, cache }
    }

    fn begin(&self, tokens: usize) -> Request {
        self.cache
            .begin(NAMESPACE, ids(tokens), 0)
            .expect("a request")
    }

    fn lease(&self, tokens: usize) -> Lease {
        self.cache.lease(tokens).expect("room")
    }

    /// Commits `tokens` tokens with their pattern.
    fn commit(&self, tokens: usize, resident: bool) {
        let mut request = self.begin(tokens);
        let buffer = self.lease(tokens + BLOCK);
        request.restore(&buffer).expect("nothing fails");
        fill(&buffer, 0..tokens);
        let committed = if resident {
            request.commit_resident(ids(tokens), &buffer)
        } else {
            request.commit(ids(tokens), &buffer)
        };
        committed.expect("taken");
        drop((request, buffer));
        self.cache.flush(LONG).expect("written");
    }

    /// Two runs on disk only: the first two blocks, and the next two.
    fn on_disk() -> Self {
        let fixture = Self::new(0);
        fixture.commit(2 * BLOCK, false);
        fixture.commit(4 * BLOCK, false);
        fixture.cache.evict(usize::MAX).expect("nothing is locked");
        fixture
    }

    fn first_keys(&self) -> Vec<BlockKey> {
        self.cache.shared.keys(NAMESPACE, &ids(4 * BLOCK))
    }
}

fn ids(tokens: usize) -> Vec<u32> {
    (0..tokens as u32).collect()
}

/// The byte that all of a token's row in a layer has.
fn byte(layer: usize, token: usize) -> u8 {
    (1 + layer * 37 + token * 5) as u8
}

fn rows(buffer: &Lease, layer: usize, token: usize) -> Vec<(usize, usize)> {
    let window = RunWindow {
        run_tokens: 1,
        kept: 0..1,
        at: token,
    };
    let pieces = layout().buffer_pieces(buffer.layout(), layer, &window);
    pieces
        .iter()
        .map(|piece| (piece.offset, piece.len))
        .collect()
}

fn fill(buffer: &Lease, tokens: std::ops::Range<usize>) {
    for token in tokens {
        for layer in 0..LAYERS {
            for (offset, len) in rows(buffer, layer, token) {
                buffer
                    .region()
                    .write(offset, &vec![byte(layer, token); len]);
            }
        }
    }
}

fn stands(buffer: &Lease, layer: usize, tokens: std::ops::Range<usize>) -> bool {
    tokens.into_iter().all(|token| {
        rows(buffer, layer, token).into_iter().all(|(offset, len)| {
            let mut bytes = vec![0; len];
            buffer.region().read(offset, &mut bytes);
            bytes.iter().all(|found| *found == byte(layer, token))
        })
    })
}

#[test]
fn a_layer_is_there_when_all_runs_of_it_are() {
    let fixture = Fixture::on_disk();
    let mut request = fixture.begin(4 * BLOCK + 1);
    assert_eq!(request.found().l3, 4 * BLOCK);
    let buffer = fixture.lease(5 * BLOCK);
    fixture.disk.reads.shut();
    let mut restore = request.start_restore(&buffer).expect("begun");
    assert_eq!(restore.tokens().total(), 4 * BLOCK);
    assert_eq!(restore.wait_layer(0, SHORT), Err(ReadFailed::Timeout));
    fixture.disk.reads.open();
    for layer in 0..LAYERS {
        assert_eq!(restore.wait_layer(layer, LONG), Ok(()));
        assert!(stands(&buffer, layer, 0..4 * BLOCK), "layer {layer}");
    }
    let restored = restore.finish();
    assert_eq!(restored.tokens.l3, 4 * BLOCK);
    assert_eq!(restored.failure, None);
}

#[test]
fn l1_and_the_disk_make_one_prefix_layer_by_layer() {
    let fixture = Fixture::on_disk();
    fixture.commit(2 * BLOCK, false);
    let mut request = fixture.begin(4 * BLOCK + 1);
    assert_eq!(
        (request.found().l1, request.found().l3),
        (2 * BLOCK, 2 * BLOCK)
    );
    let buffer = fixture.lease(5 * BLOCK);
    let mut restore = request.start_restore(&buffer).expect("begun");
    // The blocks stay for the restore, whoever lets go of the request.
    drop(request);
    fixture.cache.evict(usize::MAX).expect("what is not locked");
    for layer in 0..LAYERS {
        assert_eq!(restore.wait_layer(layer, LONG), Ok(()));
        assert!(stands(&buffer, layer, 0..4 * BLOCK), "layer {layer}");
    }
    assert_eq!(restore.wait_layer(LAYERS + 3, LONG), Ok(()));
    assert_eq!(restore.finish().tokens.total(), 4 * BLOCK);
    fixture.cache.validate().expect("consistent");
    assert_eq!(fixture.cache.stats().l1.protected, 0);
}

#[test]
fn a_damaged_run_ends_the_waits_and_leaves_what_came_before_it() {
    for (run, left) in [(0, 0), (1, 2 * BLOCK)] {
        let fixture = Fixture::on_disk();
        fixture.disk.damage(&fixture.first_keys()[2 * run]);
        let mut request = fixture.begin(4 * BLOCK + 1);
        let buffer = fixture.lease(5 * BLOCK);
        let mut restore = request.start_restore(&buffer).expect("begun");
        let failed = (0..LAYERS).find_map(|layer| restore.wait_layer(layer, LONG).err());
        assert!(matches!(failed, Some(ReadFailed::Failed(_))), "{failed:?}");
        let restored = restore.finish();
        assert_eq!(restored.tokens.total(), left);
        assert!(restored.failure.is_some());
        assert!((0..LAYERS).all(|layer| stands(&buffer, layer, 0..left)));
    }
}

#[test]
fn a_dropped_restore_writes_no_more() {
    let fixture = Fixture::on_disk();
    let mut request = fixture.begin(4 * BLOCK + 1);
    let buffer = fixture.lease(5 * BLOCK);
    fixture.disk.reads.shut();
    let restore = request.start_restore(&buffer).expect("begun");
    while fixture.disk.reads.waiting() == 0 {
        std::thread::yield_now();
    }
    let dropping = std::thread::spawn(move || drop(restore));
    std::thread::sleep(SHORT);
    assert!(!dropping.is_finished(), "jobs under way are waited for");
    fixture.disk.reads.open();
    dropping.join().expect("dropped");
    fill(&buffer, 0..4 * BLOCK);
    assert_eq!(Arc::strong_count(&buffer), 1);
    assert!((0..LAYERS).all(|layer| stands(&buffer, layer, 0..4 * BLOCK)));
}

#[test]
fn a_resident_is_taken_once_and_only_while_it_is_known() {
    let fixture = Fixture::new(2);
    fixture.commit(4 * BLOCK, true);
    assert_eq!(fixture.cache.stats().residents.sequences, 1);
    let mut first = fixture.begin(4 * BLOCK + 5);
    let mut second = fixture.begin(4 * BLOCK + 5);
    let taken = first.take_resident(6 * BLOCK, true).expect("open");
    assert!(taken.is_none(), "it has no room for so many");
    let (buffer, tokens) = first
        .take_resident(5 * BLOCK, true)
        .expect("open")
        .expect("it is there");
    assert_eq!(tokens, 4 * BLOCK);
    assert!((0..LAYERS).all(|layer| stands(&buffer, layer, 0..4 * BLOCK)));
    assert!(second.take_resident(1, true).expect("open").is_none());
    // Untouched, it is resident again; forgotten, it is not.
    drop(buffer);
    let (buffer, _) = second.take_resident(1, true).expect("open").expect("again");
    buffer.forget();
    drop(buffer);
    assert_eq!(fixture.cache.stats().residents.sequences, 0);
}

/// A request of the first part of a longer prompt makes that part newer, and not what follows it.
#[test]
fn what_a_request_does_not_use_ages_on() {
    let fixture = Fixture::new(0);
    let commit = |tokens: Vec<u32>| {
        let mut request = fixture.cache.begin(NAMESPACE, tokens.clone(), 0);
        let request = request.as_mut().expect("a request");
        let buffer = fixture.lease(tokens.len());
        request.restore(&buffer).expect("nothing fails");
        request.commit(tokens, &buffer).expect("taken");
        assert!(request.wait_committed(LONG));
    };
    let (long, other) = (ids(6 * BLOCK), (1000..1096).collect::<Vec<_>>());
    commit(long.clone());
    commit(other.clone());
    drop(fixture.begin(2 * BLOCK + 1));
    fixture.cache.evict(4).expect("nothing is locked");
    let in_l1 = |tokens: &[u32]| {
        let found = fixture.cache.explain(NAMESPACE, tokens);
        found.expect("open").l1.matched / BLOCK
    };
    assert_eq!((in_l1(&long), in_l1(&other)), (2, 6));
    // The same for a prefetch, which is a use of what it finds in L1.
    commit(long.clone());
    commit(other.clone());
    let prefetched = fixture.cache.prefetch(NAMESPACE, &long[..=2 * BLOCK]);
    drop(prefetched.expect("open"));
    fixture.cache.evict(4).expect("nothing is locked");
    assert_eq!((in_l1(&long), in_l1(&other)), (2, 6));
}
