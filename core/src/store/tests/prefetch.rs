use std::time::Duration;

use super::{LONG, config, demote, open, read, requests, until, write_all};
use crate::config::{StopPolicy, StoreConfig};
use crate::key::BlockKey;
use crate::run::RunHeader;
use crate::store::{BlockStore, Plan};
use crate::tier::TierId;
use crate::tier::memory::ARENA_PAGE;
use crate::tier::testing::{FakeDisk, arrived, chain, header, namespace};

const PAGE: u64 = ARENA_PAGE as u64;

/// A chain of one-block runs of one page each, in L3.
fn stored(store: &BlockStore, blocks: usize) -> (Vec<BlockKey>, Vec<RunHeader>) {
    let space = namespace(0);
    let keys = chain(&space, 1, 0, blocks);
    let runs = (0..blocks)
        .map(|block| header(&space, &keys, block..block + 1, &[30_000, 30_000]))
        .collect::<Vec<_>>();
    write_all(store, &runs);
    (keys, runs)
}

/// L2 of 16 pages, and so many workers.
fn workers(io_workers: usize) -> StoreConfig {
    StoreConfig {
        io_workers,
        ..config(16)
    }
}

fn held(store: &BlockStore) -> u64 {
    store.stats().expect("stats").prefetch.held_bytes
}

/// Everything in L2 can be evicted once the workers are done with it: nothing stays pinned.
fn l2_comes_free(store: &BlockStore) {
    until("an empty L2", || {
        store.evict_l2(LONG).expect("evict");
        store.flush(LONG).expect("flush");
        let stats = store.stats().expect("stats").l2;
        (stats.runs, stats.used) == (0, 0)
    });
}

#[test]
fn reading_claims_what_was_loaded() {
    let disk = FakeDisk::new(1 << 30);
    let store = open(&config(16), &disk);
    let (keys, _) = stored(&store, 4);
    let ticket = store.prefetch(&keys).expect("prefetch");
    assert!(ticket.wait(LONG));
    let progress = ticket.progress();
    assert_eq!(
        (progress.wanted, progress.loaded, progress.bytes),
        (4, 4, 240_000)
    );
    assert_eq!(held(&store), 4 * PAGE);
    assert_eq!(store.evict_l2(LONG).expect("evict"), 0, "held runs stay");
    let (plan, outcome) = read(&store, &keys);
    assert!(plan.steps.iter().all(|step| step.tier == TierId::L2));
    assert_eq!(outcome.l2.blocks, 4);
    drop(plan);
    let stats = store.stats().expect("stats").prefetch;
    assert_eq!(
        (stats.issued, stats.loaded, stats.claimed, stats.held_bytes),
        (4, 4, 4, 0)
    );
    l2_comes_free(&store);
    ticket.cancel();
    assert_eq!(
        store.stats().expect("stats").prefetch.cancelled,
        0,
        "nothing is left to cancel"
    );
}

#[test]
fn cancelling_ends_the_holds_unless_another_ticket_wants_them() {
    let disk = FakeDisk::new(1 << 30);
    let store = open(&config(16), &disk);
    let (keys, _) = stored(&store, 4);
    let one = store.prefetch(&keys).expect("prefetch");
    let two = store.prefetch(&keys[..2]).expect("prefetch");
    assert!(one.wait(LONG) && two.wait(LONG));
    one.cancel();
    one.cancel();
    assert_eq!(held(&store), 2 * PAGE);
    two.cancel();
    assert_eq!(held(&store), 0);
    let stats = store.stats().expect("stats").prefetch;
    assert_eq!((stats.issued, stats.cancelled), (4, 4));
    l2_comes_free(&store);
}

#[test]
fn what_has_not_begun_is_cancelled_before_it_is_read() {
    let disk = FakeDisk::new(1 << 30);
    let store = open(&workers(1), &disk);
    let (keys, _) = stored(&store, 4);
    disk.reads.shut();
    let ticket = store.prefetch(&keys).expect("prefetch");
    until("the first load", || disk.reads.waiting() == 1);
    ticket.cancel();
    disk.reads.open();
    assert!(ticket.wait(LONG));
    until("the load under way", || {
        store.stats().expect("stats").prefetch.loaded == 1
    });
    assert_eq!(disk.journal.lock().len(), 1);
    assert_eq!(held(&store), 0);
    l2_comes_free(&store);
}

#[test]
fn holds_time_out() {
    let disk = FakeDisk::new(1 << 30);
    let short = StoreConfig {
        prefetch_timeout: Duration::from_millis(1),
        ..config(16)
    };
    let store = open(&short, &disk);
    let (keys, runs) = stored(&store, 3);
    // One is in L2 already, and held by the caller's thread.
    demote(&store, &runs[2]);
    let ticket = store.prefetch(&keys).expect("prefetch");
    assert!(ticket.wait(LONG));
    until("the end of the holds", || {
        store.stats().expect("stats").prefetch.timed_out == 3
    });
    assert_eq!(held(&store), 0);
    l2_comes_free(&store);
}

#[test]
fn at_most_half_of_l2_is_held() {
    let disk = FakeDisk::new(1 << 30);
    let store = open(&config(8), &disk);
    let (keys, _) = stored(&store, 7);
    let ticket = store.prefetch(&keys).expect("prefetch");
    assert_eq!(ticket.progress().wanted, 4);
    assert_eq!(held(&store), 4 * PAGE);
    let other = store.prefetch(&keys[4..]).expect("prefetch");
    assert_eq!(other.progress().wanted, 0);
    assert!(ticket.wait(LONG) && other.wait(LONG));
    ticket.cancel();
    let other = store.prefetch(&keys[4..]).expect("prefetch");
    assert!(other.wait(LONG));
    assert_eq!(other.progress().loaded, 3);
}

#[test]
fn a_plan_waits_for_a_load_under_way_and_takes_over_one_that_has_not_begun() {
    let disk = FakeDisk::new(1 << 30);
    // One of them for prefetches, one for reads.
    let store = open(&workers(2), &disk);
    let (keys, _) = stored(&store, 2);
    disk.reads.shut();
    let ticket = store.prefetch(&keys).expect("prefetch");
    until("the first load", || disk.reads.waiting() == 1);
    let plan = store.plan(&keys).expect("plan");
    let tiers = plan.steps.iter().map(|step| step.tier).collect::<Vec<_>>();
    assert_eq!(tiers, [TierId::L2, TierId::L3]);
    let (requests, targets) = requests(plan);
    let reading = store.read(requests).expect("read");
    disk.reads.open();
    let outcome = reading.wait();
    assert_eq!((outcome.steps_ok, outcome.failure), (2, None));
    assert!(
        targets
            .iter()
            .all(|(header, target)| arrived(header, target))
    );
    assert!(ticket.wait(LONG));
    let stats = store.stats().expect("stats").prefetch;
    assert_eq!((stats.claimed, stats.stolen, stats.held_bytes), (1, 1, 0));
    assert_eq!(disk.journal.lock().len(), 2, "each run was read once");
    drop(reading);
    l2_comes_free(&store);
}

#[test]
fn damage_ends_a_load_and_the_reader_that_waits_for_it() {
    let disk = FakeDisk::new(1 << 30);
    let store = open(&workers(2), &disk);
    let (keys, _) = stored(&store, 1);
    disk.damage(&keys[0]);
    disk.reads.shut();
    let ticket = store.prefetch(&keys).expect("prefetch");
    until("the load", || disk.reads.waiting() == 1);
    let (requests, _) = requests(store.plan(&keys).expect("plan"));
    let reading = store.read(requests).expect("read");
    disk.reads.open();
    assert_eq!(reading.wait().steps_ok, 0);
    assert!(ticket.wait(LONG));
    assert_eq!(ticket.progress().loaded, 0);
    assert_eq!(held(&store), 0);
    drop(reading);
    l2_comes_free(&store);
}

#[test]
fn a_clear_is_not_undone_by_a_load_under_way() {
    let disk = FakeDisk::new(1 << 30);
    let store = open(&config(16), &disk);
    let (keys, _) = stored(&store, 3);
    disk.reads.shut();
    let ticket = store.prefetch(&keys).expect("prefetch");
    until("the loads", || disk.reads.waiting() == 2);
    assert_eq!(store.clear(None).expect("clear"), 3);
    disk.reads.open();
    assert!(ticket.wait(LONG));
    until("the loads' end", || {
        store.stats().expect("stats").l2.used == 0
    });
    assert!(store.plan(&keys).expect("plan").steps.is_empty());
}

/// Orders a prefetch of two runs behind a shut gate, and plans over them on another thread.
fn plan_against_prefetch(
    config: &StoreConfig,
    stop: Option<StopPolicy>,
    meanwhile: impl FnOnce(&FakeDisk, &std::thread::JoinHandle<Plan>),
) -> (BlockStore, Plan) {
    let disk = FakeDisk::new(1 << 30);
    let store = open(config, &disk);
    let (keys, _) = stored(&store, 2);
    disk.reads.shut();
    let ticket = match stop {
        Some(stop) => store.prefetch_with(&keys, stop),
        None => store.prefetch(&keys),
    };
    until("the first load", || disk.reads.waiting() == 1);
    let planning = std::thread::spawn({
        let store = store.clone();
        move || store.plan(&keys).expect("plan")
    });
    meanwhile(&disk, &planning);
    disk.reads.open();
    let plan = planning.join().expect("a plan");
    assert!(ticket.expect("prefetch").wait(LONG));
    assert_eq!(plan.blocks(), 2);
    (store, plan)
}

fn tiers(plan: &Plan) -> Vec<TierId> {
    plan.steps.iter().map(|step| step.tier).collect()
}

#[test]
fn best_effort_does_not_wait_for_what_has_not_begun() {
    let (store, plan) = plan_against_prefetch(&workers(2), None, |_, planning| {
        until("the plan", || planning.is_finished());
    });
    assert_eq!(tiers(&plan), [TierId::L2, TierId::L3]);
    assert!(!store.plan_may_wait());
    assert_eq!(store.stats().expect("stats").prefetch.waits, 0);
}

#[test]
fn wait_complete_takes_all_from_memory() {
    for own in [true, false] {
        let config = StoreConfig {
            prefetch_policy: if own {
                StopPolicy::BestEffort
            } else {
                StopPolicy::WaitComplete
            },
            ..workers(2)
        };
        let stop = own.then_some(StopPolicy::WaitComplete);
        let (store, plan) = plan_against_prefetch(&config, stop, |_, planning| {
            std::thread::sleep(Duration::from_millis(20));
            assert!(!planning.is_finished());
        });
        assert_eq!(tiers(&plan), [TierId::L2; 2]);
        let stats = store.stats().expect("stats").prefetch;
        assert_eq!((stats.expired_waits, stats.stolen), (0, 0));
    }
}

#[test]
fn timeout_waits_no_longer_than_it_may() {
    let patient = StoreConfig {
        prefetch_policy: StopPolicy::Timeout,
        prefetch_wait: LONG,
        ..workers(2)
    };
    let (store, plan) = plan_against_prefetch(&patient, None, |_, _| {});
    assert_eq!(tiers(&plan), [TierId::L2; 2]);
    assert_eq!(store.stats().expect("stats").prefetch.expired_waits, 0);
    let hurried = StoreConfig {
        prefetch_wait: Duration::from_millis(1),
        prefetch_wait_per_token: Duration::from_micros(1),
        ..patient
    };
    let (store, plan) = plan_against_prefetch(&hurried, None, |_, planning| {
        until("the plan", || planning.is_finished());
    });
    assert_eq!(tiers(&plan), [TierId::L2, TierId::L3]);
    let stats = store.stats().expect("stats").prefetch;
    assert_eq!((stats.expired_waits, stats.stolen), (1, 1));
}

#[test]
fn a_cancelled_prefetch_ends_the_wait_for_it() {
    let disk = FakeDisk::new(1 << 30);
    let store = open(&workers(2), &disk);
    let (keys, _) = stored(&store, 2);
    disk.reads.shut();
    let ticket = store
        .prefetch_with(&keys, StopPolicy::WaitComplete)
        .expect("prefetch");
    until("the first load", || disk.reads.waiting() == 1);
    let planning = std::thread::spawn({
        let store = store.clone();
        move || store.plan(&keys).expect("plan")
    });
    std::thread::sleep(Duration::from_millis(5));
    ticket.cancel();
    let plan = planning.join().expect("a plan");
    assert_eq!(tiers(&plan), [TierId::L3; 2]);
    disk.reads.open();
    drop(plan);
    until("the load's end", || {
        store.stats().expect("stats").prefetch.loaded == 1
    });
    l2_comes_free(&store);
}
