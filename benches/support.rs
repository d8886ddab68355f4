//! What the benches of the disk share: arguments, the prompt of the results, raw I/O to compare with, and how samples are shown.
#![allow(dead_code, reason = "each bench uses its own part")]

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kvlab_core::buffer::CacheBuffer;
use kvlab_core::key::{BlockKey, chain_keys, namespace_digest};
use kvlab_core::layout::{LayerLayout, Layout, RunWindow};
use kvlab_core::memory::{Piece, Region, Regions, read_ranges, write_pieces};
use kvlab_core::run::{RunHeader, RunSource, RunTarget, Terms};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

pub(crate) const LAYERS: usize = 30;
pub(crate) const TOKENS: usize = 2048;

/// What all of these benches are told.
pub(crate) struct Arguments {
    /// The disk that is measured.
    pub(crate) directory: PathBuf,
    /// Rounds after the warm-up.
    pub(crate) rounds: usize,
    /// Everything, at the size of the published figures.
    pub(crate) full: bool,
    /// One JSON object instead of a table.
    pub(crate) json: bool,
}

impl Arguments {
    /// Reads `[--dir DIR] [--rounds N] [--full] [--json]`.
    pub(crate) fn read(rounds: usize) -> Result<Self> {
        let mut read = Self {
            directory: std::env::temp_dir(),
            rounds,
            full: false,
            json: false,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = |what| {
                let value = arguments.next();
                value.ok_or(format!("{argument} needs a {what}"))
            };
            match argument.as_str() {
                "--dir" => read.directory = value("directory")?.into(),
                "--rounds" => read.rounds = value("number")?.parse()?,
                "--full" => read.full = true,
                "--json" => read.json = true,
                // cargo passes it.
                "--bench" => {}
                _ => {
                    return Err(format!(
                        "{argument:?} is unknown; use --dir DIR, --rounds N, --full, --json"
                    )
                    .into());
                }
            }
        }
        Ok(read)
    }
}

/// The layout of SmolLM2-135M in fp32.
pub(crate) fn layout() -> Result<Layout> {
    layout_of(4)
}

/// The layout of SmolLM2-135M with elements of so many bytes.
pub(crate) fn layout_of(element_bytes: u32) -> Result<Layout> {
    let layer = LayerLayout {
        k_heads: 3,
        k_dim: 64,
        v_heads: 3,
        v_dim: 64,
    };
    Ok(Layout::new(&[layer; LAYERS], element_bytes, 16)?)
}

/// Fills a region with bytes that neither compress nor repeat.
pub(crate) fn fill(region: &Region) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let noise = (0..region.len() / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    region.write(0, &noise.collect::<Vec<_>>());
}

/// The tokens of a whole buffer, as runs of the largest size.
pub(crate) struct Prompt {
    pub(crate) keys: Vec<BlockKey>,
    pub(crate) runs: Vec<(RunHeader, Vec<Vec<Piece>>)>,
}

impl Prompt {
    /// Prompts of different numbers share nothing.
    pub(crate) fn new(layout: &Layout, buffer: &CacheBuffer, number: u64) -> Self {
        let namespace = namespace_digest([("bench", number.to_le_bytes().as_slice())]);
        let tokens = (0..TOKENS as u32).collect::<Vec<_>>();
        let mut keys = Vec::new();
        chain_keys(namespace, &tokens, layout.block_tokens(), &mut keys);
        let most = layout.max_run_blocks();
        let runs = keys.chunks(most).enumerate().map(|(index, chunk)| {
            let first = index * most;
            let run_tokens = chunk.len() * layout.block_tokens();
            let window = RunWindow {
                run_tokens,
                kept: 0..run_tokens,
                at: first * layout.block_tokens(),
            };
            let header = RunHeader {
                namespace,
                parent: first
                    .checked_sub(1)
                    .map_or(namespace, |before| keys[before]),
                keys: chunk.into(),
                block_tokens: layout.block_tokens() as u32,
                slices: layout.slice_lengths(chunk.len()),
                terms: Terms::default(),
            };
            let pieces = (0..LAYERS)
                .map(|layer| layout.buffer_pieces(buffer.layout(), layer, &window))
                .collect();
            (header, pieces)
        });
        Self {
            runs: runs.collect(),
            keys,
        }
    }

    /// Payload bytes in all.
    pub(crate) fn bytes(&self) -> u64 {
        self.runs.iter().map(|(run, _)| run.payload_bytes()).sum()
    }
}

/// Where a run is taken from.
pub(crate) fn source(region: &Arc<Region>, pieces: &[Vec<Piece>]) -> RunSource {
    RunSource {
        region: Arc::clone(region),
        lease: None,
        slices: pieces.to_vec(),
    }
}

/// Where a run goes.
pub(crate) fn target(region: &Arc<Region>, pieces: &[Vec<Piece>]) -> RunTarget {
    RunTarget {
        region: Arc::clone(region),
        lease: None,
        slices: pieces.to_vec(),
    }
}

/// Opens a file for reading and writing, past the page cache or not.
pub(crate) fn open(path: &Path, create: bool, direct: bool) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(create);
    #[cfg(target_os = "linux")]
    if direct {
        options.custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed());
    }
    #[cfg(not(target_os = "linux"))]
    options.custom_flags(i32::from(direct) * 0);
    options.open(path)
}

/// Runs `work` on `threads` threads until it has been called with every number below `count`.
pub(crate) fn in_parallel(
    threads: usize,
    count: usize,
    work: impl Fn(usize) -> std::io::Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let threads = (0..threads).map(|_| {
            scope.spawn(|| -> std::io::Result<()> {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return Ok(());
                    }
                    work(index)?;
                }
            })
        });
        let threads = threads.collect::<Vec<_>>();
        for thread in threads {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        Ok(())
    })
}

/// One `pread` or `pwrite` of a contiguous range.
pub(crate) fn transfer(
    file: &File,
    offset: u64,
    region: &Region,
    at: usize,
    len: usize,
    write: bool,
) -> std::io::Result<()> {
    if write {
        let regions = Regions {
            main: region,
            spare: region,
        };
        let piece = Piece {
            spare: false,
            offset: at,
            len,
        };
        write_pieces(offset, regions, &[piece], |vectors, offset| {
            vectors.write(file, offset)
        })
    } else {
        read_ranges(offset, &[(region, at, len)], |vectors, offset| {
            vectors.read(file, offset)
        })
    }
}

/// Samples by arm, in the order of the arms' names.
#[derive(Default)]
pub(crate) struct Arms(pub(crate) BTreeMap<String, Vec<f64>>);

impl Arms {
    pub(crate) fn add(&mut self, name: impl Into<String>, sample: f64) {
        self.0.entry(name.into()).or_default().push(sample);
    }

    /// Median, least and greatest sample of each arm.
    pub(crate) fn summaries(&self) -> impl Iterator<Item = (&str, f64, f64, f64)> {
        self.0.iter().map(|(name, samples)| {
            let mut sorted = samples.clone();
            sorted.sort_by(f64::total_cmp);
            let (least, greatest) = (sorted[0], sorted[sorted.len() - 1]);
            (&**name, sorted[sorted.len() / 2], least, greatest)
        })
    }

    /// A table for people, or one JSON object: `{"title": .., "unit": .., "results": [{"name", "median", "min", "max", "samples"}]}`.
    pub(crate) fn show(&self, title: &str, unit: &str, json: bool) -> String {
        let mut out = String::new();
        if !json {
            let _ = writeln!(out, "{title}; {unit}, median (range)");
            for (name, median, least, greatest) in self.summaries() {
                let _ = writeln!(out, "{name:60} {median:9.3} ({least:.3}-{greatest:.3})");
            }
            return out;
        }
        let rows = self.summaries().map(|(name, median, least, greatest)| {
            let samples = self.0[name].len();
            format!(
                r#"{{"name": "{name}", "median": {median:.4}, "min": {least:.4}, "max": {greatest:.4}, "samples": {samples}}}"#
            )
        });
        let rows = rows.collect::<Vec<_>>().join(",\n  ");
        let _ = writeln!(
            out,
            r#"{{"title": "{title}", "unit": "{unit}", "results": [
  {rows}
]}}"#
        );
        out
    }
}
