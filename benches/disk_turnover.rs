//! L3 at its capacity: runs of 0.25 to 4 MiB are stored until ten times the capacity was, some being used now and then, so that what
//! is evicted lies scattered. What the directory takes on disk beside the payload that is live, and what was written beside the
//! payload that was admitted.
//! `cargo bench --bench disk_turnover -- [--dir DIR] [--rounds N] [--full] [--json]`: N times the capacity; full: 4 GiB of it.
#![expect(clippy::print_stdout, reason = "it prints a table")]

mod support;

use std::collections::VecDeque;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use kvlab_core::config::DiskConfig;
use kvlab_core::key::{BlockKey, chain_key, namespace_digest};
use kvlab_core::memory::{Piece, Region};
use kvlab_core::run::{RunHeader, RunSource, Terms};
use kvlab_core::tier::disk::DiskTier;
use kvlab_core::tier::{Put, Tier};
use support::{Arguments, Arms, Result, fill};

/// Layers of a run.
const SLICES: usize = 30;
/// A block of them: 64 KiB.
const BLOCK_BYTES: usize = 64 << 10;
/// Runs of a chain, at most.
const CHAIN: u64 = 8;

/// Numbers that are the same in every run of the bench.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn run(parent: BlockKey, number: u64, blocks: usize) -> RunHeader {
    let mut at = parent;
    let keys = (0..blocks as u32).map(|block| {
        at = chain_key(&at, &[number as u32, block]);
        at
    });
    RunHeader {
        namespace: namespace_digest([("bench", b"turnover".as_slice())]),
        parent,
        keys: keys.collect(),
        block_tokens: 16,
        slices: [(blocks * BLOCK_BYTES / SLICES) as u32; SLICES].into(),
        terms: Terms::default(),
    }
}

fn source(header: &RunHeader, region: &Arc<Region>) -> RunSource {
    let mut offset = 0;
    let slices = header.slices.iter().map(|&len| {
        let piece = Piece {
            spare: false,
            offset,
            len: len as usize,
        };
        offset += piece.len;
        vec![piece]
    });
    RunSource {
        region: Arc::clone(region),
        lease: None,
        slices: slices.collect(),
    }
}

/// Bytes that the files whose names `wanted` takes have on disk.
fn disk_bytes(path: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if !wanted(&entry.file_name().to_string_lossy()) {
            continue;
        }
        let status = entry.metadata()?;
        bytes += status.blocks() * 512;
        if status.is_dir() {
            bytes += disk_bytes(&entry.path(), &|_| true)?;
        }
    }
    Ok(bytes)
}

/// Bytes that this process has had written, page cache included.
#[cfg(target_os = "linux")]
fn written() -> Result<u64> {
    let counts = std::fs::read_to_string("/proc/self/io")?;
    let line = counts
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: "));
    Ok(line
        .ok_or("no write_bytes in /proc/self/io")?
        .trim()
        .parse()?)
}

#[cfg(not(target_os = "linux"))]
fn written() -> Result<u64> {
    Err("the bytes written are counted on Linux only".into())
}

fn is_segment(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|end| end == "seg")
}

fn main() -> Result<()> {
    let arguments = Arguments::read(10)?;
    let capacity: u64 = if arguments.full { 4 << 30 } else { 512 << 20 };
    let scratch = tempfile::tempdir_in(&arguments.directory)?;
    let path = scratch.path().join("store");
    let config = DiskConfig {
        capacity,
        free_reserve: 0,
        ..DiskConfig::new(path.clone())
    };
    let (tier, _) = DiskTier::open(&config)?;
    let region = Arc::new(Region::new(4 << 20)?);
    fill(&region);
    let namespace = namespace_digest([("bench", b"turnover".as_slice())]);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut recent: VecDeque<BlockKey> = VecDeque::new();
    let (mut parent, mut admitted, mut number) = (namespace, 0, 0);
    let before = written()?;
    let mut ratios = Arms::default();
    let mut next = capacity;
    let mut compare = |when: &str, admitted: u64| -> Result<()> {
        let live: u64 = tier
            .namespaces()
            .iter()
            .map(|usage| usage.payload_bytes)
            .sum();
        let live = live as f64;
        let all = disk_bytes(&path, &|_| true)? as f64;
        let segments = disk_bytes(&path, &is_segment)? as f64;
        let records = tier.stats().live_bytes as f64;
        ratios.add(format!("{when}: on disk / live payload"), all / live);
        ratios.add(
            format!("{when}: of it, headers and padding"),
            (records - live) / live,
        );
        ratios.add(
            format!("{when}: of it, segments beside records"),
            (segments - records) / live,
        );
        ratios.add(
            format!("{when}: of it, index and the rest"),
            (all - segments) / live,
        );
        let written = (written()? - before) as f64;
        ratios.add(
            format!("{when}: written / admitted"),
            written / admitted as f64,
        );
        Ok(())
    };
    while admitted < capacity * arguments.rounds as u64 {
        number += 1;
        if random.below(CHAIN) == 0 {
            parent = namespace;
        }
        let header = run(parent, number, 4 + random.below(61) as usize);
        match tier.put(&header, &source(&header, &region))? {
            Put::Stored => {}
            // What comes before it was evicted: a new chain.
            Put::Refused(kvlab_core::tier::Refusal::ParentMissing) => {
                parent = namespace;
                continue;
            }
            put => return Err(format!("a run was not stored: {put:?}").into()),
        }
        admitted += header.payload_bytes();
        parent = header.keys[header.keys.len() - 1];
        recent.push_back(parent);
        if recent.len() > 400 {
            recent.pop_front();
        }
        for _ in 0..2 {
            let used = recent[random.below(recent.len() as u64) as usize];
            drop(tier.find(&used));
        }
        if admitted >= next {
            next += capacity;
            if next > 2 * capacity {
                compare("under way", admitted)?;
            }
        }
    }
    tier.flush()?;
    compare("at the end", admitted)?;
    tier.close()?;
    let all = disk_bytes(&path, &|_| true)? as f64;
    let (tier, _) = DiskTier::open(&config)?;
    let live: u64 = tier
        .namespaces()
        .iter()
        .map(|usage| usage.payload_bytes)
        .sum();
    ratios.add("closed: on disk / live payload", all / live as f64);
    tier.close()?;
    let title = format!(
        "{} MiB of capacity, {:.1} GiB admitted in {number} runs",
        capacity >> 20,
        admitted as f64 / f64::from(1 << 30)
    );
    println!("{}", ratios.show(&title, "times", arguments.json));
    Ok(())
}
