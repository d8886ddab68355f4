//! The block store's read path: 94 MB of KV (2,048 tokens of SmolLM2-135M in fp32) from L3 and from L2 into a touched buffer,
//! and what planning and issuing a prefetch cost the caller; then 1,024 opaque blocks of 64 KiB from L3, one by one by several
//! threads, as a batch, and as a batch into memory of the caller's. Median and range over interleaved rounds.
//! `cargo bench --bench store_read -- [--dir DIR] [--rounds N] [--json]`.
#![expect(clippy::print_stdout, reason = "it prints a table")]

mod support;

use std::time::{Duration, Instant};

use kvlab_core::buffer::{BufferPool, CacheBuffer};
use kvlab_core::config::{DiskConfig, StoreConfig};
use kvlab_core::key::{chain_key, namespace_digest};
use kvlab_core::memory::{PAGE, Region, WritableBuffer};
use kvlab_core::store::{BlockStore, ReadRequest};
use support::{Arguments, Arms, LAYERS, Prompt, Result, in_parallel, source, target};

const LIMIT: Duration = Duration::from_secs(60);
/// Small blocks, and the bytes of each.
const BLOCKS: usize = 1024;
const BLOCK: usize = 64 << 10;

fn main() -> Result<()> {
    let arguments = Arguments::read(9)?;
    let layout = support::layout()?;
    let buffer = BufferPool::new(1 << 30).lease(&layout, support::TOKENS)?;
    let prompt = Prompt::new(&layout, &buffer, 0);
    let copy = Region::new(buffer.region().len())?;
    copy.prefault();
    let mut arms = Arms::default();
    for workers in [2, 4] {
        let scratch = tempfile::tempdir_in(&arguments.directory)?;
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
            store.write_through(header.clone(), source(buffer.region(), pieces))?;
        }
        store.flush(LIMIT)?;
        for round in 0..=arguments.rounds {
            // The first round warms up.
            let mut arm = |name: &str, work: &mut dyn FnMut() -> Result<()>| -> Result<()> {
                let start = Instant::now();
                work()?;
                let took = start.elapsed().as_secs_f64() * 1e3;
                if round > 0 {
                    let name = format!("{workers} workers: {name}");
                    arms.add(name, took);
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
                read(&store, &prompt, &buffer, 1)
            })?;
            store.disk().ok_or("no disk")?.drop_page_cache()?;
            arm("read L3", &mut || read(&store, &prompt, &buffer, LAYERS))?;
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
            arm("read L2", &mut || read(&store, &prompt, &buffer, LAYERS))?;
            store.evict_l2(LIMIT)?;
            arm("demote to L2", &mut || {
                for (header, pieces) in &prompt.runs {
                    store.demote(header.clone(), source(buffer.region(), pieces))?;
                }
                Ok(())
            })?;
            store.evict_l2(LIMIT)?;
        }
    }
    let title = format!(
        "{:.1} MB in {} runs",
        prompt.bytes() as f64 / 1e6,
        prompt.runs.len()
    );
    println!("{}", arms.show(&title, "milliseconds", arguments.json));
    small_blocks(&arguments)
}

/// Many small records, cold: one by one against together.
fn small_blocks(arguments: &Arguments) -> Result<()> {
    let scratch = tempfile::tempdir_in(&arguments.directory)?;
    let mut disk = DiskConfig::new(scratch.path().join("store"));
    disk.capacity = 2 << 30;
    disk.free_reserve = 0;
    let store = BlockStore::open(&StoreConfig {
        l2_bytes: 0,
        disk: Some(disk),
        ..StoreConfig::default()
    })?;
    let namespace = namespace_digest([("bench", b"blocks".as_slice())]);
    let keys = (0..BLOCKS as u32).map(|number| chain_key(&namespace, &[number]));
    let keys = keys.collect::<Vec<_>>();
    for key in &keys {
        store.put_bytes(*key, None, &key.0.repeat(BLOCK / 32))?;
    }
    store.flush(LIMIT)?;
    let mut memory = vec![0_u8; BLOCKS * BLOCK + PAGE];
    let aligned = memory.as_ptr().align_offset(PAGE);
    let mut arms = Arms::default();
    for round in 0..=arguments.rounds {
        let mut arm = |name: &str, work: &mut dyn FnMut() -> Result<usize>| -> Result<()> {
            store.disk().ok_or("no disk")?.drop_page_cache()?;
            let start = Instant::now();
            if work()? != BLOCKS {
                return Err("a block is missing".into());
            }
            if round > 0 {
                arms.add(name, start.elapsed().as_secs_f64() * 1e3);
            }
            Ok(())
        };
        for threads in [1, 4] {
            arm(&format!("one by one, {threads} threads"), &mut || {
                in_parallel(threads, BLOCKS, |index| {
                    let block = store.get_bytes(&keys[index]);
                    let block = block.map_err(std::io::Error::other)?;
                    block.map(drop).ok_or(std::io::Error::other("a miss"))
                })?;
                Ok(BLOCKS)
            })?;
        }
        arm("get_many", &mut || {
            Ok(store.get_many(&keys)?.iter().flatten().count())
        })?;
        for (name, start) in [("aligned", aligned), ("unaligned", aligned + 1)] {
            arm(&format!("get_into, {name}"), &mut || {
                let buffers = memory[start..].chunks_mut(BLOCK).take(BLOCKS);
                let mut buffers = buffers.map(WritableBuffer::from).collect::<Vec<_>>();
                Ok(store
                    .get_into(&keys, &mut buffers)?
                    .iter()
                    .flatten()
                    .count())
            })?;
        }
    }
    let title = format!("{BLOCKS} opaque blocks of {} KiB, cold, no L2", BLOCK >> 10);
    println!("{}", arms.show(&title, "milliseconds", arguments.json));
    Ok(())
}

/// Reads a prompt back to where it was; ends when the first `layers` layers are there.
fn read(store: &BlockStore, prompt: &Prompt, buffer: &CacheBuffer, layers: usize) -> Result<()> {
    let steps = store.plan(&prompt.keys)?.steps;
    let requests = steps
        .into_iter()
        .zip(&prompt.runs)
        .map(|(step, (_, pieces))| ReadRequest {
            step,
            target: target(buffer.region(), pieces),
        });
    let requests = requests.collect::<Vec<_>>();
    if requests.len() != prompt.runs.len() {
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
