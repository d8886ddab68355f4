//! L3 against the disk itself: 94 MB of KV (2,048 tokens of SmolLM2-135M in fp32) read from the disk tier into a cache buffer,
//! and as many bytes of the same files read raw. All arms read past the page cache into touched memory, in turns; a figure is
//! the median of the rounds, and a ratio compares a read with the fastest raw read of its own round.
//! `cargo bench --bench disk_read -- [--dir DIR] [--rounds N] [--full] [--json]`; `--full` tries more threads and job sizes.
#![expect(clippy::print_stdout, reason = "it prints a table")]

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use kvlab_core::buffer::{BufferPool, CacheBuffer};
use kvlab_core::config::DiskConfig;
use kvlab_core::layout::Layout;
use kvlab_core::memory::Region;
use kvlab_core::run::RunTarget;
use kvlab_core::tier::disk::DiskTier;
use kvlab_core::tier::{PinnedRun, Put, Tier};
use support::{Arguments, Arms, LAYERS, Prompt, Result, fill, in_parallel, open, target, transfer};

const RAW_PIECE: usize = 1 << 20;

/// Runs in the tier, and where they go.
struct Restore {
    runs: Vec<(Arc<dyn PinnedRun>, RunTarget)>,
    bytes: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::read(9)?;
    let layout = support::layout()?;
    let scratch = tempfile::tempdir_in(&arguments.directory)?;
    let buffer = BufferPool::new(1 << 30).lease(&layout, support::TOKENS)?;
    let memory = Region::new(buffer.region().len())?;
    memory.prefault();
    let mut config = DiskConfig::new(scratch.path().join("store"));
    config.capacity = 2 << 30;
    config.free_reserve = 0;
    let (tier, _) = DiskTier::open(&config)?;
    fill(buffer.region());
    let restore = Restore::new(&tier, &layout, &buffer)?;
    let files = tier.segment_files();
    let (threads, jobs): (&[usize], &[usize]) = if arguments.full {
        (&[1, 2, 4], &[1, 2, 4, 8, LAYERS])
    } else {
        (&[2, 4], &[4, 8])
    };
    let (mut speeds, mut ratios) = (Arms::default(), Arms::default());
    for round in 0..=arguments.rounds {
        let measure = |work: &dyn Fn() -> Result<()>| -> Result<f64> {
            let resident = tier.drop_page_cache()?;
            if resident > 0 {
                return Err(format!("{resident} bytes stayed in the page cache").into());
            }
            let start = Instant::now();
            work()?;
            Ok(restore.bytes as f64 / start.elapsed().as_secs_f64() / 1e9)
        };
        let mut seen = Vec::new();
        let mut fastest = 0.0_f64;
        for &threads in threads {
            let speed = measure(&|| raw(&files, &memory, restore.bytes, threads))?;
            fastest = fastest.max(speed);
            seen.push((format!("raw, {threads} threads"), speed, false));
            for &slices in jobs {
                let speed = measure(&|| restore.read(threads, slices))?;
                let name = format!("tier, {threads} threads, {slices:2} slices a job");
                seen.push((name, speed, true));
            }
        }
        // The first round warms up.
        for (name, speed, is_tier) in seen.into_iter().filter(|_| round > 0) {
            if is_tier {
                ratios.add(&*name, fastest / speed);
            }
            speeds.add(name, speed);
        }
    }
    let title = format!(
        "{:.1} MB in {} runs of {LAYERS} slices, cold, direct: {}",
        restore.bytes as f64 / 1e6,
        restore.runs.len(),
        tier.stats().direct
    );
    println!("{}", speeds.show(&title, "GB/s", arguments.json));
    println!(
        "{}",
        ratios.show(
            "The fastest raw read of the round is 1",
            "times as long",
            arguments.json
        )
    );
    Ok(())
}

impl Restore {
    /// Writes the buffer's tokens as runs, and plans how they come back to where they were.
    fn new(tier: &DiskTier, layout: &Layout, buffer: &CacheBuffer) -> Result<Self> {
        let prompt = Prompt::new(layout, buffer, 0);
        let mut runs = Vec::new();
        for (header, pieces) in &prompt.runs {
            let source = support::source(buffer.region(), pieces);
            if tier.put(header, &source)? != Put::Stored {
                return Err("the tier did not store a run".into());
            }
            let (pinned, _) = tier.find(&header.keys[0]).ok_or("a run is not found")?;
            runs.push((pinned, target(buffer.region(), pieces)));
        }
        Ok(Self {
            runs,
            bytes: prompt.bytes(),
        })
    }

    /// Reads everything with so many threads, each taking so many slices of a run at a time.
    fn read(&self, threads: usize, slices: usize) -> Result<()> {
        let jobs = (0..LAYERS)
            .step_by(slices)
            .flat_map(|first| self.runs.iter().map(move |run| (first, run)))
            .collect::<Vec<_>>();
        in_parallel(threads, jobs.len(), |index| {
            let (first, (pinned, target)) = &jobs[index];
            let range = *first..(first + slices).min(LAYERS);
            let read = pinned.read_slices(range, target);
            read.map_err(|failure| std::io::Error::other(format!("{failure:?}")))
        })
    }
}

/// Reads `bytes` bytes of the files past the page cache, in order.
fn raw(files: &[PathBuf], memory: &Region, bytes: u64, threads: usize) -> Result<()> {
    let files = files.iter().map(|path| open(path, false, true));
    let files = files.collect::<std::io::Result<Vec<_>>>()?;
    let mut jobs = Vec::new();
    let mut at = 0;
    for file in &files {
        let len = file.metadata()?.len().min(bytes - at as u64) as usize / RAW_PIECE * RAW_PIECE;
        for offset in (0..len).step_by(RAW_PIECE) {
            jobs.push((file, offset, at + offset));
        }
        at += len;
    }
    in_parallel(threads, jobs.len(), |index| {
        let (file, offset, at) = jobs[index];
        transfer(file, offset as u64, memory, at, RAW_PIECE, false)
    })
}
