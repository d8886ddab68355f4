//! Small runs of a server are read by a few requests, each verified for itself.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

mod disk_support;
mod remote_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use disk_support::{header, namespace, slice_bytes};
use kvlab_core::clock::Clock;
use kvlab_core::config::StoreConfig;
use kvlab_core::key::BlockKey;
use kvlab_core::memory::{Piece, Region};
use kvlab_core::run::{RunHeader, RunTarget};
use kvlab_core::store::{BlockStore, ReadOutcome, ReadRequest};
use kvlab_core::tier::remote::{
    Answer, Asked, Got, RedisValues, RemoteConfig, RemoteTier, ServerMemory, Values,
};
use remote_support::{RedisServer, remote, share, tier};

const RUNS: usize = 64;

/// Counts round trips that fetch values.
#[derive(Debug)]
struct Counted {
    values: RedisValues,
    gets: Arc<AtomicUsize>,
}

impl Values for Counted {
    fn address(&self) -> &str {
        self.values.address()
    }

    fn get(
        &self,
        asked: &[Asked],
        by: Instant,
        take: &mut dyn FnMut(usize, Got<'_>),
    ) -> Answer<()> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        self.values.get(asked, by, take)
    }

    fn put(&self, entries: &[(&[u8], &[u8])], ttl: Duration, by: Instant) -> Answer<()> {
        self.values.put(entries, ttl, by)
    }

    fn remove(&self, names: &[Vec<u8>], by: Instant) -> Answer<Vec<bool>> {
        self.values.remove(names, by)
    }

    fn ping(&self, by: Instant) -> Answer<()> {
        self.values.ping(by)
    }

    fn memory(&self, by: Instant) -> Answer<Option<ServerMemory>> {
        self.values.memory(by)
    }
}

/// A chain of runs of one block each.
fn runs() -> Vec<RunHeader> {
    let space = namespace("together");
    let mut parent = space;
    let run = |seed: usize| {
        let run = header(space, parent, seed as u32, 1, &[3000, 4000]);
        parent = run.keys[0];
        run
    };
    (0..RUNS).map(run).collect()
}

/// A store over the servers, and how many round trips for values it made.
fn counted(servers: &[RedisServer]) -> (BlockStore, Arc<AtomicUsize>) {
    let config = RemoteConfig {
        urls: servers.iter().map(RedisServer::url).collect(),
        ..remote(&[])
    };
    let gets = Arc::new(AtomicUsize::new(0));
    let values = RedisValues::all(&config).expect("URLs").into_iter();
    let values = values.map(|values| -> Box<dyn Values> {
        let gets = Arc::clone(&gets);
        Box::new(Counted { values, gets })
    });
    let l4 = RemoteTier::over(values.collect(), &config, Clock::default()).expect("a tier");
    let store = BlockStore::with_tiers(&StoreConfig::default(), None, Some(Arc::new(l4)));
    (store.expect("a store"), gets)
}

/// Reads what there is of the chain; every byte that arrived is checked. The round trips of the reads alone.
fn read(store: &BlockStore, gets: &AtomicUsize, keys: &[BlockKey]) -> (ReadOutcome, usize) {
    let plan = store.plan(keys).expect("plan");
    let before = gets.load(Ordering::SeqCst);
    let headers = plan.steps.iter().map(|step| step.run.header().clone());
    let headers = headers.collect::<Vec<_>>();
    let regions = headers.iter().map(|header| {
        let region = Region::new(header.payload_bytes() as usize).expect("memory");
        Arc::new(region)
    });
    let regions = regions.collect::<Vec<_>>();
    let requests = plan.steps.into_iter().zip(&regions).map(|(step, region)| {
        let mut at = 0;
        let slices = step.run.header().slices.iter().map(|&len| {
            let piece = Piece {
                spare: false,
                offset: at,
                len: len as usize,
            };
            at += len as usize;
            vec![piece]
        });
        let target = RunTarget {
            region: Arc::clone(region),
            lease: None,
            slices: slices.collect(),
        };
        ReadRequest { step, target }
    });
    let outcome = store.read(requests.collect()).expect("a ticket").wait();
    for (header, region) in headers.iter().zip(&regions).take(outcome.steps_ok) {
        let expected = [slice_bytes(header, 0), slice_bytes(header, 1)].concat();
        let mut found = vec![0; expected.len()];
        region.read(0, &mut found);
        assert!(found == expected, "wrong bytes");
    }
    (outcome, gets.load(Ordering::SeqCst) - before)
}

#[test]
fn many_small_runs_are_one_round_trip_a_server_and_bad_ones_spoil_only_themselves() {
    let runs = runs();
    let keys = runs.iter().map(|run| run.keys[0]).collect::<Vec<_>>();
    for count in [1, 2] {
        let servers = (0..count)
            .map(|_| RedisServer::start(&[]))
            .collect::<Vec<_>>();
        let urls = servers.iter().map(RedisServer::url).collect::<Vec<_>>();
        share(&tier(&remote(&urls)), &runs);
        let (store, gets) = counted(&servers);
        let (outcome, trips) = read(&store, &gets, &keys);
        assert_eq!((outcome.steps_ok, outcome.l4.blocks), (RUNS, RUNS));
        assert_eq!(trips, count);
        let stats = store.stats().expect("stats").remote.expect("L4");
        assert_eq!(stats.reads, RUNS as u64);
        // A run behind whose header something else stands: what comes before it is used, and it alone is deleted.
        let bad = 40;
        let names = |server: &RedisServer| server.names_of('r').len();
        let all = servers.iter().map(names).sum::<usize>();
        let last = runs[bad].keys[0]
            .0
            .map(|byte| format!("{byte:02x}"))
            .concat();
        let server = servers
            .iter()
            .find(|server| server.names_of('r').iter().any(|name| name.contains(&last)));
        let server = server.expect("it is on one of them");
        let name = server.names_of('r').into_iter();
        let name = name.filter(|name| name.contains(&last)).collect::<Vec<_>>();
        let mut value = server.get(&name[0]);
        *value.last_mut().expect("bytes") ^= 1;
        server.set(&name[0], &value);
        assert_eq!(read(&store, &gets, &keys).0.steps_ok, bad);
        let stats = store.stats().expect("stats").remote.expect("L4");
        assert_eq!((stats.corrupt, stats.gone), (1, 0));
        assert_eq!(servers.iter().map(names).sum::<usize>(), all - 1);
    }
}
