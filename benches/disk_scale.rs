//! L3 with many blocks: how long it takes to reopen, after a clean close, after a kill and without its index, how long a lookup of
//! 500 consecutive keys takes, and what memory the process has beyond that of an empty store. Each is measured in a process of its
//! own. The payload is tiny; the figures depend on the number of runs and blocks.
//! `cargo bench --bench disk_scale -- [--dir DIR] [--rounds N] [--runs N] [--blocks N] [--json]`.
#![expect(clippy::print_stdout, reason = "it prints a table")]

mod support;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvlab_core::config::{DiskConfig, StoreConfig};
use kvlab_core::key::{BlockKey, chain_key, namespace_digest};
use kvlab_core::memory::{Piece, Region};
use kvlab_core::run::{RunHeader, RunSource, Terms};
use kvlab_core::store::{BlockStore, Lookup};
use kvlab_core::tier::{Put, Tier};
use support::{Arms, Result};

/// Runs of a chain: with 8 blocks each, a prompt of some 4,000 tokens.
const RUNS_A_CHAIN: usize = 32;
const PAYLOAD_BYTES: u32 = 64;
const LOOKUPS: usize = 200;
const LOOKUP_KEYS: usize = 500;
const LIMIT: Duration = Duration::from_secs(60);

/// What the bench is told; `role` is what a child of it is to do.
struct Arguments {
    directory: PathBuf,
    rounds: usize,
    runs: usize,
    blocks: usize,
    json: bool,
    role: Option<String>,
}

impl Arguments {
    fn read() -> Result<Self> {
        let mut read = Self {
            directory: std::env::temp_dir(),
            rounds: 5,
            runs: 125_000,
            blocks: 8,
            json: false,
            role: None,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                "--dir" => read.directory = value()?.into(),
                "--rounds" => read.rounds = value()?.parse()?,
                "--runs" => read.runs = value()?.parse()?,
                "--blocks" => read.blocks = value()?.parse()?,
                "--role" => read.role = Some(value()?),
                "--json" => read.json = true,
                // cargo passes it.
                "--bench" => {}
                _ => {
                    return Err(format!(
                        "{argument:?} is unknown; use --dir DIR, --rounds N, --runs N, --blocks N, --json"
                    )
                    .into());
                }
            }
        }
        Ok(read)
    }
}

/// The runs of one chain, in order.
fn chain(number: usize, runs: usize, blocks: usize) -> Vec<RunHeader> {
    let namespace = namespace_digest([("bench", b"scale".as_slice())]);
    let mut parent = namespace;
    let runs = (0..runs).map(|run| {
        let first = parent;
        let keys = (0..blocks).map(|block| {
            parent = chain_key(&parent, &[number as u32, (run * blocks + block) as u32]);
            parent
        });
        RunHeader {
            namespace,
            keys: keys.collect(),
            parent: first,
            block_tokens: 16,
            slices: [PAYLOAD_BYTES].into(),
            terms: Terms::default(),
        }
    });
    runs.collect()
}

fn open(path: &Path) -> Result<BlockStore> {
    let mut disk = DiskConfig::new(path.to_owned());
    disk.capacity = 64 << 30;
    Ok(BlockStore::open(&StoreConfig {
        l2_bytes: 0,
        disk: Some(disk),
        ..StoreConfig::default()
    })?)
}

/// Fills the store, and is killed when it says so.
fn build(arguments: &Arguments) -> Result<()> {
    let store = open(&arguments.directory)?;
    let region = Arc::new(Region::new(4096)?);
    let source = RunSource {
        region,
        lease: None,
        slices: vec![vec![Piece {
            spare: false,
            offset: 0,
            len: PAYLOAD_BYTES as usize,
        }]],
    };
    let disk = store.disk().ok_or("no disk")?;
    let mut left = arguments.runs;
    for number in 0.. {
        let runs = left.min(RUNS_A_CHAIN);
        for header in chain(number, runs, arguments.blocks) {
            let put = disk.put(&header, &source)?;
            if put != Put::Stored {
                return Err(format!("a run was not stored: {put:?}").into());
            }
        }
        left -= runs;
        if left == 0 {
            break;
        }
    }
    println!("built 0");
    loop {
        std::thread::park();
    }
}

/// Memory of this process in MiB: now, and the most there was.
#[cfg(target_os = "linux")]
fn memory() -> Result<[f64; 2]> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mut found = [0.0; 2];
    for (place, name) in found.iter_mut().zip(["VmRSS:", "VmHWM:"]) {
        let line = status.lines().find(|line| line.starts_with(name));
        let size = line.and_then(|line| line.split_whitespace().nth(1));
        *place = size
            .ok_or("no figure in /proc/self/status")?
            .parse::<f64>()?
            / 1024.0;
    }
    Ok(found)
}

#[cfg(not(target_os = "linux"))]
fn memory() -> Result<[f64; 2]> {
    Ok([f64::NAN; 2])
}

/// Opens the store and says how long it took, what was found, and what memory there is then.
fn reopen(arguments: &Arguments) -> Result<()> {
    let start = Instant::now();
    let store = open(&arguments.directory)?;
    println!("open {}", start.elapsed().as_secs_f64());
    let [now, most] = memory()?;
    println!("memory {now}");
    println!("peak {most}");
    println!("runs {}", store.stats()?.l3.runs);
    look_up(&store, arguments)?;
    let start = Instant::now();
    store.close(LIMIT)?;
    println!("close {}", start.elapsed().as_secs_f64());
    Ok(())
}

/// Looks up chains of which half is there, each block after the other and, in another order, one block there and one not.
fn look_up(store: &BlockStore, arguments: &Arguments) -> Result<()> {
    let chains = arguments.runs / RUNS_A_CHAIN;
    if chains == 0 || store.stats()?.l3.runs == 0 {
        return Ok(());
    }
    let half = LOOKUP_KEYS / 2;
    for round in 0..LOOKUPS {
        let number = round * 7919 % chains;
        let runs = half.div_ceil(arguments.blocks);
        let keys = chain(number, runs, arguments.blocks);
        let keys = keys.iter().flat_map(|run| run.keys.iter().copied());
        let there = keys.take(half.min(RUNS_A_CHAIN * arguments.blocks));
        let mut keys = there.collect::<Vec<_>>();
        let present = keys.len();
        let absent =
            (0..LOOKUP_KEYS - present).map(|block| chain_key(&keys[0], &[u32::MAX, block as u32]));
        let absent = absent.collect::<Vec<_>>();
        keys.extend(&absent);
        let found = timed("lookup", &keys, |keys| Ok(store.lookup(keys)?))?;
        let hits = found.iter().filter(|found| !matches!(found, Lookup::Miss));
        let hits = hits.count();
        if hits != present {
            return Err(format!("{hits} of {present} blocks were found").into());
        }
    }
    Ok(())
}

fn timed<T>(
    name: &str,
    keys: &[BlockKey],
    work: impl FnOnce(&[BlockKey]) -> Result<T>,
) -> Result<T> {
    let start = Instant::now();
    let done = work(keys)?;
    println!("{name} {}", start.elapsed().as_secs_f64() * 1e3);
    Ok(done)
}

/// Starts this program once more in a role, and reads what it says, line by line, until `until` says that is enough: it is killed then.
fn child(
    arguments: &Arguments,
    path: &Path,
    role: &str,
    mut said: impl FnMut(&str, f64) -> bool,
) -> Result<()> {
    let mut process = Command::new(std::env::current_exe()?)
        .args(["--role", role, "--dir"])
        .arg(path)
        .args(["--runs", &arguments.runs.to_string()])
        .args(["--blocks", &arguments.blocks.to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    let output = process.stdout.take().ok_or("no output")?;
    let mut killed = false;
    for line in BufReader::new(output).lines() {
        let line = line?;
        let (name, value) = line.split_once(' ').ok_or("a line without a value")?;
        if said(name, value.parse()?) {
            process.kill()?;
            killed = true;
            break;
        }
    }
    let status = process.wait()?;
    if !killed && !status.success() {
        return Err(format!("the process that was to {role} failed: {status}").into());
    }
    Ok(())
}

fn main() -> Result<()> {
    let arguments = Arguments::read()?;
    match arguments.role.as_deref() {
        Some("build") => return build(&arguments),
        Some("reopen") => return reopen(&arguments),
        Some(role) => return Err(format!("no role {role:?}").into()),
        None => {}
    }
    let scratch = tempfile::tempdir_in(&arguments.directory)?;
    let (full, empty) = (scratch.path().join("full"), scratch.path().join("empty"));
    let (mut seconds, mut milliseconds, mut mebibytes) =
        (Arms::default(), Arms::default(), Arms::default());
    let start = Instant::now();
    child(&arguments, &full, "build", |_, _| true)?;
    seconds.add("built", start.elapsed().as_secs_f64());
    let mut base = [f64::MAX; 2];
    for _ in 0..3 {
        child(&arguments, &empty, "reopen", |name, value| {
            match name {
                "memory" => base[0] = base[0].min(value),
                "peak" => base[1] = base[1].min(value),
                _ => {}
            }
            false
        })?;
    }
    let mut measure = |state: &str, killed: bool| -> Result<()> {
        let mut runs = 0;
        child(&arguments, &full, "reopen", |name, value| {
            match name {
                "open" => seconds.add(format!("open, {state}"), value),
                "close" => seconds.add(format!("close, {state}"), value),
                "memory" => mebibytes.add(format!("resident, {state}"), value - base[0]),
                "peak" => mebibytes.add(format!("most resident, {state}"), value - base[1]),
                "runs" => runs = value as usize,
                _ => milliseconds.add(name, value),
            }
            killed && name == "lookup"
        })?;
        if runs == arguments.runs {
            Ok(())
        } else {
            Err(format!("{state}: {runs} of {} runs", arguments.runs).into())
        }
    };
    measure("killed after it was built", false)?;
    for round in 0..=arguments.rounds {
        measure("clean", round == arguments.rounds)?;
    }
    measure("killed after it was opened", false)?;
    std::fs::remove_dir_all(full.join("index"))?;
    measure("without an index", false)?;
    let title = format!("{} runs of {} blocks", arguments.runs, arguments.blocks);
    println!("{}", seconds.show(&title, "seconds", arguments.json));
    let title = format!("{LOOKUP_KEYS} keys, half of them there");
    println!("{}", milliseconds.show(&title, "ms", arguments.json));
    let title = "Memory beyond that of an empty store";
    println!("{}", mebibytes.show(title, "MiB", arguments.json));
    Ok(())
}
