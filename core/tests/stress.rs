//! Many threads on a cache, a store and a disk that are all far too small, and what they may cost the process.
#![expect(clippy::expect_used, reason = "helpers of tests stop the test")]

mod cache_support;
mod disk_support;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, fs};

use cache_support::{BLOCK, LONG, check, fill, layout, namespace, restore, serve};
use disk_support::faulty::{Fault, FaultyFiles, Operation};
use kvlab_core::cache::{CacheConfig, PrefixCache};
use kvlab_core::config::{DiskConfig, StopPolicy, StoreConfig, WritePolicy};
use kvlab_core::key::{BlockKey, chain_keys};
use kvlab_core::store::BlockStore;

const THREADS: u64 = 12;
const ROUNDS: u32 = 60;
const L1_BLOCKS: u64 = 20;
const L2_BYTES: u64 = 4 * 65_536;
const L3_BYTES: u64 = 3 << 20;
const SEGMENT_BYTES: u64 = 512 << 10;
const BUFFER_BYTES: u64 = 8 << 20;

/// A disk that takes its time now and then.
fn jittery() -> Arc<FaultyFiles> {
    let files = FaultyFiles::new(5);
    files.plan(|plan| {
        plan.armed = true;
        for operation in [
            Operation::Read,
            Operation::Write,
            Operation::Sync,
            Operation::Punch,
        ] {
            plan.rates.insert((operation, Fault::Slow), 100);
        }
    });
    files
}

fn config(path: &Path, write_policy: WritePolicy) -> StoreConfig {
    StoreConfig {
        l2_bytes: L2_BYTES,
        disk: Some(DiskConfig {
            capacity: L3_BYTES,
            free_reserve: 0,
            segment_bytes: SEGMENT_BYTES,
            files: jittery(),
            ..DiskConfig::new(path)
        }),
        write_policy,
        io_workers: 3,
        write_queue_bytes: 256 << 10,
        prefetch_timeout: Duration::from_millis(20),
        prefetch_wait: Duration::from_millis(2),
        ..StoreConfig::default()
    }
}

fn open(path: &Path, write_policy: WritePolicy) -> PrefixCache {
    let store = BlockStore::open(&config(path, write_policy)).expect("the store opens");
    let config = CacheConfig {
        block_bytes: L1_BLOCKS * layout().block_bytes() as u64,
        buffer_bytes: BUFFER_BYTES,
        residents: 0,
        policy: "lru".to_owned(),
    };
    PrefixCache::new(layout(), store, &config).expect("a cache")
}

/// A small generator: the same operations in every run, in an order that the threads make.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % sides
    }
}

/// One of the prompts of a tree: two trunks of 4 blocks, 6 branches each, up to 12 blocks long.
fn prompt(dice: &mut Dice) -> Vec<u32> {
    let (trunk, branch) = (dice.roll(2) as u32, dice.roll(6) as u32);
    let tokens = 1 + dice.roll((12 * BLOCK) as u64) as usize;
    let token = |at: usize| {
        let branch = if at < 4 * BLOCK { 0 } else { branch + 1 };
        trunk * 1000 + branch * 100_000 + at as u32
    };
    (0..tokens).map(token).collect()
}

fn keys(space: &BlockKey, tokens: &[u32]) -> Vec<BlockKey> {
    let mut keys = Vec::new();
    chain_keys(*space, tokens, BLOCK, &mut keys);
    keys
}

/// A request that ends at one of its stages.
fn request(cache: &PrefixCache, space: &BlockKey, tokens: &[u32], dice: &mut Dice) {
    match dice.roll(8) {
        0 => drop(cache.begin(*space, tokens.to_vec(), 0).expect("begin")),
        1 => drop(restore(cache, space, tokens)),
        2 => {
            let (mut request, buffer, hit) = restore(cache, space, tokens);
            fill(&buffer, space, tokens, hit.total());
            request.commit(tokens.to_vec(), &buffer).expect("commit");
        }
        3 => {
            let (mut request, buffer, hit) = restore(cache, space, tokens);
            fill(&buffer, space, tokens, hit.total());
            request.commit(tokens.to_vec(), &buffer).expect("commit");
            if let Some(mut fork) = request.fork(LONG).expect("fork") {
                drop(request);
                let buffer = Arc::new(cache.lease(tokens.len()).expect("lease"));
                let hit = fork.restore(&buffer).expect("restore").tokens.total();
                check(&buffer, space, &tokens[..hit]);
            }
        }
        _ => drop(serve(cache, space, tokens)),
    }
}

fn prefetch(cache: &PrefixCache, space: BlockKey, tokens: &[u32], dice: &mut Dice) {
    let stop = [
        StopPolicy::BestEffort,
        StopPolicy::Timeout,
        StopPolicy::WaitComplete,
    ];
    let stop = stop[dice.roll(3) as usize];
    let ticket = cache.prefetch_with(space, tokens, stop).expect("prefetch");
    match dice.roll(4) {
        0 => ticket.cancel(),
        1 => drop(ticket),
        2 => {
            ticket.wait(Duration::from_micros(dice.roll(2000)));
            ticket.cancel();
        }
        _ => {
            serve(cache, &space, tokens);
        }
    }
}

fn one_thread(cache: &PrefixCache, thread: u64, deletes: bool) {
    let mut dice = Dice(thread + 1);
    let store = cache.store();
    for _ in 0..ROUNDS {
        let space = namespace(["one", "two"][dice.roll(2) as usize]);
        let tokens = prompt(&mut dice);
        match dice.roll(24) {
            0..12 => request(cache, &space, &tokens, &mut dice),
            12..17 => prefetch(cache, space, &tokens, &mut dice),
            17 | 18 => {
                // A read that nobody waits for.
                let plan = store.plan(&keys(&space, &tokens)).expect("plan");
                let blocks = plan.blocks();
                assert!(blocks * BLOCK <= tokens.len());
            }
            19 => drop(
                cache
                    .evict(dice.roll(L1_BLOCKS) as usize + 1)
                    .expect("evict"),
            ),
            20 => drop(store.evict_l2(Duration::from_millis(1)).expect("evict")),
            21 if deletes => {
                let keys = keys(&space, &tokens);
                store.remove(&keys[keys.len() / 2..]).expect("remove");
            }
            22 if deletes => {
                if dice.roll(3) == 0 {
                    cache.clear(Some(&space)).expect("clear");
                    store.clear(Some(&space)).expect("clear");
                }
            }
            _ => cache.flush(LONG).expect("flush"),
        }
        cache.validate().expect("sound");
        store.validate().expect("sound");
    }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} never came about");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Everything is given back: no block, page, buffer, pin, hold or queued byte stays behind.
fn ends_empty(cache: &PrefixCache) {
    let store = cache.store();
    cache.flush(LONG).expect("flush");
    cache.validate().expect("sound");
    until("the end of all holds", || {
        store.stats().expect("stats").prefetch.held_bytes == 0
    });
    cache.evict(usize::MAX).expect("evict");
    until("an empty L2", || {
        store.evict_l2(LONG).expect("evict");
        cache.flush(LONG).expect("flush");
        store.stats().expect("stats").l2.used == 0
    });
    let stats = cache.stats();
    assert_eq!(stats.l1.pool.free, stats.l1.pool.blocks, "{:?}", stats.l1);
    assert_eq!(
        stats.buffers.idle, stats.buffers.mapped,
        "a buffer is not back"
    );
    assert_eq!(stats.pending_commits, 0);
    let below = store.stats().expect("stats");
    assert_eq!(
        (
            below.l2.runs,
            below.write_queue_runs,
            below.write_queue_bytes
        ),
        (0, 0, 0)
    );
    assert!(below.l3.used <= below.l3.capacity, "{below:?}");
    cache.validate().expect("sound");
    store.validate().expect("sound");
    store.disk().expect("a disk").validate().expect("sound");
}

fn run(path: &Path, write_policy: WritePolicy, deletes: bool) {
    let cache = open(path, write_policy);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let cache = &cache;
            scope.spawn(move || one_thread(cache, thread, deletes));
        }
    });
    ends_empty(&cache);
    let stats = cache.store().stats().expect("stats");
    assert!(
        stats.l2.hit_blocks > 0 && stats.prefetch.loaded > 0,
        "{stats:?}"
    );
    assert_eq!((stats.l3.io_errors, stats.l3.corrupt), (0, 0), "{stats:?}");
    assert!(stats.l3.gone == 0 || deletes, "{stats:?}");
    cache.close(LONG).expect("close");
    cache.store().close(LONG).expect("close");
}

#[test]
fn write_through() {
    let directory = tempfile::tempdir().expect("a directory");
    run(directory.path(), WritePolicy::WriteThrough, true);
}

#[test]
fn write_through_selective() {
    let directory = tempfile::tempdir().expect("a directory");
    run(directory.path(), WritePolicy::WriteThroughSelective, true);
}

#[test]
fn write_back() {
    let directory = tempfile::tempdir().expect("a directory");
    run(directory.path(), WritePolicy::WriteBack, true);
}

/// A number of this process's `/proc/self/status`.
#[cfg(target_os = "linux")]
fn status(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("readable");
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next());
    number.expect("a number").parse().expect("a number")
}

#[cfg(target_os = "linux")]
fn open_files() -> u64 {
    fs::read_dir("/proc/self/fd").expect("readable").count() as u64
}

/// The threads of caches and stores. (The index keeps a pool of its own.)
#[cfg(target_os = "linux")]
fn own_threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").expect("readable");
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("kvlab-")).collect()
}

const CHILD: &str = "KVLAB_STRESS_TEST_DIRECTORY";

/// Not a test of its own: a process that does nothing else, so that what it takes can be told.
#[cfg(target_os = "linux")]
#[test]
fn process() {
    let Ok(path) = env::var(CHILD) else {
        return;
    };
    let path = Path::new(&path);
    let files = open_files();
    run(path, WritePolicy::WriteThrough, false);
    let mut most = 0;
    for round in 0..20 {
        let cache = open(path, WritePolicy::WriteBack);
        let space = namespace("again");
        for seed in 0..4 {
            serve(&cache, &space, &prompt(&mut Dice(round * 4 + seed)));
        }
        let segments = L3_BYTES / SEGMENT_BYTES;
        most = most.max(open_files());
        // Segments, those being reclaimed, the lock and the few files of sled.
        assert!(
            open_files() <= files + 2 * segments + 24,
            "{} files are open",
            open_files()
        );
        drop(cache);
        // The system lists a thread a moment longer than a join waits for it.
        until("the end of all threads", || own_threads().is_empty());
        until("the end of all files", || open_files() == files);
    }
    let configured = L1_BLOCKS * layout().block_bytes() as u64 + BUFFER_BYTES + L2_BYTES;
    let peak = status("VmHWM") << 10;
    assert!(
        peak <= configured + (200 << 20),
        "{} MiB at the most",
        peak >> 20
    );
}

#[cfg(target_os = "linux")]
#[test]
fn memory_files_and_threads_stay_bounded() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = directory.path().join("store");
    let child = Command::new(env::current_exe().expect("known"))
        .args(["process", "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, &store)
        .output()
        .expect("started");
    let said = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{said}");
    assert!(store.join("FORMAT").exists(), "it did nothing: {said}");
}
