//! L3 by block size: single blocks of 64 KiB to 4 MiB, written, read cold, read warm, and read while others are written;
//! direct and buffered, with 1, 2 and 4 workers. Raw arms move as many bytes in pieces of that size to and from one file with as
//! many threads. One round each, all arms of a case in turn; the first round warms up.
//! `cargo bench --bench disk_matrix -- [--dir DIR] [--rounds N] [--full] [--json]`; without `--full` only the smallest and the
//! largest size, 1 and 4 workers. `benches/python/matrix.py` draws what `--json` gives.
#![expect(clippy::print_stdout, reason = "it prints a table")]
#![expect(clippy::print_stderr, reason = "it says how far it is")]

mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvlab_core::config::{DiskConfig, StoreConfig};
use kvlab_core::key::{BlockKey, namespace_digest};
use kvlab_core::memory::{Piece, Region};
use kvlab_core::run::{RunHeader, Terms};
use kvlab_core::store::{BlockStore, ReadRequest};
use kvlab_core::tier::Put;
use support::{Arguments, Result, fill, in_parallel, open, source, target, transfer};

const LIMIT: Duration = Duration::from_secs(120);
const TOTAL: usize = 128 << 20;

/// What is measured of each case, in the order of the columns.
const ARMS: [&str; 7] = [
    "raw write",
    "write",
    "raw cold read",
    "cold read",
    "raw warm read",
    "warm read",
    "read and write",
];

/// One combination.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Case {
    size: usize,
    buffered: bool,
    workers: usize,
}

impl Case {
    fn mode(&self) -> &'static str {
        if self.buffered { "buffered" } else { "direct" }
    }
}

/// GB/s of every arm of every case, a sample a round.
#[derive(Default)]
struct Matrix(BTreeMap<Case, [Vec<f64>; ARMS.len()]>);

impl Matrix {
    fn table(&self) -> String {
        let mut out = format!(
            "{} MiB a step; GB/s, medians\n{:>8} {:8} {:>7}",
            TOTAL >> 20,
            "KiB",
            "",
            "workers"
        );
        for arm in ARMS {
            let _ = write!(out, " {arm:>14}");
        }
        for (case, arms) in &self.0 {
            let (kibibytes, mode) = (case.size >> 10, case.mode());
            let _ = write!(out, "\n{kibibytes:8} {mode:8} {:7}", case.workers);
            for samples in arms {
                let _ = write!(out, " {:14.2}", spread(samples)[1]);
            }
        }
        out
    }

    /// `{"title", "unit", "results": [{"kibibytes", "mode", "workers", "arm", "median", "min", "max", "samples"}]}`.
    fn json(&self) -> String {
        let results = self.0.iter().flat_map(|(case, arms)| {
            ARMS.iter().zip(arms).map(|(arm, samples)| {
                let [min, median, max] = spread(samples);
                let (kibibytes, mode, workers) = (case.size >> 10, case.mode(), case.workers);
                let count = samples.len();
                format!(
                    r#"{{"kibibytes": {kibibytes}, "mode": "{mode}", "workers": {workers}, "arm": "{arm}", "median": {median:.4}, "min": {min:.4}, "max": {max:.4}, "samples": {count}}}"#
                )
            })
        });
        let results = results.collect::<Vec<_>>().join(",\n  ");
        let mebibytes = TOTAL >> 20;
        format!(
            r#"{{"title": "{mebibytes} MiB a step", "unit": "GB/s", "results": [
  {results}
]}}"#
        )
    }
}

/// Least, median and greatest sample.
fn spread(samples: &[f64]) -> [f64; 3] {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    [0, sorted.len() / 2, sorted.len().saturating_sub(1)].map(|at| sorted[at])
}

fn main() -> Result<()> {
    let arguments = Arguments::read(3)?;
    if arguments.rounds == 0 {
        return Err("--rounds must be 1 or more".into());
    }
    let (sizes, workers): (&[usize], &[usize]) = if arguments.full {
        (&[64, 256, 1024, 4096], &[1, 2, 4])
    } else {
        (&[64, 4096], &[1, 4])
    };
    let cases = sizes.iter().flat_map(|kibibytes| {
        [false, true].into_iter().flat_map(move |buffered| {
            workers.iter().map(move |&workers| Case {
                size: kibibytes << 10,
                buffered,
                workers,
            })
        })
    });
    let cases = cases.collect::<Vec<_>>();
    let memory = Arc::new(Region::new(TOTAL)?);
    fill(&memory);
    let into = Arc::new(Region::new(TOTAL)?);
    into.prefault();
    let scratch = tempfile::tempdir_in(&arguments.directory)?;
    let mut matrix = Matrix::default();
    let start = Instant::now();
    for round in 0..=arguments.rounds {
        for &case in &cases {
            let [raw_write, raw_cold, raw_warm] = raw(scratch.path(), case, &memory, &into)?;
            let [write, cold, warm, mixed] = kvlab(scratch.path(), case, &memory, &into)?;
            if round > 0 {
                let row = matrix.0.entry(case).or_default();
                let seen = [raw_write, write, raw_cold, cold, raw_warm, warm, mixed];
                for (samples, speed) in row.iter_mut().zip(seen) {
                    samples.push(speed);
                }
            }
        }
        let seconds = start.elapsed().as_secs();
        eprintln!("round {round} of {}: {seconds} s", arguments.rounds);
    }
    println!(
        "{}",
        if arguments.json {
            matrix.json()
        } else {
            matrix.table()
        }
    );
    Ok(())
}

/// GB/s of so much work.
fn timed(bytes: usize, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(bytes as f64 / start.elapsed().as_secs_f64() / 1e9)
}

/// Writes, reads cold and reads warm.
fn raw(directory: &Path, case: Case, memory: &Region, into: &Region) -> Result<[f64; 3]> {
    let path = directory.join("raw");
    let file = open(&path, true, !case.buffered)?;
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
    Ok([write, cold, warm])
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

/// Writes, reads cold, reads warm, and reads while as much is written.
fn kvlab(
    directory: &Path,
    case: Case,
    memory: &Arc<Region>,
    into: &Arc<Region>,
) -> Result<[f64; 4]> {
    let mut disk = DiskConfig::new(directory.join("store"));
    disk.direct = !case.buffered;
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
    Ok([write, cold, warm, mixed])
}
