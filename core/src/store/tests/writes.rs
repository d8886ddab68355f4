use super::{LONG, config, demote, open, read, until, write, write_all};
use crate::config::{StoreConfig, WritePolicy};
use crate::key::BlockKey;
use crate::store::{BlockStore, Lookup};
use crate::tier::testing::{FakeDisk, chain, header, namespace};
use crate::tier::{Put, Refusal, Tier, TierId};

#[test]
fn the_queue_is_bounded_and_a_chain_stops_at_its_first_refused_run() {
    let disk = FakeDisk::new(1 << 30);
    let bounded = StoreConfig {
        write_queue_bytes: 2500,
        ..config(0)
    };
    let store = open(&bounded, &disk);
    let space = namespace(0);
    let keys = chain(&space, 1, 0, 5);
    let run = |block: usize, len| header(&space, &keys, block..block + 1, &[len]);
    disk.writes.shut();
    assert_eq!(write(&store, &run(0, 1000)), Put::Queued);
    until("the write", || disk.writes.waiting() == 1);
    assert_eq!(write(&store, &run(1, 1000)), Put::Queued);
    assert_eq!(
        write(&store, &run(0, 1000)),
        Put::Present,
        "each key is written once"
    );
    assert_eq!(
        write(&store, &run(2, 1000)),
        Put::Refused(Refusal::QueueFull)
    );
    assert_eq!(
        write(&store, &run(3, 10)),
        Put::Refused(Refusal::ParentMissing)
    );
    assert_eq!(write(&store, &run(0, 2501)), Put::Present);
    let found = store.lookup(&keys).expect("lookup");
    assert_eq!(found[..3], [Lookup::Pending, Lookup::Pending, Lookup::Miss]);
    let stats = store.stats().expect("stats");
    assert_eq!((stats.write_queue_bytes, stats.write_queue_runs), (2000, 2));
    assert_eq!(
        (stats.refusals.queue_full, stats.refusals.parent_missing),
        (1, 1)
    );
    store.validate().expect("sound");
    disk.writes.open();
    store.flush(LONG).expect("flush");
    let found = store.lookup(&keys).expect("lookup");
    assert_eq!(
        found[..3],
        [
            Lookup::Hit(TierId::L3),
            Lookup::Hit(TierId::L3),
            Lookup::Miss
        ]
    );
    assert_eq!(
        write(&store, &run(2, 1000)),
        Put::Queued,
        "there is room again"
    );
    assert_eq!(
        write(&store, &run(4, 2501)),
        Put::Refused(Refusal::ParentMissing)
    );
    assert_eq!(
        write(&store, &run(3, 2501)),
        Put::Refused(Refusal::QueueFull),
        "larger than the queue"
    );
}

/// A store with write-back whose L2 holds three one-page runs.
fn write_back(disk: &std::sync::Arc<FakeDisk>) -> (BlockStore, Vec<BlockKey>) {
    let config = StoreConfig {
        write_policy: WritePolicy::WriteBack,
        ..config(3)
    };
    (open(&config, disk), chain(&namespace(0), 1, 0, 3))
}

#[test]
fn a_demoted_leaf_takes_its_ancestors_along() {
    let disk = FakeDisk::new(1 << 30);
    let (store, keys) = write_back(&disk);
    let space = namespace(0);
    for block in 0..3 {
        demote(&store, &header(&space, &keys, block..block + 1, &[60_000]));
    }
    assert!(disk.keys().is_empty(), "nothing has to go yet");
    let other = chain(&space, 2, 0, 1);
    assert_eq!(
        demote(&store, &header(&space, &other, 0..1, &[60_000])),
        Put::Stored
    );
    store.flush(LONG).expect("flush");
    let found = store.lookup(&keys).expect("lookup");
    assert_eq!(
        found,
        [
            Lookup::Hit(TierId::L2),
            Lookup::Hit(TierId::L2),
            Lookup::Hit(TierId::L3)
        ]
    );
    assert!(
        keys.iter().all(|key| disk.contains(key)),
        "L3 takes no run without its parent"
    );
    assert_eq!(read(&store, &keys).1.steps_ok, 3);
    assert_eq!(store.stats().expect("stats").dropped_victims, 0);
}

#[test]
fn evicting_l2_pushes_everything_down() {
    let disk = FakeDisk::new(1 << 30);
    let (store, keys) = write_back(&disk);
    let space = namespace(0);
    for block in 0..3 {
        demote(&store, &header(&space, &keys, block..block + 1, &[60_000]));
    }
    assert_eq!(store.evict_l2(LONG).expect("evict"), 3);
    store.flush(LONG).expect("flush");
    let stats = store.stats().expect("stats");
    assert_eq!((stats.l2.used, stats.l2.runs, stats.l3.runs), (0, 0, 3));
    assert_eq!(
        (stats.l2.evictions, stats.l3.writes, stats.dropped_victims),
        (3, 3, 0)
    );
    assert_eq!(read(&store, &keys).1.l3.blocks, 3);
}

#[test]
fn evicting_l2_waits_for_room_in_the_queue() {
    let disk = FakeDisk::new(1 << 30);
    let config = StoreConfig {
        write_policy: WritePolicy::WriteBack,
        write_queue_bytes: 60_000,
        ..config(8)
    };
    let store = open(&config, &disk);
    let space = namespace(0);
    let keys = chain(&space, 1, 0, 8);
    for block in 0..8 {
        demote(&store, &header(&space, &keys, block..block + 1, &[60_000]));
    }
    assert_eq!(store.evict_l2(LONG).expect("evict"), 8);
    store.flush(LONG).expect("flush");
    assert_eq!(disk.keys().len(), 8);
    assert_eq!(store.stats().expect("stats").refusals.queue_full, 0);
}

#[test]
fn what_l3_has_is_dropped_without_a_write() {
    let disk = FakeDisk::new(1 << 30);
    let store = open(&config(1), &disk);
    let space = namespace(0);
    let (one, two) = (chain(&space, 1, 0, 1), chain(&space, 2, 0, 1));
    let runs = [
        header(&space, &one, 0..1, &[9]),
        header(&space, &two, 0..1, &[9]),
    ];
    write_all(&store, &runs);
    for run in &runs {
        assert_eq!(demote(&store, run), Put::Stored);
    }
    store.flush(LONG).expect("flush");
    let stats = store.stats().expect("stats");
    assert_eq!(
        (stats.l2.runs, stats.l2.evictions, stats.l3.writes),
        (1, 1, 2)
    );
    assert_eq!((stats.demotions, stats.dropped_victims), (2, 0));
}

#[test]
fn l1_and_l2_are_exclusive() {
    let store = open(&config(4), &FakeDisk::new(1 << 30));
    let space = namespace(0);
    let keys = chain(&space, 1, 0, 4);
    demote(&store, &header(&space, &keys, 0..2, &[9]));
    demote(&store, &header(&space, &keys, 2..4, &[9]));
    assert_eq!(
        store.forget_l2(&keys[..3]).expect("forget"),
        1,
        "a run goes when all of it was taken"
    );
    let found = store.lookup(&keys).expect("lookup");
    assert_eq!(found[..2], [Lookup::Miss; 2]);
    assert_eq!(found[2..], [Lookup::Hit(TierId::L2); 2]);
}

#[test]
fn without_l3_there_is_memory_and_without_l2_there_is_disk() {
    let space = namespace(0);
    let keys = chain(&space, 1, 0, 2);
    let run = header(&space, &keys, 0..2, &[9]);
    let memory = BlockStore::with_l3(&config(1), None).expect("a store");
    assert_eq!(write(&memory, &run), Put::Refused(Refusal::Unavailable));
    assert_eq!(demote(&memory, &run), Put::Stored);
    assert_eq!(read(&memory, &keys).1.l2.blocks, 2);
    assert!(memory.prefetch(&keys).expect("prefetch").wait(LONG));
    memory.flush(LONG).expect("flush");
    let bytes = vec![7; 200_000];
    let key = BlockKey([5; 32]);
    assert_eq!(
        memory.put_bytes(key, None, &bytes).expect("put"),
        Put::Refused(Refusal::TooLarge)
    );

    let disk = open(&config(0), &FakeDisk::new(1 << 30));
    assert_eq!(demote(&disk, &run), Put::Queued);
    assert_eq!(disk.put_bytes(key, None, &bytes).expect("put"), Put::Queued);
    disk.flush(LONG).expect("flush");
    assert_eq!(demote(&disk, &run), Put::Present);
    assert_eq!(read(&disk, &keys).1.l3.blocks, 2);
    assert_eq!(disk.get_bytes(&key).expect("get"), Some(bytes));
}

#[test]
fn opaque_blocks_come_back_and_are_promoted() {
    let disk = FakeDisk::new(1 << 30);
    let store = open(&config(4), &disk);
    let [root, leaf, orphan] = [1_u8, 2, 3].map(|byte| BlockKey([byte; 32]));
    let bytes = vec![3; 70_001];
    assert_eq!(
        store.put_bytes(root, None, &bytes).expect("put"),
        Put::Stored
    );
    assert_eq!(
        store.put_bytes(leaf, Some(root), b"leaf").expect("put"),
        Put::Stored
    );
    assert_eq!(
        store
            .put_bytes(orphan, Some(BlockKey([9; 32])), b"orphan")
            .expect("put"),
        Put::Stored
    );
    assert_eq!(
        store.put_bytes(root, None, b"other").expect("put"),
        Put::Present
    );
    store.flush(LONG).expect("flush");
    assert!(store.put_bytes(root, None, b"").is_err());
    store.evict_l2(LONG).expect("evict");
    let found = store.lookup(&[root, leaf, orphan]).expect("lookup");
    assert_eq!(
        found,
        [
            Lookup::Hit(TierId::L3),
            Lookup::Hit(TierId::L3),
            Lookup::Miss
        ]
    );
    assert_eq!(store.get_bytes(&root).expect("get"), Some(bytes));
    assert_eq!(
        store.lookup(&[root]).expect("lookup"),
        [Lookup::Hit(TierId::L2)]
    );
    disk.damage(&leaf);
    assert_eq!(store.get_bytes(&leaf).expect("get"), None);
    assert!(!store.contains(&leaf).expect("contains"));
    assert_eq!(store.remove(&[root, orphan]).expect("remove"), 1);
    assert_eq!(store.get_bytes(&root).expect("get"), None);
    let space = namespace(0);
    let keys = chain(&space, 1, 0, 2);
    demote(&store, &header(&space, &keys, 0..2, &[9]));
    assert!(store.get_bytes(&keys[0]).is_err(), "part of a model's run");
}

#[test]
fn clearing_a_namespace_reaches_the_queue() {
    let disk = FakeDisk::new(1 << 30);
    let store = open(&config(0), &disk);
    let spaces = [namespace(0), namespace(1)];
    let chains = spaces.map(|space| chain(&space, 1, 0, 2));
    disk.writes.shut();
    for (space, keys) in spaces.iter().zip(&chains) {
        for block in 0..2 {
            let run = header(space, keys, block..block + 1, &[9]);
            assert_eq!(write(&store, &run), Put::Queued);
        }
    }
    until("the first writes", || disk.writes.waiting() == 2);
    let clearing = {
        let store = store.clone();
        std::thread::spawn(move || store.clear(Some(&namespace(0))))
    };
    until("the purge", || {
        store.stats().expect("stats").write_queue_runs == 3
    });
    disk.writes.open();
    assert_eq!(clearing.join().expect("ends").expect("clear"), 1);
    store.flush(LONG).expect("flush");
    assert_eq!(store.lookup(&chains[0]).expect("lookup"), [Lookup::Miss; 2]);
    assert_eq!(
        store.lookup(&chains[1]).expect("lookup"),
        [Lookup::Hit(TierId::L3); 2]
    );
    store.validate().expect("sound");
}
