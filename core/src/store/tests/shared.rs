//! L4: what machines share, over servers that can be slow, hung, full, broken or lying.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{LONG, config, demote, read, requests, until, write, write_all};
use crate::config::{StoreConfig, WritePolicy};
use crate::error::Error;
use crate::key::BlockKey;
use crate::run::{RunHeader, Terms};
use crate::store::{BlockStore, Lookup, Plan};
use crate::tier::testing::{FakeDisk, FakeServers, Lie, arrived, chain, header, namespace, source};
use crate::tier::{DurableTier, Put, SharedTier, TierId};

const ROOM: u64 = 1 << 30;

fn machine(
    config: &StoreConfig,
    disk: Option<&Arc<FakeDisk>>,
    servers: &Arc<FakeServers>,
) -> BlockStore {
    let disk = disk.map(|disk| Arc::clone(disk) as Arc<dyn DurableTier>);
    let servers = Arc::clone(servers) as Arc<dyn SharedTier>;
    BlockStore::with_tiers(config, disk, Some(servers)).expect("a store")
}

fn share(store: &BlockStore, header: &RunHeader) -> Put {
    let shared = store.share(header.clone(), source(header));
    shared.expect("share")
}

fn tiers(plan: &Plan) -> Vec<TierId> {
    plan.steps.iter().map(|step| step.tier).collect()
}

/// Three runs of two blocks each.
fn runs() -> (Vec<BlockKey>, Vec<RunHeader>) {
    let space = namespace(0);
    let keys = chain(&space, 1, 0, 6);
    let run = |at: usize| header(&space, &keys, 2 * at..2 * at + 2, &[3000, 4000]);
    let runs = (0..3).map(run).collect();
    (keys, runs)
}

#[test]
fn what_one_machine_shares_another_one_reads() {
    let servers = FakeServers::new(ROOM);
    let one = machine(&config(4), None, &servers);
    let (keys, runs) = runs();
    for run in &runs {
        assert_eq!(share(&one, run), Put::Queued);
    }
    one.flush(LONG).expect("flush");
    assert_eq!(one.unshared(&keys).expect("open"), []);
    let elsewhere = servers.elsewhere();
    let disk = FakeDisk::new(1 << 30);
    let other = machine(&config(4), Some(&disk), &elsewhere);
    let all = std::iter::once(0..6).collect::<Vec<_>>();
    assert_eq!(other.unshared(&keys).expect("open"), all);
    let (plan, outcome) = read(&other, &keys);
    assert_eq!(tiers(&plan), [TierId::L4; 3]);
    assert_eq!((outcome.steps_ok, outcome.l4.blocks), (3, 6));
    assert_eq!(outcome.l4.bytes, 3 * 7000);
    assert_eq!(elsewhere.lookups.load(Ordering::SeqCst), 1);
    let stats = other.stats().expect("stats");
    assert_eq!((stats.l4.hit_blocks, stats.l4.read_bytes), (6, 21_000));
    assert_eq!((stats.l2.hit_blocks, stats.l3.hit_blocks), (0, 0));
    // A lookup is answered from memory; to locate is to ask.
    assert_eq!(other.lookup(&keys).expect("lookup"), [Lookup::Miss; 6]);
    let located = other.locate(&keys).expect("locate");
    assert_eq!(located, [Lookup::Hit(TierId::L4); 6]);
    assert!(!other.contains(&keys[0]).expect("open"));
    let learnt = other.costs().stats().reads;
    assert_eq!(learnt[0].tier, TierId::L4);
}

#[test]
fn l4_is_asked_once_a_plan_and_its_answers_mix_with_the_tiers_here() {
    let servers = FakeServers::new(ROOM);
    let disk = FakeDisk::new(1 << 30);
    let store = machine(&config(8), Some(&disk), &servers);
    let space = namespace(0);
    let keys = chain(&space, 1, 0, 8);
    let run = |from, to| header(&space, &keys, from..to, &[3000]);
    write_all(&store, &[run(0, 2)]);
    let plan = store.plan(&keys[..2]).expect("plan");
    assert_eq!(tiers(&plan), [TierId::L3]);
    assert_eq!(
        servers.lookups.load(Ordering::SeqCst),
        0,
        "nothing is missing"
    );
    share(&store, &run(2, 4));
    demote(&store, &run(4, 5));
    share(&store, &run(5, 7));
    let (plan, outcome) = read(&store, &keys);
    let expected = [TierId::L3, TierId::L4, TierId::L2, TierId::L4];
    assert_eq!(tiers(&plan), expected);
    assert_eq!(plan.blocks(), 7);
    assert_eq!(
        (outcome.l2.blocks, outcome.l3.blocks, outcome.l4.blocks),
        (1, 2, 4)
    );
    assert_eq!(servers.lookups.load(Ordering::SeqCst), 1);
}

#[test]
fn what_is_no_answer_or_a_wrong_one_is_a_miss() {
    let servers = FakeServers::new(ROOM);
    let disk = FakeDisk::new(1 << 30);
    let store = machine(&config(4), Some(&disk), &servers);
    let (keys, runs) = runs();
    write_all(&store, &runs[..1]);
    for run in &runs {
        share(&store, run);
    }
    let expected = |header: &RunHeader| *header.slices == [3000, 4000];
    let blocks = || {
        let plan = store.plan_fitting(&keys, &expected).expect("plan");
        plan.blocks()
    };
    assert_eq!(blocks(), 6);
    for (lie, found) in [
        (Lie::Position, 2),
        (Lie::Blocks, 2),
        (Lie::Lengths, 2),
        (Lie::Silence, 4),
    ] {
        *servers.lie.lock() = Some(lie);
        assert_eq!(blocks(), found, "{lie:?}");
    }
    assert_eq!(store.stats().expect("stats").l4.corrupt, 3);
    *servers.lie.lock() = None;
    servers.hung.store(true, Ordering::SeqCst);
    assert_eq!(blocks(), 2);
    servers.hung.store(false, Ordering::SeqCst);
    assert_eq!(blocks(), 6);
}

#[test]
fn a_run_that_cannot_be_read_ends_the_restore_there() {
    let servers = FakeServers::new(ROOM);
    let store = machine(&config(4), None, &servers);
    let (keys, runs) = runs();
    for run in &runs {
        share(&store, run);
    }
    servers.failing.store(1, Ordering::SeqCst);
    let (_, outcome) = read(&store, &keys[..2]);
    assert_eq!(outcome.steps_ok, 0);
    servers.damage(&keys[2]);
    let (plan, outcome) = read(&store, &keys);
    assert_eq!((plan.steps.len(), outcome.steps_ok), (3, 1));
    let stats = store.stats().expect("stats").l4;
    assert_eq!((stats.io_errors, stats.corrupt), (1, 1));
    assert_eq!(store.plan(&keys).expect("plan").blocks(), 2);
}

#[test]
fn requests_that_want_the_same_run_read_it_once() {
    let servers = FakeServers::new(ROOM);
    let store = machine(&config(4), None, &servers);
    let (keys, runs) = runs();
    share(&store, &runs[0]);
    servers.reads.shut();
    let tickets = [0, 1].map(|_| {
        let (requests, targets) = requests(store.plan(&keys).expect("plan"));
        (store.read(requests).expect("read"), targets)
    });
    until("the read", || servers.reads.waiting() == 1);
    servers.reads.open();
    for (ticket, targets) in &tickets {
        assert_eq!(ticket.wait().steps_ok, 1);
        assert!(
            targets
                .iter()
                .all(|(header, target)| arrived(header, target))
        );
    }
    assert_eq!(servers.journal.lock().len(), 1);
    assert_eq!(store.stats().expect("stats").l4.shared_reads, 1);
}

#[test]
fn what_l2_gives_up_is_shared_with_what_comes_before_it() {
    for disk in [None, Some(FakeDisk::new(1 << 30))] {
        let servers = FakeServers::new(ROOM);
        let config = StoreConfig {
            write_policy: WritePolicy::WriteBack,
            ..config(3)
        };
        let store = machine(&config, disk.as_ref(), &servers);
        let space = namespace(0);
        let keys = chain(&space, 1, 0, 3);
        for block in 0..3 {
            demote(&store, &header(&space, &keys, block..block + 1, &[60_000]));
        }
        assert!(servers.keys().is_empty(), "nothing has to go yet");
        let other = chain(&space, 2, 0, 1);
        demote(&store, &header(&space, &other, 0..1, &[60_000]));
        store.flush(LONG).expect("flush");
        assert_eq!(servers.keys(), keys.iter().copied().collect());
        let stats = store.stats().expect("stats");
        assert_eq!((stats.l2.evictions, stats.dropped_victims), (1, 0));
        assert_eq!(read(&store, &keys).1.steps_ok, 3);
        // The rest goes at the end.
        store.close(LONG).expect("close");
        assert!(servers.keys().contains(&other[0]));
        assert!(disk.is_none_or(|disk| disk.keys() == servers.keys()));
    }
}

#[test]
fn without_l2_what_l1_gives_up_is_shared() {
    let servers = FakeServers::new(ROOM);
    let store = machine(&config(0), None, &servers);
    let (keys, runs) = runs();
    for run in &runs {
        assert_eq!(demote(&store, run), Put::Queued);
        assert_eq!(demote(&store, run), Put::Present);
    }
    assert_eq!(read(&store, &keys).1.l4.blocks, 6);
}

#[test]
fn a_server_that_hangs_holds_up_nothing_here() {
    let servers = FakeServers::new(10_000);
    let disk = FakeDisk::new(1 << 30);
    let store = machine(&config(4), Some(&disk), &servers);
    let (keys, runs) = runs();
    servers.hung.store(true, Ordering::SeqCst);
    for run in &runs {
        assert_eq!(write(&store, run), Put::Queued);
    }
    let shared = runs.iter().map(|run| share(&store, run));
    let queued = shared.filter(|put| *put == Put::Queued).count();
    assert_eq!(queued, 1, "its queue is bounded");
    assert_eq!(servers.refused.load(Ordering::SeqCst), 2);
    store.flush_l3(LONG).expect("L3 has its own queue");
    assert_eq!(read(&store, &keys).1.l3.blocks, 6);
    let short = Duration::from_millis(20);
    assert!(matches!(store.flush(short), Err(Error::Timeout { what, .. }) if what.contains("L4")));
    let start = Instant::now();
    let closed = store.close(Duration::from_millis(500));
    assert!(matches!(closed, Err(Error::Timeout { what, .. }) if what.contains("L4")));
    assert!(start.elapsed() < LONG);
    assert!(disk.closed.load(Ordering::SeqCst), "what is here is closed");
    assert!(servers.closed.load(Ordering::SeqCst));
    servers.hung.store(false, Ordering::SeqCst);
}

#[test]
fn clearing_leaves_the_servers_alone_and_removing_does_not() {
    let servers = FakeServers::new(ROOM);
    let disk = FakeDisk::new(1 << 30);
    let store = machine(&config(4), Some(&disk), &servers);
    let (keys, runs) = runs();
    write_all(&store, &runs[..2]);
    share(&store, &runs[0]);
    share(&store, &runs[1]);
    store.clear(None).expect("clear");
    assert_eq!(store.lookup(&keys).expect("lookup"), [Lookup::Miss; 6]);
    assert_eq!(read(&store, &keys).1.l4.blocks, 4);
    // What only waits for the servers is not theirs yet.
    servers.hung.store(true, Ordering::SeqCst);
    share(&store, &runs[2]);
    store.clear(None).expect("clear");
    servers.hung.store(false, Ordering::SeqCst);
    store.flush(LONG).expect("flush");
    assert_eq!(read(&store, &keys).1.l4.blocks, 4);
    // What is in several tiers counts once.
    write_all(&store, &runs[..1]);
    assert_eq!(store.remove(&keys[1..4]).expect("remove"), 3);
    assert_eq!(store.plan(&keys).expect("plan").blocks(), 0, "whole runs");
    servers.hung.store(true, Ordering::SeqCst);
    write_all(&store, &runs[..1]);
    assert!(matches!(store.remove(&keys), Err(Error::Remote { .. })));
    assert!(disk.keys().is_empty(), "here it is gone");
}

#[test]
fn opaque_blocks_are_shared_by_the_write_policy_and_kept_where_they_were_read() {
    let servers = FakeServers::new(ROOM);
    let one = machine(&config(4), None, &servers);
    let keys = [1, 2, 3].map(|byte| BlockKey([byte; 32]));
    for (index, key) in keys.iter().enumerate() {
        let parent = index.checked_sub(1).map(|before| keys[before]);
        let bytes = vec![index as u8; 5000];
        assert_eq!(
            one.put_bytes(*key, parent, &bytes).expect("put"),
            Put::Stored
        );
    }
    let secret = Terms {
        persist: false,
        ..Terms::default()
    };
    let hidden = BlockKey([9; 32]);
    let put = one.put_bytes_with(hidden, None, b"secret", secret);
    assert_eq!(put.expect("put"), Put::Stored);
    one.flush(LONG).expect("flush");
    assert_eq!(servers.keys(), keys.into_iter().collect());

    let elsewhere = servers.elsewhere();
    let disk = FakeDisk::new(1 << 30);
    let other = machine(&config(1), Some(&disk), &elsewhere);
    let wanted = [keys[0], hidden, keys[1], keys[2]];
    let expected = [Some(0), None, Some(1), Some(2)].map(|byte| byte.map(|byte| vec![byte; 5000]));
    assert_eq!(other.get_many(&wanted).expect("get"), expected);
    assert_eq!(elsewhere.lookups.load(Ordering::SeqCst), 1);
    other.flush(LONG).expect("flush");
    servers.lose_all();
    assert_eq!(other.get_many(&wanted).expect("get"), expected, "from disk");
    // A model's run under an opaque block's key.
    let run = header(&namespace(0), &[hidden], 0..1, &[10]);
    share(&one, &run);
    assert_eq!(other.get_bytes(&hidden).expect("a miss"), None);
    assert_eq!(other.stats().expect("stats").l4.corrupt, 1);
}

#[test]
fn selective_write_through_shares_at_the_second_use() {
    let servers = FakeServers::new(ROOM);
    let config = StoreConfig {
        write_policy: WritePolicy::WriteThroughSelective,
        ..config(4)
    };
    let store = machine(&config, None, &servers);
    let key = BlockKey([1; 32]);
    store.put_bytes(key, None, b"once").expect("put");
    assert!(servers.keys().is_empty());
    assert_eq!(
        store.get_bytes(&key).expect("get").as_deref(),
        Some(&b"once"[..])
    );
    assert!(servers.keys().contains(&key));
}
