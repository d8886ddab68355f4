//! Everything at once on a store that is far too small.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{LONG, config, open, read, requests};
use crate::config::StoreConfig;
use crate::key::BlockKey;
use crate::store::BlockStore;
use crate::tier::testing::{FakeDisk, chain, header, namespace, source};

const THREADS: u32 = 6;
const ROUNDS: u32 = 150;

fn one_thread(store: &BlockStore, thread: u32, arrived: &AtomicUsize) {
    let space = namespace((thread % 2) as u8);
    let opaque = |n: u32| BlockKey([200 + (n % 8) as u8; 32]);
    for round in 0..ROUNDS {
        // A cheap mix that every thread walks in its own order.
        let dice = (round * 7 + thread * 13) ^ (round >> 3);
        let keys = chain(&space, 1 + dice % 4, 2, 6);
        let start = (dice % 3) as usize * 2;
        let run = header(&space, &keys, start..start + 2, &[3000, 20_000]);
        match dice % 11 {
            0 | 1 => drop(
                store
                    .write_through(run.clone(), source(&run))
                    .expect("write"),
            ),
            2 | 3 => drop(store.demote(run.clone(), source(&run)).expect("demote")),
            4 | 5 => {
                let (_, outcome) = read(store, &keys);
                arrived.fetch_add(outcome.steps_ok, Ordering::Relaxed);
            }
            6 => {
                let ticket = store.prefetch(&keys).expect("prefetch");
                ticket.wait(Duration::from_millis(u64::from(dice % 3)));
                if dice.is_multiple_of(2) {
                    ticket.cancel();
                }
            }
            7 => {
                let (requests, _) = requests(store.plan(&keys).expect("plan"));
                store.read(requests).expect("read").cancel();
            }
            8 => drop(store.forget_l2(&keys[..4]).expect("forget")),
            9 => match dice % 4 {
                0 => drop(store.evict_l2(Duration::from_millis(1)).expect("evict")),
                1 => drop(store.clear(Some(&space)).expect("clear")),
                _ => drop(store.remove(&keys[5..]).expect("remove")),
            },
            _ => {
                let key = opaque(dice);
                store.put_bytes(key, None, &key.0[..8]).expect("put");
                if let Some(bytes) = store.get_bytes(&key).expect("get") {
                    assert_eq!(bytes, key.0[..8]);
                }
            }
        }
        store.validate().expect("sound");
    }
}

#[test]
fn every_call_at_once() {
    let disk = FakeDisk::new(150_000);
    let config = StoreConfig {
        write_queue_bytes: 100_000,
        prefetch_timeout: Duration::from_millis(2),
        ..config(7)
    };
    let store = open(&config, &disk);
    let arrived = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (store, arrived) = (&store, &arrived);
            scope.spawn(move || one_thread(store, thread, arrived));
        }
    });
    assert!(arrived.load(Ordering::Relaxed) > 0, "nothing was ever read");
    store.flush(LONG).expect("flush");
    assert!(store.prefetch(&[]).expect("prefetch").wait(LONG));
    super::until("the end of the holds", || {
        store.stats().expect("stats").prefetch.held_bytes == 0
    });
    super::until("the end of all transfers", || {
        store.evict_l2(LONG).expect("evict");
        store.flush(LONG).expect("flush");
        store.stats().expect("stats").l2.used == 0
    });
    store.validate().expect("sound");
    store.close(LONG).expect("close");
}
