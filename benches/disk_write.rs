//! Sustained write-through against plain `pwrite` of as many bytes: prompts of 2,048 tokens go out of a cache buffer through
//! the write queue to L3, gathered and checksummed; the plain arms write from contiguous memory to one file. Every arm ends
//! with `fdatasync`. The arms take turns; the first round warms up.
//! `cargo bench --bench disk_write -- [--dir DIR] [--rounds N] [--full] [--json]`; `--full` writes 4 GiB an arm, else 1 GiB.
#![expect(clippy::print_stdout, reason = "it prints a table")]

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use kvlab_core::buffer::{BufferPool, CacheBuffer};
use kvlab_core::config::{DiskConfig, StoreConfig};
use kvlab_core::layout::Layout;
use kvlab_core::memory::Region;
use kvlab_core::store::BlockStore;
use kvlab_core::tier::{Put, Refusal};
use support::{Arguments, Arms, Prompt, Result, fill, in_parallel, layout, open, source, transfer};

const LIMIT: Duration = Duration::from_secs(120);

/// A way to write plainly.
struct Plain {
    name: &'static str,
    direct: bool,
    preallocated: bool,
    piece: usize,
    threads: usize,
}

const PLAIN: [Plain; 6] = [
    Plain::new("plain, direct, 1 MiB", true, false, 1),
    Plain::new("plain, direct, 4 MiB", true, false, 4),
    Plain::new("plain, direct, preallocated, 4 MiB", true, true, 4),
    Plain::new("plain, direct, preallocated, 16 MiB", true, true, 16),
    Plain::new("plain, buffered, preallocated, 4 MiB", false, true, 4),
    Plain {
        threads: 2,
        ..Plain::new("two threads, direct, preallocated, 4 MiB", true, true, 4)
    },
];

impl Plain {
    const fn new(name: &'static str, direct: bool, preallocated: bool, mebibytes: usize) -> Self {
        Self {
            name,
            direct,
            preallocated,
            piece: mebibytes << 20,
            threads: 1,
        }
    }

    /// Seconds to write `bytes` bytes and have them on the disk.
    fn write(&self, directory: &Path, memory: &Region, bytes: u64) -> Result<f64> {
        let path = directory.join("plain");
        let pieces = (bytes / self.piece as u64) as usize;
        let places = memory.len() / self.piece;
        let file = open(&path, true, self.direct)?;
        let start = Instant::now();
        if self.preallocated {
            preallocate(&file, bytes)?;
        }
        in_parallel(self.threads, pieces, |index| {
            let offset = (index * self.piece) as u64;
            let at = index % places * self.piece;
            transfer(&file, offset, memory, at, self.piece, true)
        })?;
        file.sync_data()?;
        let seconds = start.elapsed().as_secs_f64();
        drop(file);
        std::fs::remove_file(path)?;
        Ok(seconds)
    }
}

#[cfg(target_os = "linux")]
fn preallocate(file: &std::fs::File, bytes: u64) -> Result<()> {
    Ok(rustix::fs::fallocate(
        file,
        rustix::fs::FallocateFlags::empty(),
        0,
        bytes,
    )?)
}

#[cfg(not(target_os = "linux"))]
fn preallocate(file: &std::fs::File, bytes: u64) -> Result<()> {
    Ok(file.set_len(bytes)?)
}

fn main() -> Result<()> {
    let arguments = Arguments::read(5)?;
    let bytes: u64 = if arguments.full { 4 << 30 } else { 1 << 30 };
    let layout = layout()?;
    let buffer = BufferPool::new(1 << 30).lease(&layout, support::TOKENS)?;
    fill(buffer.region());
    let memory = Region::new(96 << 20)?;
    fill(&memory);
    let scratch = tempfile::tempdir_in(&arguments.directory)?;
    let mut arms = Arms::default();
    let mut ratios = Arms::default();
    for round in 0..=arguments.rounds {
        let mut plain = 0.0_f64;
        for arm in &PLAIN {
            let speed = bytes as f64 / arm.write(scratch.path(), &memory, bytes)? / 1e9;
            if round > 0 {
                arms.add(arm.name, speed);
            }
            if arm.threads == 1 {
                plain = plain.max(speed);
            }
        }
        for durable in [false, true] {
            let name = if durable { "kvlab, durable" } else { "kvlab" };
            let (written, seconds) = through(scratch.path(), &layout, &buffer, bytes, durable)?;
            let speed = written as f64 / seconds / 1e9;
            if round > 0 {
                arms.add(name, speed);
                ratios.add(format!("{name} / best plain of its round"), speed / plain);
            }
        }
    }
    let title = format!(
        "{:.1} GiB an arm, written and synced",
        bytes as f64 / f64::from(1 << 30)
    );
    println!("{}", arms.show(&title, "GB/s", arguments.json));
    println!(
        "{}",
        ratios.show(
            "One thread's plain pwrite is 1",
            "of its speed",
            arguments.json
        )
    );
    Ok(())
}

/// Writes `bytes` bytes or a little more through a new store; the bytes and the seconds.
fn through(
    directory: &Path,
    layout: &Layout,
    buffer: &CacheBuffer,
    bytes: u64,
    durable: bool,
) -> Result<(u64, f64)> {
    let mut disk = DiskConfig::new(directory.join("store"));
    disk.durable = durable;
    let path = disk.path.clone();
    let store = BlockStore::open(&StoreConfig {
        l2_bytes: 0,
        disk: Some(disk),
        ..StoreConfig::default()
    })?;
    let prompts = (0..)
        .map(|number| Prompt::new(layout, buffer, number))
        .take(bytes.div_ceil(Prompt::new(layout, buffer, 0).bytes()) as usize)
        .collect::<Vec<_>>();
    let start = Instant::now();
    let mut written = 0;
    for (header, pieces) in prompts.iter().flat_map(|prompt| &prompt.runs) {
        loop {
            match store.write_through(header.clone(), source(buffer.region(), pieces))? {
                Put::Queued => break,
                Put::Refused(Refusal::QueueFull) => std::thread::sleep(Duration::from_millis(1)),
                put => return Err(format!("a run was not queued: {put:?}").into()),
            }
        }
        written += header.payload_bytes();
    }
    store.flush(LIMIT)?;
    let seconds = start.elapsed().as_secs_f64();
    let stats = store.stats()?;
    if stats.l3.write_bytes != written {
        return Err(format!("{} of {written} bytes were written", stats.l3.write_bytes).into());
    }
    store.close(LIMIT)?;
    drop(store);
    std::fs::remove_dir_all(path)?;
    Ok((written, seconds))
}
