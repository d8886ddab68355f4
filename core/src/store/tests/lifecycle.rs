use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{LONG, config, demote, open, requests, until, write, write_all};
use crate::config::{StoreConfig, WritePolicy};
use crate::error::Error;
use crate::store::{BlockStore, ReadFailed};
use crate::tier::Put;
use crate::tier::testing::{FakeDisk, chain, header, namespace, source};

#[test]
fn closing_drains_and_then_every_call_says_closed() {
    let disk = FakeDisk::new(1 << 30);
    let store = open(&config(4), &disk);
    let space = namespace(0);
    let keys = chain(&space, 1, 0, 6);
    let run = |block: usize| header(&space, &keys, block..block + 1, &[5000]);
    disk.writes.shut();
    for block in 0..6 {
        assert_eq!(write(&store, &run(block)), Put::Queued);
    }
    let closing = {
        let store = store.clone();
        std::thread::spawn(move || store.close(LONG))
    };
    until("the close", || store.lookup(&keys).is_err());
    disk.writes.open();
    closing.join().expect("ends").expect("close");
    assert_eq!(disk.keys().len(), 6, "accepted writes are finished");
    assert!(disk.closed.load(Ordering::SeqCst));
    store.close(LONG).expect("closing again changes nothing");
    let closed =
        |result: Result<(), Error>| assert!(matches!(result, Err(Error::Closed)), "{result:?}");
    closed(store.lookup(&keys).map(drop));
    closed(store.plan(&keys).map(drop));
    closed(store.read(Vec::new()).map(drop));
    closed(store.demote(run(0), source(&run(0))).map(drop));
    closed(store.write_through(run(0), source(&run(0))).map(drop));
    closed(store.prefetch(&keys).map(drop));
    closed(store.claim(&keys));
    closed(store.forget_l2(&keys).map(drop));
    closed(store.evict_l2(LONG).map(drop));
    closed(store.flush(LONG));
    closed(store.clear(None).map(drop));
    closed(store.remove(&keys).map(drop));
    closed(store.contains(&keys[0]).map(drop));
    closed(store.put_bytes(keys[0], None, b"x").map(drop));
    closed(store.get_bytes(&keys[0]).map(drop));
    assert_eq!(store.stats().expect("stats").l3.writes, 6);
    store.validate().expect("sound");
}

#[test]
fn write_back_writes_on_close() {
    let disk = FakeDisk::new(1 << 30);
    let config = StoreConfig {
        write_policy: WritePolicy::WriteBack,
        ..config(8)
    };
    let store = open(&config, &disk);
    let space = namespace(0);
    let keys = chain(&space, 1, 0, 4);
    for block in 0..4 {
        demote(&store, &header(&space, &keys, block..block + 1, &[5000]));
    }
    drop(store);
    assert_eq!(disk.keys().len(), 4);
    assert!(disk.closed.load(Ordering::SeqCst));
}

#[test]
fn a_close_that_runs_out_of_time_says_so_and_can_be_finished() {
    let disk = FakeDisk::new(1 << 30);
    let store = open(&config(0), &disk);
    let space = namespace(0);
    let keys = chain(&space, 1, 0, 3);
    disk.writes.shut();
    for block in 0..3 {
        write(&store, &header(&space, &keys, block..block + 1, &[5000]));
    }
    until("the write", || disk.writes.waiting() == 1);
    let short = Duration::from_millis(10);
    assert!(matches!(store.flush(short), Err(Error::Timeout { .. })));
    assert!(matches!(store.close(short), Err(Error::Timeout { .. })));
    assert!(
        !disk.closed.load(Ordering::SeqCst),
        "L3 stays open while it is written to"
    );
    disk.writes.open();
    store.close(LONG).expect("the rest is short");
    assert_eq!(disk.keys().len(), 1, "what waited was dropped");
    assert!(disk.closed.load(Ordering::SeqCst));
    assert_eq!(store.stats().expect("stats").refusals.unavailable, 2);
}

#[test]
fn closing_cancels_reads_that_have_not_begun() {
    let disk = FakeDisk::new(1 << 30);
    let store = open(
        &StoreConfig {
            io_workers: 1,
            ..config(8)
        },
        &disk,
    );
    let space = namespace(0);
    let keys = chain(&space, 1, 0, 2);
    write_all(
        &store,
        &[0, 1].map(|block| header(&space, &keys, block..block + 1, &[60_000])),
    );
    disk.reads.shut();
    let prefetch = store.prefetch(&keys).expect("prefetch");
    until("the load", || disk.reads.waiting() == 1);
    let (waiting, _) = requests(store.plan(&keys[1..]).expect("plan"));
    let ticket = store.read(waiting).expect("read");
    let closing = {
        let store = store.clone();
        std::thread::spawn(move || store.close(LONG))
    };
    let outcome = ticket.wait();
    assert_eq!(
        (outcome.steps_ok, outcome.failure),
        (0, Some(ReadFailed::Cancelled))
    );
    assert!(prefetch.wait(LONG));
    disk.reads.open();
    closing.join().expect("ends").expect("close");
}

#[test]
fn a_lease_is_held_until_the_write_is_done() {
    let disk = FakeDisk::new(1 << 30);
    let store = open(&config(0), &disk);
    let space = namespace(0);
    let keys = chain(&space, 1, 0, 1);
    let run = header(&space, &keys, 0..1, &[5000]);
    let lease = Arc::new(());
    let mut leased = source(&run);
    leased.lease = Some(Arc::clone(&lease) as _);
    disk.writes.shut();
    store.write_through(run, leased).expect("write");
    until("the write", || disk.writes.waiting() == 1);
    assert_eq!(Arc::strong_count(&lease), 2);
    disk.writes.open();
    store.flush(LONG).expect("flush");
    assert_eq!(Arc::strong_count(&lease), 1);
    assert_eq!(disk.flushes.load(Ordering::SeqCst), 1);
}

#[test]
fn settings_that_cannot_be_used_are_named() {
    for config in [
        StoreConfig {
            io_workers: 0,
            ..config(1)
        },
        StoreConfig {
            io_workers: 1000,
            ..config(1)
        },
        StoreConfig {
            l2_bytes: 1,
            ..config(1)
        },
        StoreConfig {
            policy: "nonesuch".to_owned(),
            ..config(1)
        },
    ] {
        let error = BlockStore::with_l3(&config, None).expect_err("refused");
        assert!(matches!(error, Error::Config { .. }), "{error}");
    }
}

#[test]
fn a_forked_child_is_told_and_leaves_everything_alone() {
    let disk = FakeDisk::new(1 << 30);
    let mut store = open(&config(4), &disk);
    let owner = std::process::id();
    let handle = Arc::get_mut(&mut store.handle).expect("the only handle");
    handle.owner = owner + 1;
    assert!(matches!(
        store.lookup(&[]),
        Err(Error::Forked { owner: opened_by, child }) if (opened_by, child) == (owner + 1, owner)
    ));
    assert!(matches!(store.close(LONG), Err(Error::Forked { .. })));
    assert!(matches!(store.stats(), Err(Error::Forked { .. })));
    let core = Arc::clone(&store.handle.core);
    drop(store);
    assert!(!disk.closed.load(Ordering::SeqCst));
    // The threads that the parent would still have.
    core.scheduler.stop();
    if let Some(writer) = &core.writer {
        writer.stop();
    }
}
