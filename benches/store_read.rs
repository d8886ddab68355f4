//! The block store's read path: 94 MB of KV (2,048 tokens of SmolLM2-135M in fp32) from L3 and from L2 into a touched buffer,
//! and what planning and issuing a prefetch cost the caller. Median and range over interleaved rounds.
//! `cargo bench --bench store_read -- [--dir DIR] [--rounds N]`.
#![expect(clippy::print_stdout, reason = "it prints a table")]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvlab_core::buffer::{BufferPool, CacheBuffer};
use kvlab_core::config::{DiskConfig, StoreConfig};
use kvlab_core::key::{BlockKey, chain_keys, namespace_digest};
use kvlab_core::layout::{LayerLayout, Layout, RunWindow};
use kvlab_core::memory::{Piece, Region};
use kvlab_core::run::{RunHeader, RunSource, RunTarget, Terms};
use kvlab_core::store::{BlockStore, ReadRequest};

type Result<T> = std::result::Result<T, Box<dyn Error>>;
/// For each arm: milliseconds of every round.
type Arms = BTreeMap<String, Vec<f64>>;

const LAYERS: usize = 30;
const TOKENS: usize = 2048;
const LIMIT: Duration = Duration::from_secs(60);

struct Prompt {
    keys: Vec<BlockKey>,
    runs: Vec<(RunHeader, Vec<Vec<Piece>>)>,
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
    let buffer = BufferPool::new(1 << 30).lease(&layout, TOKENS)?;
    let prompt = Prompt::new(&layout, &buffer);
    let copy = Region::new(buffer.region().len())?;
    copy.prefault();
    let mut arms = Arms::new();
    for workers in [2, 4] {
        let scratch = tempfile::tempdir_in(&directory)?;
        let mut disk = DiskConfig::new(scratch.path().join("store"));
        disk.capacity = 2 << 30;
        disk.free_reserve = 0;
        let store = BlockStore::open(&StoreConfig {
            l2_bytes: 512 << 20,
            disk: Some(disk),
            io_workers: workers,
            ..StoreConfig::default()
        })?;
        for (header, pieces) in &prompt.runs {
            store.write_through(header.clone(), Prompt::source(&buffer, pieces))?;
        }
        store.flush(LIMIT)?;
        for round in 0..=rounds {
            // The first round warms up.
            let mut arm = |name: &str, work: &mut dyn FnMut() -> Result<()>| -> Result<()> {
                let start = Instant::now();
                work()?;
                let took = start.elapsed().as_secs_f64() * 1e3;
                if round > 0 {
                    let name = format!("{workers} workers: {name}");
                    arms.entry(name).or_default().push(took);
                }
                Ok(())
            };
            arm("one memcpy of as many bytes", &mut || {
                copy.copy_from(0, buffer.region(), 0, copy.len());
                Ok(())
            })?;
            store.disk().ok_or("no disk")?.drop_page_cache()?;
            arm("plan", &mut || {
                store.plan(&prompt.keys)?;
                Ok(())
            })?;
            arm("read L3, first layer", &mut || {
                prompt.read(&store, &buffer, 1)
            })?;
            store.disk().ok_or("no disk")?.drop_page_cache()?;
            arm("read L3", &mut || prompt.read(&store, &buffer, LAYERS))?;
            store.disk().ok_or("no disk")?.drop_page_cache()?;
            let mut ticket = None;
            arm("issue a prefetch", &mut || {
                ticket = Some(store.prefetch(&prompt.keys)?);
                Ok(())
            })?;
            let ticket = ticket.ok_or("no ticket")?;
            arm("prefetch to L2", &mut || {
                ticket.wait(LIMIT);
                Ok(())
            })?;
            arm("read L2", &mut || prompt.read(&store, &buffer, LAYERS))?;
            store.evict_l2(LIMIT)?;
            arm("demote to L2", &mut || {
                for (header, pieces) in &prompt.runs {
                    store.demote(header.clone(), Prompt::source(&buffer, pieces))?;
                }
                Ok(())
            })?;
            store.evict_l2(LIMIT)?;
        }
    }
    let bytes = prompt.runs.iter().map(|(run, _)| run.payload_bytes());
    println!(
        "{:.1} MB in {} runs; milliseconds, median (range)",
        bytes.sum::<u64>() as f64 / 1e6,
        prompt.runs.len()
    );
    for (name, times) in &mut arms {
        times.sort_by(f64::total_cmp);
        let (first, last) = (times[0], times[times.len() - 1]);
        println!(
            "{name:45} {:9.3} ({first:.3}-{last:.3})",
            times[times.len() / 2]
        );
    }
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

impl Prompt {
    /// The whole buffer as runs of the largest size.
    fn new(layout: &Layout, buffer: &CacheBuffer) -> Self {
        let namespace = namespace_digest([("bench", b"store_read".as_slice())]);
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

    fn source(buffer: &CacheBuffer, pieces: &[Vec<Piece>]) -> RunSource {
        RunSource {
            region: Arc::clone(buffer.region()),
            lease: None,
            slices: pieces.to_vec(),
        }
    }

    /// Reads the prompt back to where it was; ends when the first `layers` layers are there.
    fn read(&self, store: &BlockStore, buffer: &CacheBuffer, layers: usize) -> Result<()> {
        let steps = store.plan(&self.keys)?.steps;
        let requests = steps
            .into_iter()
            .zip(&self.runs)
            .map(|(step, (_, pieces))| ReadRequest {
                step,
                target: RunTarget {
                    region: Arc::clone(buffer.region()),
                    lease: None,
                    slices: pieces.clone(),
                },
            });
        let requests = requests.collect::<Vec<_>>();
        if requests.len() != self.runs.len() {
            return Err("the prompt is not in the store".into());
        }
        let ticket = store.read(requests)?;
        for layer in 0..layers {
            ticket.wait_slice(layer, LIMIT)?;
        }
        if layers == LAYERS && ticket.wait().failure.is_some() {
            return Err("a run did not arrive".into());
        }
        ticket.cancel();
        Ok(())
    }
}
