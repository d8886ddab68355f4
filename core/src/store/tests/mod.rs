mod fairness;
mod lifecycle;
mod model;
mod prefetch;
mod reads;
mod shared;
mod sharing;
mod threads;
mod writes;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{BlockStore, Plan, ReadOutcome, ReadRequest};
use crate::config::StoreConfig;
use crate::key::BlockKey;
use crate::run::{RunHeader, RunTarget};
use crate::tier::memory::ARENA_PAGE;
use crate::tier::testing::{FakeDisk, arrived, source, target};
use crate::tier::{DurableTier, Put};

/// Longer than anything here takes, so that running into it is a failure.
const LONG: Duration = Duration::from_secs(60);

fn config(l2_pages: u64) -> StoreConfig {
    StoreConfig {
        l2_bytes: l2_pages * ARENA_PAGE as u64,
        io_workers: 3,
        ..StoreConfig::default()
    }
}

fn open(config: &StoreConfig, disk: &Arc<FakeDisk>) -> BlockStore {
    let disk = Arc::clone(disk) as Arc<dyn DurableTier>;
    BlockStore::with_l3(config, Some(disk)).expect("a store")
}

/// Waits for something that other threads bring about.
fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} never came about");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn write(store: &BlockStore, header: &RunHeader) -> Put {
    store
        .write_through(header.clone(), source(header))
        .expect("write_through")
}

fn demote(store: &BlockStore, header: &RunHeader) -> Put {
    store
        .demote(header.clone(), source(header))
        .expect("demote")
}

/// In L3 and nowhere else.
fn write_all(store: &BlockStore, headers: &[RunHeader]) {
    for header in headers {
        assert_eq!(write(store, header), Put::Queued);
    }
    store.flush(LONG).expect("flush");
}

fn requests(plan: Plan) -> (Vec<ReadRequest>, Vec<(RunHeader, RunTarget)>) {
    plan.steps
        .into_iter()
        .map(|step| {
            let header = step.run.header().clone();
            let target = target(&header);
            let kept = (header, target.clone());
            (ReadRequest { step, target }, kept)
        })
        .unzip()
}

/// Plans and reads; every step that arrived must have the bytes of its run.
fn read(store: &BlockStore, keys: &[BlockKey]) -> (Plan, ReadOutcome) {
    let plan = store.plan(keys).expect("plan");
    let (requests, targets) = requests(plan.clone());
    let ticket = store.read(requests).expect("read");
    let outcome = ticket.wait();
    for (header, target) in &targets[..outcome.steps_ok] {
        assert!(arrived(header, target), "wrong bytes");
    }
    (plan, outcome)
}
