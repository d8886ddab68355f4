//! The block store on a real cache directory.
#![expect(clippy::expect_used, reason = "helpers of tests stop the test")]

mod disk_support;

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use disk_support::{header, namespace, slice_bytes, source};
use kvlab_core::config::{DiskConfig, StoreConfig, WritePolicy};
use kvlab_core::key::BlockKey;
use kvlab_core::memory::{Piece, Region};
use kvlab_core::run::{RunHeader, RunTarget};
use kvlab_core::store::{BlockStore, Lookup, ReadFailed, ReadOutcome, ReadRequest};
use kvlab_core::tier::{Put, ReadFailure, TierId};
use proptest::prelude::*;

const LONG: Duration = Duration::from_secs(60);

fn config(path: &Path) -> StoreConfig {
    StoreConfig {
        l2_bytes: 4 << 20,
        disk: Some(disk_support::config(path)),
        ..StoreConfig::default()
    }
}

fn open(config: &StoreConfig) -> BlockStore {
    BlockStore::open(config).expect("the store opens")
}

/// A chain of runs of two blocks each.
fn runs(name: &str, seed: u32, count: usize, slices: &[u32]) -> Vec<RunHeader> {
    let space = namespace(name);
    let mut parent = space;
    (0..count)
        .map(|index| {
            let run = header(space, parent, seed + index as u32, 2, slices);
            parent = *run.keys.last().expect("a run has keys");
            run
        })
        .collect()
}

fn keys(runs: &[RunHeader]) -> Vec<BlockKey> {
    runs.iter().flat_map(|run| run.keys.to_vec()).collect()
}

/// Room for a run, its slices side by side.
fn target(header: &RunHeader) -> RunTarget {
    let region = Region::new(header.payload_bytes() as usize).expect("memory");
    let mut offset = 0;
    let slices = header.slices.iter().map(|&len| {
        let len = len as usize;
        let piece = Piece {
            spare: false,
            offset,
            len,
        };
        offset += len;
        vec![piece]
    });
    RunTarget {
        slices: slices.collect(),
        region: Arc::new(region),
        lease: None,
    }
}

fn whole(header: &RunHeader, target: &RunTarget) -> bool {
    (0..header.slices.len()).all(|slice| {
        let mut bytes = Vec::new();
        for piece in &target.slices[slice] {
            let start = bytes.len();
            bytes.resize(start + piece.len, 0);
            target.region.read(piece.offset, &mut bytes[start..]);
        }
        bytes == slice_bytes(header, slice)
    })
}

fn read(store: &BlockStore, keys: &[BlockKey]) -> ReadOutcome {
    let plan = store.plan(keys).expect("plan");
    let mut targets = Vec::new();
    let requests = plan.steps.into_iter().map(|step| {
        let header = step.run.header().clone();
        let target = target(&header);
        targets.push((header, target.clone()));
        ReadRequest { step, target }
    });
    let ticket = store.read(requests.collect()).expect("read");
    let outcome = ticket.wait();
    for (header, target) in &targets[..outcome.steps_ok] {
        assert!(whole(header, target), "wrong bytes");
    }
    outcome
}

#[test]
fn a_prefix_goes_down_survives_a_restart_and_comes_up() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = config(directory.path());
    let runs = runs("model", 1, 6, &[70_000, 4096, 12_345]);
    let keys = keys(&runs);
    {
        let store = open(&config);
        assert!(store.recovery().is_some());
        for run in &runs {
            let put = store
                .write_through(run.clone(), source(run))
                .expect("write");
            assert_eq!(put, Put::Queued);
            assert_eq!(
                store.demote(run.clone(), source(run)).expect("demote"),
                Put::Stored
            );
        }
        store.flush(LONG).expect("flush");
        assert_eq!(read(&store, &keys).l2.blocks, 12);
        assert_eq!(store.evict_l2(LONG).expect("evict"), 6);
        assert_eq!(read(&store, &keys).l3.blocks, 12);
        assert_eq!(
            store.stats().expect("stats").l3.writes,
            6,
            "nothing is written twice"
        );
        assert!(
            BlockStore::open(&config).is_err(),
            "the directory is in use"
        );
        store.close(LONG).expect("close");
    }
    let store = open(&config);
    assert_eq!(
        store.lookup(&keys).expect("lookup"),
        [Lookup::Hit(TierId::L3); 12]
    );
    let ticket = store.prefetch(&keys).expect("prefetch");
    assert!(ticket.wait(LONG));
    assert_eq!(ticket.progress().loaded, 12);
    let outcome = read(&store, &keys);
    assert_eq!(
        (outcome.l2.blocks, outcome.l3.blocks, outcome.steps_ok),
        (12, 0, 6)
    );
    assert_eq!(store.clear(Some(&namespace("model"))).expect("clear"), 12);
    drop(store);
    let store = open(&config);
    assert_eq!(store.lookup(&keys).expect("lookup"), [Lookup::Miss; 12]);
    store.validate().expect("sound");
}

/// What `flush` acknowledged is there after a kill, whatever was queued or in memory then, and whatever is under way now.
#[test]
fn what_a_flush_acknowledged_survives_a_kill() {
    for write_policy in [WritePolicy::WriteThrough, WritePolicy::WriteBack] {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, image) = (
            directory.path().join("store"),
            directory.path().join("image"),
        );
        let config = StoreConfig {
            l2_bytes: 512 << 10,
            write_policy,
            ..config(&path)
        };
        let store = open(&config);
        let chains = [1, 2, 3].map(|chain| runs("model", 100 * chain, 8, &[70_000, 4096, 12_345]));
        let mut acknowledged = Vec::new();
        for (number, chain) in chains.iter().enumerate() {
            for run in chain {
                // Some are evicted from memory to make room for others.
                store.demote(run.clone(), source(run)).expect("demote");
                store
                    .write_through(run.clone(), source(run))
                    .expect("write");
            }
            if number < 2 {
                store.flush(LONG).expect("flush");
                acknowledged.push(keys(chain));
            }
            if number == 1 {
                // Deleted behind the flush: it does not come back either.
                store.remove(&chains[0][4].keys).expect("remove");
                acknowledged[0].truncate(8);
            }
            disk_support::crash_image(&path, &image);
            let left = open(&StoreConfig {
                disk: Some(disk_support::config(&image)),
                ..config.clone()
            });
            assert!(left.recovery().is_some_and(|report| !report.clean));
            for keys in &acknowledged {
                let outcome = read(&left, keys);
                assert_eq!(
                    (outcome.l3.blocks, outcome.failure),
                    (keys.len(), None),
                    "{write_policy:?}"
                );
            }
            if number > 0 {
                assert_eq!(
                    left.lookup(&chains[0][4].keys).expect("lookup"),
                    [Lookup::Miss; 2]
                );
            }
            drop(left);
            std::fs::remove_dir_all(&image).expect("removed");
        }
    }
}

#[test]
fn a_damaged_file_gives_the_leading_steps_and_then_misses() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = StoreConfig {
        l2_bytes: 0,
        ..config(directory.path())
    };
    let store = open(&config);
    let runs = runs("model", 1, 5, &[100_000; 3]);
    for run in &runs {
        store
            .write_through(run.clone(), source(run))
            .expect("write");
    }
    store.flush(LONG).expect("flush");
    // One bit of the last slice of the third run.
    let bytes = slice_bytes(&runs[2], 2);
    let disk = store.disk().expect("a disk");
    let damaged = disk.segment_files().iter().any(|path| {
        let content = std::fs::read(path).expect("readable");
        let found = content
            .windows(64)
            .position(|window| *window == bytes[..64]);
        found.is_some_and(|at| {
            let file = OpenOptions::new().write(true).open(path).expect("writable");
            file.write_all_at(&[bytes[9] ^ 1], at as u64 + 9)
                .expect("written");
            true
        })
    });
    assert!(damaged);
    disk.drop_page_cache().expect("dropped");
    let keys = keys(&runs);
    let outcome = read(&store, &keys);
    assert_eq!(outcome.steps_ok, 2);
    assert_eq!(
        outcome.failure,
        Some(ReadFailed::Failed(ReadFailure::Corrupt))
    );
    let outcome = read(&store, &keys);
    assert_eq!(
        (outcome.steps_ok, outcome.failure),
        (2, None),
        "a miss from now on"
    );
    assert_eq!(store.stats().expect("stats").l3.corrupt, 1);
    assert_eq!(
        store.lookup(&keys).expect("lookup")[4..6],
        [Lookup::Miss; 2]
    );
}

#[derive(Clone, Debug)]
enum Op {
    Write(u32, usize),
    Demote(u32, usize),
    Read(u32),
    Prefetch(u32),
    Bytes(u8),
    Remove(u32, usize),
    Clear,
    EvictMemory,
    EvictDisk,
    Reopen,
}

fn ops() -> impl Strategy<Value = Op> {
    let run = (0..3_u32, 0..5_usize);
    prop_oneof![
        6 => run.clone().prop_map(|(chain, run)| Op::Write(chain, run)),
        6 => run.clone().prop_map(|(chain, run)| Op::Demote(chain, run)),
        4 => (0..3_u32).prop_map(Op::Read),
        2 => (0..3_u32).prop_map(Op::Prefetch),
        3 => (0..6_u8).prop_map(Op::Bytes),
        1 => run.prop_map(|(chain, run)| Op::Remove(chain, run)),
        1 => Just(Op::Clear),
        1 => Just(Op::EvictMemory),
        1 => Just(Op::EvictDisk),
        1 => Just(Op::Reopen),
    ]
}

proptest! {
    #![proptest_config(disk_support::cases(24))]

    #[test]
    fn bytes_equal_or_miss(script in prop::collection::vec(ops(), 1..40), back in any::<bool>()) {
        let directory = tempfile::tempdir().expect("a directory");
        let config = StoreConfig {
            l2_bytes: 256 << 10,
            disk: Some(DiskConfig { capacity: 2 << 20, ..disk_support::config(directory.path()) }),
            write_policy: if back { WritePolicy::WriteBack } else { WritePolicy::WriteThrough },
            ..StoreConfig::default()
        };
        let chains = (0..3)
            .map(|chain| runs("model", 100 * chain, 5, &[30_000, 20_000 + chain, 60_000]))
            .collect::<Vec<_>>();
        let mut store = open(&config);
        let mut opaque: HashMap<u8, Vec<u8>> = HashMap::new();
        for op in script {
            match op {
                Op::Write(chain, run) => {
                    let run = &chains[chain as usize][run];
                    store.write_through(run.clone(), source(run)).expect("write");
                }
                Op::Demote(chain, run) => {
                    let run = &chains[chain as usize][run];
                    store.demote(run.clone(), source(run)).expect("demote");
                }
                Op::Read(chain) => {
                    let outcome = read(&store, &keys(&chains[chain as usize]));
                    assert_eq!(outcome.failure, None, "nothing is damaged");
                }
                Op::Prefetch(chain) => {
                    let ticket = store.prefetch(&keys(&chains[chain as usize])).expect("prefetch");
                    assert!(ticket.wait(LONG));
                    ticket.cancel();
                }
                Op::Bytes(key) => {
                    let name = BlockKey([key + 1; 32]);
                    let bytes = vec![key; 1000 * (usize::from(key) + 1)];
                    match store.get_bytes(&name).expect("get") {
                        Some(found) => assert_eq!(Some(&found), opaque.get(&key)),
                        None => drop(store.put_bytes(name, None, &bytes).expect("put")),
                    }
                    opaque.insert(key, bytes);
                }
                Op::Remove(chain, run) => {
                    let run = &chains[chain as usize][run];
                    store.remove(&run.keys).expect("remove");
                    assert_eq!(store.lookup(&run.keys).expect("lookup"), [Lookup::Miss; 2]);
                }
                Op::Clear => {
                    store.clear(Some(&namespace("model"))).expect("clear");
                    for chain in &chains {
                        assert_eq!(store.lookup(&keys(chain)).expect("lookup"), [Lookup::Miss; 10]);
                    }
                }
                Op::EvictMemory => drop(store.evict_l2(LONG).expect("evict")),
                Op::EvictDisk => drop(store.disk().expect("a disk").evict(500_000)),
                Op::Reopen => {
                    store.close(LONG).expect("close");
                    drop(store);
                    store = open(&config);
                }
            }
            store.validate().expect("sound");
            store.disk().expect("a disk").validate().expect("sound");
        }
        for chain in &chains {
            assert_eq!(read(&store, &keys(chain)).failure, None);
        }
    }
}
