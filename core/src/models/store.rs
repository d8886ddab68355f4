//! Pin, evict, prefetch, publish and clear in a store whose L2 holds less than is asked of it.

use shuttle::thread;

use super::{LONG, config, ends_clean, explore, open};
use crate::config::{StopPolicy, WritePolicy};
use crate::key::BlockKey;
use crate::run::{RunHeader, RunTarget};
use crate::store::{BlockStore, Lookup, ReadRequest};
use crate::tier::testing::{FakeDisk, arrived, chain, header, namespace, source, target};
use crate::tier::{Put, TierId};

/// A chain of one-block runs of one page of L2 each.
fn runs(branch: u32, blocks: usize) -> (Vec<BlockKey>, Vec<RunHeader>) {
    let space = namespace(0);
    let keys = chain(&space, branch, 0, blocks);
    let runs = (0..blocks).map(|at| header(&space, &keys, at..at + 1, &[40, 25]));
    let runs = runs.collect();
    (keys, runs)
}

fn demote(store: &BlockStore, run: &RunHeader) -> Put {
    store.demote(run.clone(), source(run)).expect("demote")
}

fn write(store: &BlockStore, runs: &[RunHeader]) {
    for run in runs {
        let put = store
            .write_through(run.clone(), source(run))
            .expect("write");
        assert_eq!(put, Put::Queued);
    }
    store.flush(LONG).expect("flush");
}

fn requests(
    store: &BlockStore,
    keys: &[BlockKey],
) -> (Vec<ReadRequest>, Vec<(RunHeader, RunTarget)>) {
    let plan = store.plan(keys).expect("plan");
    let steps = plan.steps.into_iter().map(|step| {
        let header = step.run.header().clone();
        let target = target(&header);
        (
            ReadRequest {
                step,
                target: target.clone(),
            },
            (header, target),
        )
    });
    steps.unzip()
}

/// Reads what is there; all of what a plan pinned arrives, as it was written. Gives back how many runs came.
fn read(store: &BlockStore, keys: &[BlockKey]) -> usize {
    let (requests, targets) = requests(store, keys);
    let outcome = store.read(requests).expect("read").wait();
    assert_eq!(
        outcome.steps_ok,
        targets.len(),
        "a pinned run went: {outcome:?}"
    );
    for (header, target) in &targets {
        assert!(arrived(header, target), "visible before it was complete");
    }
    outcome.steps_ok
}

/// Two threads give runs to an L2 of two pages while a third reads them: nothing that a plan pinned is a victim.
#[test]
fn evict_against_pin() {
    explore(|| {
        let disk = FakeDisk::new(1 << 20);
        let store = open(&config(2, WritePolicy::WriteBack), &disk);
        let (keys, chain) = runs(1, 3);
        let (other, others) = runs(2, 2);
        let writers = [chain, others].map(|runs| {
            let store = store.clone();
            thread::spawn(move || {
                for run in &runs {
                    demote(&store, run);
                }
            })
        });
        let reader = thread::spawn({
            let (store, keys) = (store.clone(), keys.clone());
            move || {
                let plan = store.plan(&keys).expect("plan");
                thread::yield_now();
                let pinned = plan.steps.iter().filter(|step| step.tier == TierId::L2);
                for key in pinned.flat_map(|step| step.run.header().keys.iter()) {
                    let found = store.lookup(&[*key]).expect("lookup");
                    assert_eq!(found, [Lookup::Hit(TierId::L2)], "a pinned run went");
                }
                drop(plan);
                read(&store, &keys)
            }
        });
        for thread in writers {
            thread.join().expect("a thread");
        }
        assert!(reader.join().expect("a thread") <= 3);
        store.flush(LONG).expect("flush");
        // What was kept at all is found from its beginning on, or was refused because all of L2 was pinned.
        let kept = |keys: &[BlockKey]| store.plan(keys).expect("plan").blocks();
        let stats = store.stats().expect("stats");
        assert!(
            kept(&keys) + kept(&other) == 5 || stats.dropped_victims > 0,
            "{stats:?}"
        );
        drop(store.plan(&keys));
        ends_clean(&store);
    });
}

/// Two tickets for one prefix, one of them cancelled at any moment; a request that meets them.
#[test]
fn prefetch_against_plan_and_cancel() {
    for stop in [StopPolicy::BestEffort, StopPolicy::WaitComplete] {
        explore(move || {
            let disk = FakeDisk::new(1 << 20);
            let store = open(&config(8, WritePolicy::WriteThrough), &disk);
            let (keys, runs) = runs(1, 3);
            write(&store, &runs);
            let tickets = [true, false].map(|cancel| {
                let (store, keys) = (store.clone(), keys.clone());
                thread::spawn(move || {
                    let ticket = store.prefetch_with(&keys, stop).expect("prefetch");
                    if cancel {
                        ticket.cancel();
                    } else {
                        assert!(ticket.wait(LONG));
                    }
                    ticket
                })
            });
            assert_eq!(read(&store, &keys), 3, "a prefetch takes nothing away");
            for thread in tickets {
                thread.join().expect("a thread").cancel();
            }
            store.claim(&keys).expect("claim");
            ends_clean(&store);
        });
    }
}

/// A prefetch that has begun is waited for, if its ticket says so: nothing is read twice then.
#[test]
fn wait_complete_reads_once() {
    explore(|| {
        let disk = FakeDisk::new(1 << 20);
        let store = open(&config(8, WritePolicy::WriteThrough), &disk);
        let (keys, runs) = runs(1, 3);
        write(&store, &runs);
        drop(
            store
                .prefetch_with(&keys, StopPolicy::WaitComplete)
                .expect("prefetch"),
        );
        assert_eq!(read(&store, &keys), 3);
        assert_eq!(
            disk.journal.lock().len(),
            3,
            "one read a run, all by the prefetch"
        );
        let stats = store.stats().expect("stats").prefetch;
        assert_eq!((stats.stolen, stats.claimed), (0, 3));
        ends_clean(&store);
    });
}

/// Loads into an L2 that others fill; both give way to what is pinned.
#[test]
fn prefetch_against_evict() {
    explore(|| {
        let disk = FakeDisk::new(1 << 20);
        let store = open(&config(2, WritePolicy::WriteThrough), &disk);
        let (keys, first) = runs(1, 2);
        write(&store, &first);
        let filler = thread::spawn({
            let store = store.clone();
            move || {
                for run in &runs(2, 3).1 {
                    demote(&store, run);
                }
            }
        });
        let ticket = store.prefetch(&keys).expect("prefetch");
        assert!(ticket.wait(LONG));
        assert_eq!(read(&store, &keys), 2);
        filler.join().expect("a thread");
        ticket.cancel();
        ends_clean(&store);
    });
}

/// What is cleared while it moves between tiers does not come back.
#[test]
fn clear_against_moves() {
    explore(|| {
        let disk = FakeDisk::new(1 << 20);
        let store = open(&config(2, WritePolicy::WriteBack), &disk);
        let (keys, chain) = runs(1, 3);
        for run in &chain {
            demote(&store, run);
        }
        let mover = thread::spawn({
            let (store, keys) = (store.clone(), keys.clone());
            move || {
                store.evict_l2(LONG).expect("evict");
                store.prefetch(&keys).expect("prefetch")
            }
        });
        let reader = thread::spawn({
            let (store, keys) = (store.clone(), keys.clone());
            move || {
                read(&store, &keys);
            }
        });
        store.clear(None).expect("clear");
        let ticket = mover.join().expect("a thread");
        reader.join().expect("a thread");
        store.flush(LONG).expect("flush");
        let found = store.lookup(&keys).expect("lookup");
        assert!(
            found.iter().all(|at| *at == Lookup::Miss),
            "{found:?} came back"
        );
        assert!(disk.keys().is_empty());
        ticket.cancel();
        ends_clean(&store);
    });
}

/// Read tickets that are dropped or cancelled at any moment leave their targets alone from then on, and no pins.
#[test]
fn dropped_reads() {
    explore(|| {
        let disk = FakeDisk::new(1 << 20);
        let store = open(&config(4, WritePolicy::WriteThrough), &disk);
        let (keys, runs) = runs(1, 3);
        write(&store, &runs);
        let readers = [0, 1, 2].map(|kind| {
            let (store, keys) = (store.clone(), keys.clone());
            thread::spawn(move || {
                let (requests, targets) = requests(&store, &keys);
                let ticket = store.read(requests).expect("read");
                match kind {
                    0 => drop(ticket),
                    1 => {
                        ticket.cancel();
                        let ok = ticket.wait().steps_ok;
                        for (header, target) in &targets[..ok] {
                            assert!(arrived(header, target));
                        }
                    }
                    _ => assert!(ticket.wait_slice(1, LONG).is_ok()),
                }
            })
        });
        for thread in readers {
            thread.join().expect("a thread");
        }
        ends_clean(&store);
    });
}

/// Two tickets for one prefix, and a third that is dropped, ordered before anything was read: each run is read once, unless the
/// one that was dropped read it in vain. Owners use their memory again as soon as their tickets are over.
#[test]
fn shared_reads() {
    explore(|| {
        let disk = FakeDisk::new(1 << 20);
        let store = open(&config(0, WritePolicy::WriteThrough), &disk);
        let (keys, runs) = runs(1, 3);
        write(&store, &runs);
        disk.reads.shut();
        let dropped = store.read(requests(&store, &keys).0).expect("read");
        let readers = [0, 1].map(|_| {
            let (requests, targets) = requests(&store, &keys);
            let ticket = store.read(requests).expect("read");
            thread::spawn(move || {
                assert_eq!(ticket.wait().steps_ok, 3);
                for (header, target) in &targets {
                    assert!(arrived(header, target));
                    target.region.zero(0, target.region.len());
                }
            })
        });
        let dropper = thread::spawn(move || drop(dropped));
        disk.reads.open();
        for thread in readers {
            thread.join().expect("a thread");
        }
        dropper.join().expect("a thread");
        assert_eq!(disk.journal.lock().len(), 3);
        ends_clean(&store);
    });
}

/// Closing meets writes, reads, loads and plans that wait for them; everyone comes home.
#[test]
fn close_against_everything() {
    explore(|| {
        let disk = FakeDisk::new(1 << 20);
        let store = open(&config(4, WritePolicy::WriteBack), &disk);
        let (keys, chain) = runs(1, 3);
        for run in &chain {
            demote(&store, run);
        }
        store.evict_l2(LONG).expect("evict");
        store.flush(LONG).expect("flush");
        let prefetcher = thread::spawn({
            let (store, keys) = (store.clone(), keys.clone());
            move || {
                if let Ok(ticket) = store.prefetch_with(&keys, StopPolicy::WaitComplete) {
                    assert!(ticket.wait(LONG));
                }
            }
        });
        let reader = thread::spawn({
            let (store, keys) = (store.clone(), keys.clone());
            move || {
                if let Ok(plan) = store.plan(&keys) {
                    let from_l2 = plan.steps.iter().filter(|step| step.tier == TierId::L2);
                    assert!(from_l2.count() <= 3);
                    let requests = plan.steps.into_iter().map(|step| {
                        let target = target(step.run.header());
                        ReadRequest { step, target }
                    });
                    if let Ok(ticket) = store.read(requests.collect()) {
                        ticket.wait();
                    }
                }
            }
        });
        let writer = thread::spawn({
            let store = store.clone();
            move || {
                let (_, others) = runs(2, 1);
                let run = others[0].clone();
                // Closed already, or taken in and written.
                drop(store.write_through(run.clone(), source(&run)));
            }
        });
        store.close(LONG).expect("close");
        for thread in [prefetcher, reader, writer] {
            thread.join().expect("a thread");
        }
        store.validate().expect("sound");
        assert!(keys.iter().all(|key| disk.keys().contains(key)));
        assert_eq!(store.stats().expect("stats").prefetch.held_bytes, 0);
    });
}
