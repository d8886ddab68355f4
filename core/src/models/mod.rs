//! Models of what threads do to one another: the real code on locks and threads of shuttle, which runs each scene in many orders.
//! A deadlock or a lost wake-up fails the schedule in which it happens, and so does a failed check.
//!
//! `cargo test -p kvlab-core --features shuttle --lib models::`; `KVLAB_SCHEDULES` says how many orders of each kind are tried.

mod cache;
mod queue;
mod store;

use std::sync::Arc;
use std::time::Duration;

use crate::config::{StoreConfig, WritePolicy};
use crate::store::BlockStore;
use crate::tier::DurableTier;
use crate::tier::memory::ARENA_PAGE;
use crate::tier::testing::FakeDisk;

/// The models have no clock: this only has to be later than the end of a schedule.
const LONG: Duration = Duration::from_secs(3600);

/// Runs a scene in random orders, and in orders with a few well-placed preemptions (PCT), which find what is rare.
fn explore(scene: impl Fn() + Send + Sync + Copy + 'static) {
    let schedules = std::env::var("KVLAB_SCHEDULES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(60);
    shuttle::check_random(scene, schedules);
    shuttle::check_pct(scene, schedules, 3);
}

fn config(l2_pages: u64, write_policy: WritePolicy) -> StoreConfig {
    StoreConfig {
        l2_bytes: l2_pages * ARENA_PAGE as u64,
        io_workers: 2,
        write_policy,
        prefetch_timeout: LONG,
        ..StoreConfig::default()
    }
}

fn open(config: &StoreConfig, disk: &Arc<FakeDisk>) -> BlockStore {
    let disk = Arc::clone(disk) as Arc<dyn DurableTier>;
    BlockStore::with_l3(config, Some(disk)).expect("a store")
}

/// Once nobody does anything any more, nothing is pinned, held or queued, and the store is sound before and after its end.
fn ends_clean(store: &BlockStore) {
    store.validate().expect("sound");
    // A load that was given up may be under way still.
    for _ in 0..1000 {
        store.evict_l2(LONG).expect("evict");
        store.flush(LONG).expect("flush");
        if store.stats().expect("stats").l2.used == 0 {
            break;
        }
        shuttle::thread::yield_now();
    }
    let stats = store.stats().expect("stats");
    assert_eq!(stats.prefetch.held_bytes, 0, "a hold that nobody ended");
    assert_eq!((stats.l2.runs, stats.l2.used), (0, 0), "a run stays pinned");
    assert_eq!((stats.write_queue_runs, stats.write_queue_bytes), (0, 0));
    store.validate().expect("sound");
    store.close(LONG).expect("close");
    store.validate().expect("sound");
}
