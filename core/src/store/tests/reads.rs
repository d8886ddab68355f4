use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{LONG, config, open, read, requests, until, write_all};
use crate::config::StoreConfig;
use crate::store::{Lookup, ReadFailed, ReadRequest};
use crate::tier::testing::{FakeDisk, arrived, chain, header, namespace, slice_arrived};
use crate::tier::{ReadFailure, TierId};

const ROOM: u64 = 1 << 30;

#[test]
fn damage_in_the_middle_gives_the_leading_steps() {
    let disk = FakeDisk::new(ROOM);
    let store = open(&config(0), &disk);
    let space = namespace(0);
    let keys = chain(&space, 1, 0, 10);
    // Several jobs a run, so that the damaged one fails in between those of the others.
    let runs = (0..5)
        .map(|run| header(&space, &keys, 2 * run..2 * run + 2, &[900_000; 4]))
        .collect::<Vec<_>>();
    write_all(&store, &runs);
    disk.damage(&keys[5]);
    let (plan, outcome) = read(&store, &keys);
    assert_eq!((plan.steps.len(), plan.blocks()), (5, 10));
    assert_eq!(outcome.steps_ok, 2);
    assert_eq!(
        outcome.failure,
        Some(ReadFailed::Failed(ReadFailure::Corrupt))
    );
    assert_eq!(outcome.l3.blocks, 4);
    assert!(store.stats().expect("stats").l3.corrupt >= 1);
    let found = store.lookup(&keys).expect("lookup");
    assert_eq!(found[4..6], [Lookup::Miss; 2]);
    let (plan, outcome) = read(&store, &keys);
    assert_eq!(
        (plan.blocks(), outcome.steps_ok, outcome.failure),
        (4, 2, None)
    );
}

#[test]
fn early_slices_of_all_runs_come_first() {
    let disk = FakeDisk::new(ROOM);
    let one_worker = StoreConfig {
        io_workers: 1,
        ..config(0)
    };
    let store = open(&one_worker, &disk);
    let space = namespace(0);
    let keys = chain(&space, 1, 0, 3);
    let runs = (0..3)
        .map(|run| header(&space, &keys, run..run + 1, &[800_000; 6]))
        .collect::<Vec<_>>();
    write_all(&store, &runs);
    disk.reads.shut();
    let (requests, targets) = requests(store.plan(&keys).expect("plan"));
    let ticket = store.read(requests).expect("read");
    assert_eq!(
        ticket.wait_slice(0, std::time::Duration::from_millis(1)),
        Err(ReadFailed::Timeout)
    );
    disk.reads.open();
    for slice in 0..6 {
        ticket.wait_slice(slice, LONG).expect("arrives");
        for (header, target) in &targets {
            assert!(slice_arrived(header, target, slice));
        }
    }
    assert_eq!(ticket.wait_slice(6, LONG), Ok(()), "no run has that slice");
    let starts = disk
        .journal
        .lock()
        .iter()
        .map(|(_, slices)| slices.start)
        .collect::<Vec<_>>();
    assert_eq!(starts, [0, 0, 0, 2, 2, 2, 4, 4, 4]);
}

#[test]
fn tickets_take_turns() {
    let disk = FakeDisk::new(ROOM);
    let one_worker = StoreConfig {
        io_workers: 1,
        ..config(0)
    };
    let store = open(&one_worker, &disk);
    let space = namespace(0);
    let (long, short) = (chain(&space, 1, 0, 8), chain(&space, 2, 0, 1));
    let runs = (0..8)
        .map(|run| header(&space, &long, run..run + 1, &[2_000_000]))
        .chain([header(&space, &short, 0..1, &[2_000_000])])
        .collect::<Vec<_>>();
    write_all(&store, &runs);
    disk.reads.shut();
    let (first, _) = requests(store.plan(&long).expect("plan"));
    let (second, _) = requests(store.plan(&short).expect("plan"));
    let first = store.read(first).expect("read");
    until("the first read", || disk.reads.waiting() == 1);
    let second = store.read(second).expect("read");
    disk.reads.open();
    assert_eq!((first.wait().steps_ok, second.wait().steps_ok), (8, 1));
    let place = disk
        .journal
        .lock()
        .iter()
        .position(|(key, _)| *key == short[0]);
    assert!(
        place.is_some_and(|place| place <= 2),
        "the small read came {place:?}th"
    );
}

#[test]
fn a_cancelled_or_dropped_ticket_writes_no_more() {
    let disk = FakeDisk::new(ROOM);
    let one_worker = StoreConfig {
        io_workers: 1,
        ..config(0)
    };
    let store = open(&one_worker, &disk);
    let space = namespace(0);
    let keys = chain(&space, 1, 0, 4);
    let runs = (0..4)
        .map(|run| header(&space, &keys, run..run + 1, &[2_000_000]))
        .collect::<Vec<_>>();
    write_all(&store, &runs);
    for dropped in [false, true] {
        disk.journal.lock().clear();
        disk.reads.shut();
        let (requests, targets) = requests(store.plan(&keys).expect("plan"));
        let ticket = store.read(requests).expect("read");
        until("the first read", || disk.reads.waiting() == 1);
        if dropped {
            let transfer = Arc::clone(&ticket.transfer);
            let dropping = std::thread::spawn(move || drop(ticket));
            until("the cancellation", || transfer.is_cancelled());
            assert!(
                !dropping.is_finished(),
                "a drop waits for the job under way"
            );
            disk.reads.open();
            dropping.join().expect("the drop ends");
        } else {
            ticket.cancel();
            disk.reads.open();
            let outcome = ticket.wait();
            assert_eq!(
                (outcome.steps_ok, outcome.failure),
                (1, Some(ReadFailed::Cancelled))
            );
            assert_eq!(ticket.wait_slice(0, LONG), Err(ReadFailed::Cancelled));
        }
        assert_eq!(disk.journal.lock().len(), 1);
        assert!(arrived(&targets[0].0, &targets[0].1) && !arrived(&targets[1].0, &targets[1].1));
    }
}

#[test]
fn a_panicking_tier_is_a_failed_read_or_write() {
    let disk = FakeDisk::new(ROOM);
    let store = open(&config(4), &disk);
    let space = namespace(0);
    let keys = chain(&space, 1, 0, 2);
    let runs = [
        header(&space, &keys, 0..1, &[10]),
        header(&space, &keys, 1..2, &[10]),
    ];
    write_all(&store, &runs[..1]);
    disk.panics.store(true, Ordering::SeqCst);
    let (_, outcome) = read(&store, &keys);
    assert_eq!(outcome.failure, Some(ReadFailed::Failed(ReadFailure::Io)));
    assert!(store.prefetch(&keys).expect("prefetch").wait(LONG));
    super::write(&store, &runs[1]);
    store.flush(LONG).expect("the writer lives");
    disk.panics.store(false, Ordering::SeqCst);
    write_all(&store, &runs[1..]);
    assert_eq!(read(&store, &keys).1.steps_ok, 2);
    assert_eq!(store.stats().expect("stats").refusals.write_failed, 1);
    store.validate().expect("sound");
}

#[test]
fn l2_comes_before_l3_and_a_run_may_be_entered_in_its_middle() {
    let disk = FakeDisk::new(ROOM);
    let store = open(&config(8), &disk);
    let space = namespace(0);
    let keys = chain(&space, 1, 0, 6);
    let runs = [
        header(&space, &keys, 0..3, &[3000]),
        header(&space, &keys, 3..6, &[3000]),
    ];
    write_all(&store, &runs);
    super::demote(&store, &runs[1]);
    let (plan, outcome) = read(&store, &keys[1..5]);
    let steps = plan
        .steps
        .iter()
        .map(|step| (step.tier, step.first, step.blocks))
        .collect::<Vec<_>>();
    assert_eq!(steps, [(TierId::L3, 1, 2), (TierId::L2, 0, 2)]);
    assert_eq!((outcome.l2.blocks, outcome.l3.blocks), (2, 2));
    let stats = store.stats().expect("stats");
    assert_eq!((stats.l2.hit_blocks, stats.l3.hit_blocks), (2, 2));
    assert_eq!((stats.l2.read_bytes, stats.l3.read_bytes), (3000, 3000));
}

#[test]
fn a_target_that_does_not_fit_is_refused() {
    let store = open(&config(8), &FakeDisk::new(ROOM));
    let space = namespace(0);
    let keys = chain(&space, 1, 0, 1);
    let run = header(&space, &keys, 0..1, &[3000, 20]);
    super::demote(&store, &run);
    for break_it in [0, 1, 2] {
        let (mut requests, _) = requests(store.plan(&keys).expect("plan"));
        let ReadRequest { target, .. } = &mut requests[0];
        match break_it {
            0 => drop(target.slices.pop()),
            1 => target.slices[1][0].len += 1,
            _ => target.slices[0][0].offset = target.region.len(),
        }
        assert!(store.read(requests).is_err());
    }
    assert_eq!(read(&store, &keys).1.steps_ok, 1);
    assert_eq!(
        store.plan(&keys).expect("plan").steps[0]
            .run
            .header()
            .keys
            .len(),
        1
    );
}
