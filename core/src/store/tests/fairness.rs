//! Huge requests beside small ones: how many jobs of the one come before those of the other.

use super::{LONG, config, open, read, requests, until, write, write_all};
use crate::config::StoreConfig;
use crate::key::BlockKey;
use crate::run::RunHeader;
use crate::store::BlockStore;
use crate::tier::testing::{FakeDisk, chain, header, namespace};
use crate::tier::{Put, Refusal};

/// A chain of runs of one block and `len` bytes each.
fn runs(branch: u32, blocks: usize, len: u32) -> (Vec<BlockKey>, Vec<RunHeader>) {
    let space = namespace(0);
    let keys = chain(&space, branch, 0, blocks);
    let runs = (0..blocks).map(|block| header(&space, &keys, block..block + 1, &[len]));
    let runs = runs.collect();
    (keys, runs)
}

fn queue_all(store: &BlockStore, runs: &[RunHeader]) {
    for run in runs {
        assert_eq!(write(store, run), Put::Queued);
    }
}

#[test]
fn a_short_chain_is_written_among_the_first_runs_of_a_long_one() {
    let disk = FakeDisk::new(1 << 30);
    let store = open(&config(0), &disk);
    let (_, long) = runs(1, 60, 1000);
    let (short_keys, short) = runs(2, 3, 1000);
    disk.writes.shut();
    queue_all(&store, &long);
    until("the first write", || disk.writes.waiting() == 1);
    queue_all(&store, &short);
    store.validate().expect("sound");
    disk.writes.open();
    store.flush(LONG).expect("flush");
    let order = disk.stored();
    assert_eq!(order.len(), 63);
    let last = order.iter().position(|key| *key == short_keys[2]);
    assert!(
        last.is_some_and(|last| last <= 8),
        "the last run of three came {last:?}th"
    );
    let of_long = order.iter().filter(|key| !short_keys.contains(key));
    let in_order = long.iter().map(|run| &run.keys[0]);
    assert!(of_long.eq(in_order), "parents go before children");
}

#[test]
fn branches_of_one_chain_take_turns_too() {
    let disk = FakeDisk::new(1 << 30);
    let store = open(&config(0), &disk);
    let space = namespace(0);
    let (long, short) = (chain(&space, 1, 2, 40), chain(&space, 2, 2, 3));
    assert_eq!(long[..2], short[..2], "they begin alike");
    let one = |keys: &[BlockKey], block| header(&space, keys, block..block + 1, &[1000]);
    disk.writes.shut();
    for block in 0..40 {
        assert_eq!(write(&store, &one(&long, block)), Put::Queued);
    }
    until("the first write", || disk.writes.waiting() == 1);
    assert_eq!(write(&store, &one(&short, 2)), Put::Queued);
    disk.writes.open();
    store.flush(LONG).expect("flush");
    let place = disk.stored().iter().position(|key| *key == short[2]);
    assert!(
        place.is_some_and(|place| place <= 5),
        "the branch came {place:?}th"
    );
}

#[test]
fn a_long_chain_leaves_room_in_the_queue() {
    let disk = FakeDisk::new(1 << 30);
    let bounded = StoreConfig {
        write_queue_bytes: 80_000,
        ..config(0)
    };
    let store = open(&bounded, &disk);
    let (_, long) = runs(1, 100, 1000);
    disk.writes.shut();
    let accepted = long
        .iter()
        .take_while(|run| write(&store, run) == Put::Queued);
    assert_eq!(accepted.count(), 70, "seven eighths");
    let (_, short) = runs(2, 6, 1000);
    queue_all(&store, &short);
    let (_, other) = runs(3, 6, 1000);
    queue_all(&store, &other[..4]);
    assert_eq!(
        write(&store, &other[4]),
        Put::Refused(Refusal::QueueFull),
        "the bound holds for all of them together"
    );
    assert_eq!(store.stats().expect("stats").write_queue_bytes, 80_000);
    store.validate().expect("sound");
    disk.writes.open();
    store.flush(LONG).expect("flush");
    assert_eq!(disk.stored().len(), 80);
    let (_, alone) = runs(4, 1, 80_000);
    assert_eq!(
        write(&store, &alone[0]),
        Put::Queued,
        "a run that is alone may fill the queue"
    );
    store.flush(LONG).expect("flush");
    store.validate().expect("sound");
}

#[test]
fn what_hangs_from_a_run_that_was_dropped_does_not_wait_for_ever() {
    let disk = FakeDisk::new(1 << 30);
    let store = open(&config(0), &disk);
    let (keys, chain) = runs(1, 6, 1000);
    disk.writes.shut();
    queue_all(&store, &chain);
    until("the first write", || disk.writes.waiting() == 1);
    assert_eq!(store.remove(&keys[3..4]).expect("remove"), 1);
    store.validate().expect("sound");
    disk.writes.open();
    store.flush(LONG).expect("flush");
    assert_eq!(disk.stored(), keys[..3]);
    let refusals = store.stats().expect("stats").refusals;
    assert_eq!(refusals.parent_missing, 2, "each of them is counted");
}

#[test]
fn prefetches_get_a_share_beside_constant_reads() {
    let disk = FakeDisk::new(1 << 30);
    let one_worker = StoreConfig {
        io_workers: 1,
        ..config(64)
    };
    let store = open(&one_worker, &disk);
    let (long_keys, long) = runs(1, 400, 100);
    let (ahead_keys, ahead) = runs(2, 8, 100);
    write_all(&store, &long);
    write_all(&store, &ahead);
    disk.reads.shut();
    let (requests, _) = requests(store.plan(&long_keys).expect("plan"));
    let reading = store.read(requests).expect("read");
    until("the first read", || disk.reads.waiting() == 1);
    let ticket = store.prefetch(&ahead_keys).expect("prefetch");
    disk.reads.open();
    assert_eq!(reading.wait().steps_ok, 400);
    assert!(ticket.wait(LONG));
    let journal = disk.journal.lock();
    let loads = journal
        .iter()
        .enumerate()
        .filter(|(_, (key, _))| ahead_keys.contains(key))
        .map(|(place, _)| place)
        .collect::<Vec<_>>();
    assert_eq!(loads.len(), 8);
    for (index, place) in loads.iter().enumerate() {
        let reads = place - index;
        assert!(
            reads <= 32 * (index + 1),
            "load {index} after {reads} reads"
        );
        assert!(reads >= 31 * index, "load {index} after {reads} reads");
    }
    drop(journal);
    assert_eq!(read(&store, &ahead_keys).1.l2.blocks, 8);
}
