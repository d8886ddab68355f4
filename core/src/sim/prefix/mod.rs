//! Prefix mode: requests replayed on the radix tree and the eviction policies that run live, without payload.
//!
//! A request is looked up whole before any block of its own goes in. A block hits only if all before it do. Then, in this order,
//! the matched path is locked, what the request lacks is made room for, its blocks go in, and all of them count as used once,
//! the root's side last: so a prompt ages from its tail. A request that is larger than the cache keeps its head.
//!
//! *Flat* mode is there for comparison with simulators that know objects only: every block on its own, one use after the other.

mod belady;
mod curve;
mod flat;
mod oracle;
mod scattered;
pub mod tiers;
mod tree;

pub use curve::{Curve, stack_curve};

use std::ops::ControlFlow;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::policy;
use crate::sim::trace::{Request, Trace};
use belady::Belady;
use flat::Flat;
use oracle::CostOracle;
use scattered::Scattered;
use tree::Tree;

/// Requests between two reports of progress.
const STRIDE: usize = 1024;

/// What a hit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A block hits if all before it do.
    Prefix,
    /// Every block is an object of its own.
    Flat,
}

impl Mode {
    /// The names of the modes.
    pub const NAMES: &[&str] = &["prefix", "flat"];

    /// The mode of a name.
    ///
    /// # Errors
    /// [`Error::Config`] that lists the known names.
    pub fn by_name(name: &str) -> Result<Self> {
        match name {
            "prefix" => Ok(Self::Prefix),
            "flat" => Ok(Self::Flat),
            _ => Err(unknown("mode", name, Self::NAMES)),
        }
    }
}

/// What to replay on.
#[derive(Clone, Debug)]
pub struct Config {
    /// What a hit is.
    pub mode: Mode,
    /// One of [`policies`].
    pub policy: String,
    /// Blocks that fit; none for a cache that holds all.
    pub capacity: Option<usize>,
}

/// Policies that are no [`policy::EvictionPolicy`]: they know the future.
const OFFLINE: &[&str] = &["belady", "belady_bypass"];
/// Policies of prefix mode that do not keep to leaves.
const ROOT_FIRST: &[&str] = &["lru_root_first", "fifo_root_first"];

/// The names of the policies of a mode.
pub fn policies(mode: Mode) -> Vec<&'static str> {
    let mut names: Vec<_> = policy::KNOWN.iter().map(|known| known.name).collect();
    if mode == Mode::Prefix {
        names.extend(ROOT_FIRST);
        names.push("oracle_cost");
    }
    names.extend(OFFLINE);
    names
}

fn unknown(name: &'static str, value: &str, known: &[&str]) -> Error {
    Error::Config {
        name,
        value: value.to_owned(),
        remedy: format!("use one of: {}", known.join(", ")),
    }
}

/// What a replay counted. Blocks unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Requests replayed.
    pub requests: usize,
    /// Blocks of all requests.
    pub block_refs: u64,
    /// Distinct block ids.
    pub unique_blocks: usize,
    /// Blocks found.
    pub hits: u64,
    /// Tokens of the prompts.
    pub tokens: u64,
    /// Tokens of the blocks found.
    pub hit_tokens: u64,
    /// What recomputing the rest costs, in tokens at the start of a prompt: [`policy::recompute_cost`].
    pub recomputed_cost: f64,
    /// Blocks given up for others.
    pub evictions: u64,
    /// Blocks that were not taken, because their request was larger than the cache.
    pub refused: u64,
    /// The most that was held between two requests.
    pub peak_blocks: usize,
    /// Blocks found, by request.
    pub hits_by_request: Vec<u32>,
    /// Wall-clock time of the replay.
    pub nanoseconds: u64,
}

/// What one request came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Served {
    hits: usize,
    evicted: usize,
    refused: usize,
}

/// A cache that serves one request after the other.
trait Cache {
    /// Looks a request's blocks up, then takes them in.
    fn serve(&mut self, request: &Request<'_>) -> Result<Served>;
    /// Blocks held.
    fn held(&self) -> usize;
}

/// Replays a trace. `progress` is told how many requests are done, now and then and at the end, and may end it early: what was
/// replayed by then is counted.
///
/// # Errors
/// [`Error::Config`] for a policy that the mode does not know, [`Error::InvalidArgument`] for a capacity of 0.
pub fn replay(
    trace: &Trace,
    config: &Config,
    progress: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Outcome> {
    let capacity = capacity_of(config.capacity)?;
    let blocks = capacity.min(trace.unique_blocks().max(1)) as u64;
    let by_name = |name: &str| {
        let known = policy::simulated(name, blocks);
        known.map_err(|_| unknown("policy", name, &policies(config.mode)))
    };
    match (config.mode, config.policy.as_str()) {
        (Mode::Prefix, "lru_root_first") => {
            run(&trace.prefix_ids(), &mut Scattered::lru(capacity), progress)
        }
        (Mode::Prefix, "fifo_root_first") => run(
            &trace.prefix_ids(),
            &mut Scattered::fifo(capacity),
            progress,
        ),
        (Mode::Prefix, "belady") => {
            let trace = trace.prefix_ids();
            run(&trace, &mut Belady::pinned(&trace, capacity), progress)
        }
        (Mode::Prefix, "belady_bypass") => {
            let trace = trace.prefix_ids();
            run(&trace, &mut Belady::bypassing(&trace, capacity), progress)
        }
        (Mode::Prefix, "oracle_cost") => {
            let trace = trace.prefix_ids();
            run(&trace, &mut CostOracle::new(&trace, capacity), progress)
        }
        (Mode::Prefix, name) => {
            let mut tree = Tree::new(by_name(name)?, capacity)?;
            run(trace, &mut tree, progress)
        }
        (Mode::Flat, "belady") => run(trace, &mut Belady::flat(trace, capacity), progress),
        (Mode::Flat, "belady_bypass") => {
            let mut cache = Belady::flat_bypassing(trace, capacity);
            run(trace, &mut cache, progress)
        }
        (Mode::Flat, name) => run(trace, &mut Flat::new(by_name(name)?, capacity), progress),
    }
}

fn capacity_of(blocks: Option<usize>) -> Result<usize> {
    match blocks {
        None => Ok(usize::MAX),
        Some(0) => Err(Error::invalid(
            "a capacity of 0 blocks: a cache holds at least one; without a cache all tokens are recomputed",
        )),
        Some(blocks) => Ok(blocks),
    }
}

fn run(
    trace: &Trace,
    cache: &mut impl Cache,
    mut progress: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Outcome> {
    let mut outcome = Outcome {
        unique_blocks: trace.unique_blocks(),
        hits_by_request: Vec::with_capacity(trace.len()),
        ..Outcome::default()
    };
    let start = Instant::now();
    for request in trace.requests() {
        let served = cache.serve(&request)?;
        outcome.requests += 1;
        outcome.block_refs += request.blocks.len() as u64;
        outcome.hits += served.hits as u64;
        outcome.tokens += u64::from(request.tokens);
        outcome.evictions += served.evicted as u64;
        outcome.refused += served.refused as u64;
        outcome.peak_blocks = outcome.peak_blocks.max(cache.held());
        outcome.hits_by_request.push(served.hits as u32);
        if outcome.requests.is_multiple_of(STRIDE) && progress(outcome.requests).is_break() {
            break;
        }
    }
    outcome.nanoseconds = start.elapsed().as_nanos() as u64;
    // Apart from the clock: how tokens are counted is the trace's business.
    let served = trace.requests().zip(&outcome.hits_by_request);
    let mut hit_tokens = 0;
    for (request, &hits) in served {
        let found = trace.tokens_of(&request, hits as usize);
        hit_tokens += found;
        let rest = request.tokens - found as u32;
        outcome.recomputed_cost += f64::from(policy::recompute_cost(rest, found));
    }
    outcome.hit_tokens = hit_tokens;
    let _ = progress(outcome.requests);
    Ok(outcome)
}
