//! L3 against the disk itself: 94 MB of KV read from the disk tier into a cache buffer, and the same file read raw.
//!
//! Both read past the page cache into touched memory, in turns; the figure is GB/s, median and range over the rounds.
//! `cargo bench --bench disk_read -- [--dir DIR] [--rounds N]`.
#![expect(clippy::print_stdout, reason = "it prints a table")]

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use kvlab_core::buffer::BufferPool;
use kvlab_core::config::DiskConfig;
use kvlab_core::key::{BlockKey, chain_key, namespace_digest};
use kvlab_core::layout::{LayerLayout, Layout, RunWindow};
use kvlab_core::memory::{Piece, Region, Regions, read_pieces};
use kvlab_core::run::{RunHeader, RunSource, RunTarget, Terms};
use kvlab_core::tier::disk::DiskTier;
use kvlab_core::tier::{PinnedRun, Put, Tier};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const LAYERS: usize = 30;
const TOKENS: usize = 2048;
const RAW_PIECE: usize = 1 << 20;

struct Restore {
    runs: Vec<(Arc<dyn PinnedRun>, RunTarget)>,
    bytes: u64,
}

fn main() -> Result<()> {
    let (directory, rounds) = arguments()?;
    let layer = LayerLayout {
        k_heads: 3,
        k_dim: 64,
        v_heads: 3,
        v_dim: 64,
    };
    let layout = Layout::new(&[layer; LAYERS], 4, 16)?;
    let scratch = tempfile::tempdir_in(&directory)?;
    let pool = BufferPool::new(1 << 30);
    let buffer = pool.lease(&layout, TOKENS)?;
    let raw_buffer = Region::new(buffer.region().len())?;
    raw_buffer.prefault();

    let mut config = DiskConfig::new(scratch.path().join("store"));
    config.capacity = 2 << 30;
    config.free_reserve = 0;
    let (tier, _) = DiskTier::open(&config)?;
    fill(buffer.region());
    let start = Instant::now();
    let restore = store(&tier, &layout, &buffer)?;
    let written = restore.bytes as f64 / start.elapsed().as_secs_f64() / 1e9;
    let files = tier.segment_files();
    println!(
        "{:.1} MB in {} runs of {LAYERS} slices, {} segment files, written at {written:.2} GB/s, direct: {}",
        restore.bytes as f64 / 1e6,
        restore.runs.len(),
        files.len(),
        tier.stats().direct
    );

    let mut arms = BTreeMap::<String, Vec<f64>>::new();
    for round in 0..=rounds {
        let mut measure = |name: String, work: &dyn Fn() -> Result<u64>| -> Result<()> {
            let resident = tier.drop_page_cache()?;
            if resident > 0 {
                println!("{resident} bytes stayed in the page cache");
            }
            let start = Instant::now();
            let bytes = work()?;
            let speed = bytes as f64 / start.elapsed().as_secs_f64() / 1e9;
            // The first round warms up.
            if round > 0 {
                arms.entry(name).or_default().push(speed);
            }
            Ok(())
        };
        for threads in [1, 2, 4] {
            measure(format!("raw  {threads} threads"), &|| {
                raw(&files, &raw_buffer, restore.bytes, threads)
            })?;
            for slices in [1, 4, 8, 30] {
                measure(
                    format!("tier {threads} threads, {slices:2} slices a job"),
                    &|| restore.read(threads, slices),
                )?;
            }
        }
    }
    report(&mut arms);
    Ok(())
}

fn arguments() -> Result<(PathBuf, usize)> {
    let mut directory = std::env::temp_dir();
    let mut rounds = 9;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--dir" => directory = arguments.next().ok_or("--dir needs a directory")?.into(),
            "--rounds" => rounds = arguments.next().ok_or("--rounds needs a number")?.parse()?,
            // cargo passes `--bench`.
            _ => {}
        }
    }
    Ok((directory, rounds))
}

fn fill(region: &Region) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let noise = (0..region.len() / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    region.write(0, &noise.collect::<Vec<_>>());
}

/// Writes the buffer's tokens as runs, and plans how they come back to where they were.
fn store(
    tier: &DiskTier,
    layout: &Layout,
    buffer: &kvlab_core::buffer::CacheBuffer,
) -> Result<Restore> {
    let namespace = namespace_digest([("bench", b"disk_read".as_slice())]);
    let mut parent = namespace;
    let mut runs = Vec::new();
    let mut bytes = 0;
    let mut at = 0;
    while at < TOKENS {
        let blocks = layout
            .max_run_blocks()
            .min((TOKENS - at) / layout.block_tokens());
        let run_tokens = blocks * layout.block_tokens();
        let window = RunWindow {
            run_tokens,
            kept: 0..run_tokens,
            at,
        };
        let pieces: Vec<Vec<Piece>> = (0..LAYERS)
            .map(|layer| layout.buffer_pieces(buffer.layout(), layer, &window))
            .collect();
        let first = parent;
        let keys: Box<[BlockKey]> = (0..blocks)
            .map(|block| {
                parent = chain_key(&parent, &[(at + block) as u32]);
                parent
            })
            .collect();
        let header = RunHeader {
            namespace,
            parent: first,
            keys,
            block_tokens: layout.block_tokens() as u32,
            slices: layout.slice_lengths(blocks),
            terms: Terms::default(),
        };
        let source = RunSource {
            region: Arc::clone(buffer.region()),
            lease: None,
            slices: pieces.clone(),
        };
        if tier.put(&header, &source)? != Put::Stored {
            return Err("the tier did not store a run".into());
        }
        bytes += header.payload_bytes();
        let (pinned, _) = tier.find(&parent).ok_or("a run is not found")?;
        let target = RunTarget {
            region: Arc::clone(buffer.region()),
            lease: None,
            slices: pieces,
        };
        runs.push((pinned, target));
        at += run_tokens;
    }
    Ok(Restore { runs, bytes })
}

impl Restore {
    /// Reads everything with so many threads, each taking so many slices of a run at a time.
    fn read(&self, threads: usize, slices: usize) -> Result<u64> {
        let jobs: Vec<_> = (0..LAYERS)
            .step_by(slices)
            .flat_map(|first| self.runs.iter().map(move |run| (first, run)))
            .collect();
        let next = AtomicUsize::new(0);
        let failed = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some((first, (pinned, target))) =
                        jobs.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        let range = *first..(first + slices).min(LAYERS);
                        if pinned.read_slices(range, target).is_err() {
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        match failed.into_inner() {
            0 => Ok(self.bytes),
            failed => Err(format!("{failed} reads failed").into()),
        }
    }
}

/// Reads `bytes` bytes of the files past the page cache, in order.
fn raw(files: &[PathBuf], buffer: &Region, bytes: u64, threads: usize) -> Result<u64> {
    let files = files
        .iter()
        .map(|path| open_direct(path))
        .collect::<std::io::Result<Vec<_>>>()?;
    let mut jobs = Vec::new();
    let mut at = 0;
    for file in &files {
        let len = file.metadata()?.len().min(bytes - at as u64) as usize / RAW_PIECE * RAW_PIECE;
        for offset in (0..len).step_by(RAW_PIECE) {
            jobs.push((file, offset as u64, at + offset));
        }
        at += len;
    }
    let next = AtomicUsize::new(0);
    let failed = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((file, offset, at)) = jobs.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let piece = Piece {
                        spare: false,
                        offset: *at,
                        len: RAW_PIECE,
                    };
                    let regions = Regions {
                        main: buffer,
                        spare: buffer,
                    };
                    if read_pieces(*offset, regions, &[piece], |vectors, offset| {
                        vectors.read(file, offset)
                    })
                    .is_err()
                    {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    match failed.into_inner() {
        0 => Ok((jobs.len() * RAW_PIECE) as u64),
        failed => Err(format!("{failed} raw reads failed").into()),
    }
}

#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> std::io::Result<File> {
    let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

#[cfg(not(target_os = "linux"))]
fn open_direct(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).custom_flags(0).open(path)
}

fn report(arms: &mut BTreeMap<String, Vec<f64>>) {
    let mut best_raw = 0.0_f64;
    for (name, speeds) in arms.iter_mut() {
        speeds.sort_by(f64::total_cmp);
        if name.starts_with("raw") {
            best_raw = best_raw.max(speeds[speeds.len() / 2]);
        }
    }
    println!("{:32} {:>7}  {:>13}  of best raw", "", "GB/s", "range");
    for (name, speeds) in arms {
        let median = speeds[speeds.len() / 2];
        println!(
            "{name:32} {median:7.2}  {:5.2} - {:5.2}  {:.2}x the time",
            speeds[0],
            speeds[speeds.len() - 1],
            best_raw / median
        );
    }
}
