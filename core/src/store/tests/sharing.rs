//! Tickets that want the same runs of L3 at the same time.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{LONG, config, open, requests, until, write_all};
use crate::key::BlockKey;
use crate::run::{RunHeader, RunTarget};
use crate::store::{BlockStore, ReadFailed, ReadTicket};
use crate::tier::testing::{FakeDisk, arrived, chain, header, namespace};
use crate::tier::{ReadFailure, TierId};

/// Jobs of the runs below: each has six slices, two a job.
const JOBS: usize = 12;

fn stored(disk: &Arc<FakeDisk>) -> (BlockStore, Vec<BlockKey>) {
    let store = open(&config(0), disk);
    let space = namespace(0);
    let keys = chain(&space, 1, 0, 4);
    let runs = (0..4)
        .map(|run| header(&space, &keys, run..run + 1, &[800_000; 6]))
        .collect::<Vec<_>>();
    write_all(&store, &runs);
    (store, keys)
}

type Targets = Vec<(RunHeader, RunTarget)>;

fn order(store: &BlockStore, keys: &[BlockKey]) -> (ReadTicket, Targets) {
    let plan = store.plan(keys).expect("plan");
    assert!(plan.steps.iter().all(|step| step.tier == TierId::L3));
    let (requests, targets) = requests(plan);
    (store.read(requests).expect("read"), targets)
}

fn whole(targets: &Targets) -> bool {
    targets
        .iter()
        .all(|(header, target)| arrived(header, target))
}

fn ends_clean(store: &BlockStore) {
    assert!(store.core().expect("open").sharing.is_empty());
    store.validate().expect("sound");
}

#[test]
fn each_job_is_read_once_for_all_tickets_that_wait() {
    let disk = FakeDisk::new(1 << 30);
    let (store, keys) = stored(&disk);
    disk.reads.shut();
    let first = order(&store, &keys);
    until("three reads", || disk.reads.waiting() == 3);
    // One that has the same way to go, one that wants the middle of it.
    let others = [order(&store, &keys), order(&store, &keys[1..3])];
    disk.reads.open();
    for (ticket, targets) in std::iter::once(&first).chain(&others) {
        let outcome = ticket.wait();
        assert_eq!(outcome.steps_ok, targets.len());
        assert_eq!(outcome.l3.blocks, targets.len());
        assert!(whole(targets));
    }
    assert_eq!(disk.journal.lock().len(), JOBS);
    let stats = store.stats().expect("stats").l3;
    assert_eq!((stats.reads, stats.shared_reads), (12, 18));
    assert_eq!(stats.read_bytes, 4 * 6 * 800_000);
    drop((first, others));
    ends_clean(&store);
    let (ticket, targets) = order(&store, &keys);
    assert_eq!(ticket.wait().steps_ok, 4);
    assert!(whole(&targets));
    assert_eq!(disk.journal.lock().len(), 2 * JOBS, "what is over is over");
}

#[test]
fn a_ticket_that_is_given_up_takes_nothing_from_the_others() {
    for dropped in [false, true] {
        let disk = FakeDisk::new(1 << 30);
        let (store, keys) = stored(&disk);
        disk.reads.shut();
        let (first, first_targets) = order(&store, &keys);
        until("three reads", || disk.reads.waiting() == 3);
        let (second, targets) = order(&store, &keys);
        let transfer = Arc::clone(&first.transfer);
        if !dropped {
            first.cancel();
        }
        let giving_up = std::thread::spawn(move || {
            if dropped {
                drop(first);
            } else {
                assert_eq!(first.wait().failure, Some(ReadFailed::Cancelled));
            }
            // The memory is its owner's again.
            for (_, target) in &first_targets {
                target.region.zero(0, target.region.len());
            }
        });
        until("the end of the first", || transfer.is_cancelled());
        disk.reads.open();
        assert_eq!(second.wait().steps_ok, 4);
        giving_up.join().expect("a thread");
        assert!(whole(&targets));
        assert_eq!(disk.journal.lock().len(), JOBS);
        drop(second);
        ends_clean(&store);
    }
}

#[test]
fn a_failed_read_is_tried_again_by_those_that_waited_for_it() {
    let disk = FakeDisk::new(1 << 30);
    let (store, keys) = stored(&disk);
    disk.reads.shut();
    let tickets = [(); 3].map(|()| order(&store, &keys[..1]));
    until("the reads", || disk.reads.waiting() == 3);
    disk.failing.store(1, Ordering::SeqCst);
    disk.reads.open();
    let outcomes = tickets.iter().map(|(ticket, targets)| {
        let outcome = ticket.wait();
        assert!(outcome.steps_ok == 0 || whole(targets));
        outcome.failure
    });
    let mut outcomes = outcomes.collect::<Vec<_>>();
    outcomes.sort_by_key(Option::is_some);
    let failed = Some(ReadFailed::Failed(ReadFailure::Io));
    assert_eq!(outcomes, [None, None, failed]);
    assert_eq!(disk.journal.lock().len(), 4);
    drop(tickets);
    ends_clean(&store);
    // Damage is found by each.
    disk.damage(&keys[3]);
    disk.reads.shut();
    let tickets = [(); 2].map(|()| order(&store, &keys));
    disk.reads.open();
    for (ticket, _) in &tickets {
        let outcome = ticket.wait();
        assert_eq!(outcome.steps_ok, 3);
        let failed = ReadFailed::Failed(ReadFailure::Corrupt);
        assert_eq!(outcome.failure, Some(failed));
    }
    drop(tickets);
    ends_clean(&store);
}

#[test]
fn what_the_reader_does_not_keep_is_read_for_who_wants_it() {
    for head_first in [false, true] {
        let disk = FakeDisk::new(1 << 30);
        let (store, keys) = stored(&disk);
        let head = || {
            let (mut requests, targets) = requests(store.plan(&keys[..1]).expect("plan"));
            for pieces in &mut requests[0].target.slices {
                // These are read to be verified only.
                for piece in &mut pieces[1..] {
                    (piece.spare, piece.offset) = (true, 0);
                }
            }
            (store.read(requests).expect("read"), targets)
        };
        let all = || order(&store, &keys[..1]);
        disk.reads.shut();
        let first = if head_first { head() } else { all() };
        until("three reads", || disk.reads.waiting() == 3);
        let second = if head_first { all() } else { head() };
        disk.reads.open();
        for (ticket, _) in [&first, &second] {
            assert_eq!(ticket.wait().steps_ok, 1);
        }
        let (all, head) = if head_first {
            (&second, &first)
        } else {
            (&first, &second)
        };
        assert!(whole(&all.1));
        for slice in 0..6 {
            let (mine, other) = (&head.1[0].1, &all.1[0].1);
            let piece = mine.slices[slice][0];
            let read = |target: &RunTarget| {
                let mut bytes = vec![0; piece.len];
                target.region.read(piece.offset, &mut bytes);
                bytes
            };
            assert!(read(mine) == read(other));
        }
        let reads = disk.journal.lock().len();
        assert_eq!(reads, if head_first { 6 } else { 3 });
    }
}

#[test]
fn one_ticket_may_want_a_block_twice() {
    let disk = FakeDisk::new(1 << 30);
    let store = open(&config(0), &disk);
    let keys = [BlockKey([1; 32]), BlockKey([2; 32])];
    for key in keys {
        let put = store.put_bytes(key, None, &key.0).expect("put");
        assert_eq!(put, crate::tier::Put::Queued);
    }
    store.flush(LONG).expect("flush");
    let wanted = [keys[0], BlockKey([3; 32]), keys[1], keys[0]];
    let found = store.get_many(&wanted).expect("get");
    let bytes = |byte| Some(vec![byte; 32]);
    assert_eq!(found, [bytes(1), None, bytes(2), bytes(1)]);
    assert_eq!(disk.journal.lock().len(), 2);
    ends_clean(&store);
}
