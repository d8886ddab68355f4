//! L3 by block size: single blocks of 64 KiB to 4 MiB, written, read cold, read warm, and read while others are written;
//! direct and buffered, with 1, 2 and 4 workers. Raw arms move as many bytes in pieces of that size to and from one file with as
//! many threads. One round each, all arms of a size in turn; the first round warms up.
//! `cargo bench --bench disk_matrix -- [--dir DIR] [--rounds N] [--full] [--json]`; without `--full` only the smallest and the
//! largest size, 1 and 4 workers.
#![expect(clippy::print_stdout, reason = "it prints a table")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvlab_core::config::{DiskConfig, StoreConfig};
use kvlab_core::key::{BlockKey, namespace_digest};
use kvlab_core::memory::{Piece, Region};
use kvlab_core::run::{RunHeader, Terms};
use kvlab_core::store::{BlockStore, ReadRequest};
use kvlab_core::tier::Put;
use support::{Arguments, Arms, Result, fill, in_parallel, open, source, target, transfer};

const LIMIT: Duration = Duration::from_secs(120);
const TOTAL: usize = 128 << 20;

/// One combination.
#[derive(Clone, Copy)]
struct Case {
    size: usize,
    direct: bool,
    workers: usize,
}

impl Case {
    fn name(&self, what: &str) -> String {
        let mode = if self.direct { "direct" } else { "buffered" };
        let kibibytes = self.size >> 10;
        format!(
            "{kibibytes:5} KiB, {mode:8}, {} workers: {what}",
            self.workers
        )
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::read(3)?;
    let (sizes, workers): (&[usize], &[usize]) = if arguments.full {
        (&[64, 256, 1024, 4096], &[1, 2, 4])
    } else {
        (&[64, 4096], &[1, 4])
    };
    let memory = Arc::new(Region::new(TOTAL)?);
    fill(&memory);
    let into = Arc::new(Region::new(TOTAL)?);
    into.prefault();
    let scratch = tempfile::tempdir_in(&arguments.directory)?;
    let mut arms = Arms::default();
    for round in 0..=arguments.rounds {
        for &kibibytes in sizes {
            for direct in [true, false] {
                for &workers in workers {
                    let case = Case {
                        size: kibibytes << 10,
                        direct,
                        workers,
                    };
                    let mut seen = raw(scratch.path(), case, &memory, &into)?;
                    seen.extend(kvlab(scratch.path(), case, &memory, &into)?);
                    for (what, speed) in seen.into_iter().filter(|_| round > 0) {
                        arms.add(case.name(what), speed);
                    }
                }
            }
        }
    }
    let title = format!("{} MiB a step", TOTAL >> 20);
    println!("{}", arms.show(&title, "GB/s", arguments.json));
    Ok(())
}

/// GB/s of so much work.
fn timed(bytes: usize, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(bytes as f64 / start.elapsed().as_secs_f64() / 1e9)
}

fn raw(
    directory: &Path,
    case: Case,
    memory: &Region,
    into: &Region,
) -> Result<Vec<(&'static str, f64)>> {
    let path = directory.join("raw");
    let file = open(&path, true, case.direct)?;
    let count = TOTAL / case.size;
    let write = timed(TOTAL, || {
        in_parallel(case.workers, count, |index| {
            let at = index * case.size;
            transfer(&file, at as u64, memory, at, case.size, true)
        })?;
        Ok(file.sync_data()?)
    })?;
    #[cfg(target_os = "linux")]
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    let read = || {
        timed(TOTAL, || {
            in_parallel(case.workers, count, |index| {
                let at = index * case.size;
                transfer(&file, at as u64, into, at, case.size, false)
            })
        })
    };
    let (cold, warm) = (read()?, read()?);
    drop(file);
    std::fs::remove_file(path)?;
    Ok(vec![
        ("raw write", write),
        ("raw read, cold", cold),
        ("raw read, warm", warm),
    ])
}

/// Block `index` of `family` on its own: a run of one slice.
fn header(family: u64, index: usize, size: usize) -> RunHeader {
    let namespace = namespace_digest([("bench", b"disk_matrix".as_slice())]);
    let mut key = BlockKey([0; 32]);
    key.0[..8].copy_from_slice(&family.to_le_bytes());
    key.0[8..16].copy_from_slice(&(index as u64).to_le_bytes());
    RunHeader {
        namespace,
        parent: namespace,
        keys: [key].into(),
        block_tokens: 0,
        slices: [size as u32].into(),
        terms: Terms::default(),
    }
}

fn piece(index: usize, size: usize) -> Vec<Vec<Piece>> {
    vec![vec![Piece {
        spare: false,
        offset: index * size,
        len: size,
    }]]
}

fn kvlab(
    directory: &Path,
    case: Case,
    memory: &Arc<Region>,
    into: &Arc<Region>,
) -> Result<Vec<(&'static str, f64)>> {
    let mut disk = DiskConfig::new(directory.join("store"));
    disk.direct = case.direct;
    let path = disk.path.clone();
    let store = BlockStore::open(&StoreConfig {
        l2_bytes: 0,
        disk: Some(disk),
        io_workers: case.workers,
        ..StoreConfig::default()
    })?;
    let count = TOTAL / case.size;
    let queue = |family| -> Result<()> {
        for index in 0..count {
            let from = source(memory, &piece(index, case.size));
            let put = store.write_through(header(family, index, case.size), from)?;
            if put != Put::Queued {
                return Err(format!("a block was not queued: {put:?}").into());
            }
        }
        Ok(())
    };
    let read = || {
        timed(TOTAL, || {
            let mut requests = Vec::with_capacity(count);
            for index in 0..count {
                let keys = header(0, index, case.size).keys;
                let steps = store.plan(&keys)?.steps;
                requests.extend(steps.into_iter().map(|step| ReadRequest {
                    step,
                    target: target(into, &piece(index, case.size)),
                }));
            }
            let arrived = store.read(requests)?.wait().steps_ok;
            if arrived == count {
                Ok(())
            } else {
                Err(format!("{arrived} of {count} blocks arrived").into())
            }
        })
    };
    let write = timed(TOTAL, || {
        queue(0)?;
        Ok(store.flush(LIMIT)?)
    })?;
    store.drop_page_cache()?;
    let (cold, warm) = (read()?, read()?);
    store.drop_page_cache()?;
    let mixed = timed(2 * TOTAL, || {
        queue(1)?;
        read()?;
        Ok(store.flush(LIMIT)?)
    })?;
    store.close(LIMIT)?;
    drop(store);
    std::fs::remove_dir_all(path)?;
    Ok(vec![
        ("write", write),
        ("read, cold", cold),
        ("read, warm", warm),
        ("read while as much is written", mixed),
    ])
}
