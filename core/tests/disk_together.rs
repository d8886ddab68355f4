//! Records that lie near each other are read by one operation, and each is still verified for itself.
#![expect(clippy::expect_used, reason = "helpers of tests stop the test")]

mod disk_support;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use disk_support::faulty::{Fault, FaultyFiles, Operation};
use disk_support::{cases, header, namespace, slice_bytes, source};
use kvlab_core::config::{DiskConfig, StoreConfig};
use kvlab_core::key::{BlockKey, chain_key};
use kvlab_core::memory::{Piece, Region, WritableBuffer};
use kvlab_core::run::RunTarget;
use kvlab_core::store::{BlockStore, Lookup, ReadRequest};
use kvlab_core::tier::{Put, Tier};
use proptest::prelude::*;

const LONG: Duration = Duration::from_secs(60);
const BLOCK: usize = 64 << 10;

fn key(number: u32) -> BlockKey {
    chain_key(&namespace("together"), &[number])
}

fn bytes(number: u32, len: usize) -> Vec<u8> {
    let bytes =
        (0..len).map(|at| (at as u32).wrapping_mul(2_654_435_761).wrapping_add(number) >> 7);
    bytes.map(|byte| byte as u8).collect()
}

/// A store with a counted disk and, if asked for, an L2.
fn open(path: &Path, l2_bytes: u64) -> (BlockStore, Arc<FaultyFiles>) {
    let files = FaultyFiles::new(1);
    let disk = DiskConfig {
        files: Arc::clone(&files) as _,
        ..disk_support::config(path)
    };
    let config = StoreConfig {
        l2_bytes,
        disk: Some(disk),
        io_workers: 3,
        ..StoreConfig::default()
    };
    let store = BlockStore::open(&config).expect("the store opens");
    (store, files)
}

/// Blocks of 64 KiB, in L3 only.
fn fill(store: &BlockStore, count: u32) -> Vec<BlockKey> {
    for number in 0..count {
        let put = store.put_bytes(key(number), None, &bytes(number, BLOCK));
        assert!(matches!(put.expect("valid"), Put::Queued | Put::Stored));
    }
    store.flush(LONG).expect("flush");
    store.evict_l2(LONG).expect("evict");
    (0..count).map(key).collect()
}

/// Changes one byte of a record's payload on disk.
fn damage(store: &BlockStore, key: &BlockKey, at: u64) {
    let disk = store.disk().expect("a disk");
    let (run, _) = disk.find(key).expect("there");
    let span = run.span().expect("a place");
    let payload = run.header().payload_bytes();
    // Slices of these runs are whole pages but for the last one's end.
    let end = span.start + (span.end - span.start) - payload.div_ceil(4096) * 4096;
    let name = format!("{:08x}.seg", span.medium);
    let files = disk.segment_files();
    let file = files.iter().find(|file| file.ends_with(&name));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(file.expect("a file"));
    let (file, offset) = (file.expect("open"), end + at % payload);
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("read");
    file.write_all_at(&[!byte[0]], offset).expect("written");
    file.sync_all().expect("synced");
}

#[test]
fn many_small_blocks_take_few_reads() {
    for l2_bytes in [0, 16 << 20] {
        let directory = tempfile::tempdir().expect("a directory");
        let (store, files) = open(directory.path(), l2_bytes);
        let keys = fill(&store, 64);
        let reads = |work: &dyn Fn()| {
            let before = files.calls(Operation::Read);
            work();
            store.evict_l2(LONG).expect("evict");
            files.calls(Operation::Read) - before
        };
        let all = |found: Vec<Option<Vec<u8>>>| {
            for (number, block) in found.into_iter().enumerate() {
                assert!(block == Some(bytes(number as u32, BLOCK)), "block {number}");
            }
        };
        let one_by_one = reads(&|| {
            let each = keys.iter().map(|key| store.get_bytes(key).expect("open"));
            all(each.collect());
        });
        assert_eq!(one_by_one, 64);
        // 68 KiB each, at most 1.5 MiB a read, and segments of 1 MiB end in between.
        let together = reads(&|| all(store.get_many(&keys).expect("open")));
        assert!(together <= 8, "{together} reads");
        // The order in which they are asked for does not matter.
        let reversed = reads(&|| {
            let keys = keys.iter().rev().copied().collect::<Vec<_>>();
            all(store
                .get_many(&keys)
                .expect("open")
                .into_iter()
                .rev()
                .collect());
        });
        assert_eq!(reversed, together);
        for aligned in [true, false] {
            let into = reads(&|| {
                let mut memory = vec![0; 66 * BLOCK];
                let start = memory.as_ptr().align_offset(4096) + usize::from(!aligned);
                let buffers = memory[start..].chunks_mut(BLOCK).take(64);
                let mut buffers = buffers.map(WritableBuffer::from).collect::<Vec<_>>();
                let found = store.get_into(&keys, &mut buffers).expect("open");
                assert_eq!(found, vec![Some(BLOCK); 64]);
                let blocks = memory[start..].chunks(BLOCK).take(64);
                all(blocks.map(|block| Some(block.to_vec())).collect());
            });
            assert_eq!(into, together);
        }
        let stats = store.stats().expect("stats").l3;
        assert!(stats.joined_reads >= 4 * 60, "{stats:?}");
        if l2_bytes > 0 {
            let prefetched = reads(&|| {
                assert!(store.prefetch(&keys).expect("prefetch").wait(LONG));
                let found = store.lookup(&keys).expect("lookup");
                assert!(found.iter().all(|found| matches!(found, Lookup::Hit(_))));
                all(store.get_many(&keys).expect("open"));
            });
            assert!(prefetched <= 12, "{prefetched} reads");
        }
        store.validate().expect("sound");
    }
}

#[test]
fn a_bad_neighbour_spoils_nobody_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let (store, files) = open(directory.path(), 0);
    let keys = fill(&store, 14);
    damage(&store, &keys[3], 77);
    for broken in [false, true] {
        if broken {
            // The next read fails: each block is then read for itself.
            files.plan(|plan| {
                plan.armed = true;
                plan.next.insert(Operation::Read, (1, Fault::Broken));
            });
        }
        let found = store.get_many(&keys).expect("open");
        for (number, block) in found.into_iter().enumerate() {
            let expected = (number != 3).then(|| bytes(number as u32, BLOCK));
            assert!(block == expected, "block {number}");
        }
        assert_eq!(store.lookup(&keys[3..4]).expect("lookup"), [Lookup::Miss]);
        let dropped = store.disk().expect("a disk").stats().dropped;
        assert_eq!((dropped.corrupt, dropped.io), (1, 0));
    }
}

#[test]
fn short_runs_of_a_chain_are_read_together() {
    let directory = tempfile::tempdir().expect("a directory");
    let (store, files) = open(directory.path(), 0);
    let space = namespace("chain");
    let mut runs = Vec::new();
    let mut parent = space;
    for seed in 0..12 {
        let run = header(space, parent, seed, 2, &[5000, 4096, 30_000]);
        parent = run.keys[1];
        let put = store.write_through(run.clone(), source(&run));
        assert_eq!(put.expect("valid"), Put::Queued);
        runs.push(run);
    }
    store.flush(LONG).expect("flush");
    let keys = runs
        .iter()
        .flat_map(|run| run.keys.to_vec())
        .collect::<Vec<_>>();
    let region = Arc::new(Region::new(12 * 12 * 4096).expect("memory"));
    let target = |index: usize| {
        let mut at = index * 12 * 4096;
        let slices = runs[index].slices.iter().map(|&len| {
            let offset = at;
            at += len as usize;
            vec![Piece {
                spare: false,
                offset,
                len: len as usize,
            }]
        });
        RunTarget {
            region: Arc::clone(&region),
            lease: None,
            slices: slices.collect(),
        }
    };
    for damaged in [false, true] {
        if damaged {
            damage(&store, &keys[10], 1);
        }
        let steps = store.plan(&keys).expect("plan").steps;
        let requests = steps
            .into_iter()
            .enumerate()
            .map(|(index, step)| ReadRequest {
                step,
                target: target(index),
            });
        let before = files.calls(Operation::Read);
        let outcome = store.read(requests.collect()).expect("read").wait();
        assert_eq!(files.calls(Operation::Read) - before, 1);
        assert_eq!(outcome.steps_ok, if damaged { 5 } else { 12 });
        for (index, run) in runs.iter().enumerate().take(outcome.steps_ok) {
            for (slice, pieces) in target(index).slices.iter().enumerate() {
                let mut found = vec![0; pieces[0].len];
                region.read(pieces[0].offset, &mut found);
                assert!(
                    found == slice_bytes(run, slice),
                    "slice {slice} of run {index}"
                );
            }
        }
    }
}

#[test]
fn bad_buffers_are_refused_before_anything_is_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let (store, files) = open(directory.path(), 0);
    let keys = fill(&store, 2);
    let before = files.calls(Operation::Read);
    let (mut long, mut short) = (vec![7; BLOCK], vec![7; BLOCK - 1]);
    let error = store.get_into(&keys, &mut [(&mut long[..]).into()]);
    assert!(
        error
            .expect_err("one buffer")
            .to_string()
            .contains("2 keys and 1 buffers")
    );
    let mut buffers = [(&mut long[..]).into(), (&mut short[..]).into()];
    let error = store.get_into(&keys, &mut buffers).expect_err("too short");
    assert!(
        error.to_string().contains("65535 bytes, the block 65536"),
        "{error}"
    );
    assert_eq!(files.calls(Operation::Read), before);
    assert!(long.iter().all(|byte| *byte == 7));
    assert!(store.get_many(&[]).expect("open").is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Put(u32, usize),
    Remove(Vec<u32>),
    Damage(u32, u64),
    Evict(u64),
    Get(Vec<u32>),
    Into(Vec<u32>, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let number = || 0..24_u32;
    let numbers = || prop::collection::vec(number(), 0..30);
    // Blocks of whole pages, and others.
    let len = prop_oneof![
        (1..20_usize).prop_map(|pages| pages * 4096),
        1..80_000_usize
    ];
    let step = prop_oneof![
        6 => (number(), len).prop_map(|(number, len)| Step::Put(number, len)),
        1 => prop::collection::vec(number(), 1..4).prop_map(Step::Remove),
        1 => (number(), any::<u64>()).prop_map(|(number, at)| Step::Damage(number, at)),
        1 => (0..200_000_u64).prop_map(Step::Evict),
        2 => numbers().prop_map(Step::Get),
        2 => (numbers(), 0..3_usize).prop_map(|(numbers, shift)| Step::Into(numbers, shift)),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(cases(24))]
    #[test]
    fn batches_agree_with_a_model(l2 in prop_oneof![Just(0_u64), Just(1 << 20)], steps in steps()) {
        let directory = tempfile::tempdir().expect("a directory");
        let (store, _) = open(directory.path(), l2);
        // What is there, and whether it is damaged on disk.
        let mut model = BTreeMap::<u32, (usize, bool)>::new();
        let check = |model: &mut BTreeMap<u32, (usize, bool)>, numbers: &[u32], found: Vec<Option<Vec<u8>>>| {
            prop_assert_eq!(found.len(), numbers.len());
            for (number, block) in numbers.iter().zip(found) {
                let expected = model.get(number).map(|(len, _)| bytes(*number, *len));
                let damaged = model.get(number).is_some_and(|(_, damaged)| *damaged);
                if damaged {
                    prop_assert!(block.is_none(), "block {} is damaged", number);
                } else {
                    prop_assert!(block == expected, "block {}", number);
                }
            }
            // What was found to be damaged is gone.
            for number in numbers {
                if model.get(number).is_some_and(|(_, damaged)| *damaged) {
                    model.remove(number);
                }
            }
            Ok(())
        };
        for step in steps {
            match step {
                Step::Put(number, len) => {
                    store.put_bytes(key(number), None, &bytes(number, len)).expect("valid");
                    store.flush(LONG).expect("flush");
                    store.evict_l2(LONG).expect("evict");
                    model.entry(number).or_insert((len, false));
                }
                Step::Remove(numbers) => {
                    let keys = numbers.iter().map(|number| key(*number)).collect::<Vec<_>>();
                    store.remove(&keys).expect("open");
                    model.retain(|number, _| !numbers.contains(number));
                }
                Step::Damage(number, at) => {
                    if let Some((_, damaged @ false)) = model.get_mut(&number) {
                        store.evict_l2(LONG).expect("evict");
                        damage(&store, &key(number), at);
                        *damaged = true;
                    }
                }
                Step::Evict(bytes) => {
                    store.evict_l2(LONG).expect("evict");
                    store.disk().expect("a disk").evict(bytes);
                    model.retain(|number, _| store.contains(&key(*number)).expect("open"));
                }
                Step::Get(numbers) => {
                    let keys = numbers.iter().map(|number| key(*number)).collect::<Vec<_>>();
                    let found = store.get_many(&keys).expect("open");
                    check(&mut model, &numbers, found)?;
                }
                Step::Into(numbers, shift) => {
                    let keys = numbers.iter().map(|number| key(*number)).collect::<Vec<_>>();
                    let mut memory = vec![vec![0; 90_000]; numbers.len()];
                    let mut buffers = memory
                        .iter_mut()
                        .map(|bytes| (&mut bytes[shift * 1000..]).into())
                        .collect::<Vec<_>>();
                    let found = store.get_into(&keys, &mut buffers).expect("open");
                    let found = found.into_iter().zip(&memory);
                    let found = found.map(|(len, bytes)| {
                        len.map(|len| bytes[shift * 1000..shift * 1000 + len].to_vec())
                    });
                    let found = found.collect();
                    check(&mut model, &numbers, found)?;
                }
            }
        }
        store.validate().expect("sound");
        store.close(LONG).expect("closed");
    }
}
