//! A capture under another policy or in another size: what L1 would have done with the same requests.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::format::Reader;
use super::record::Record;
use super::recorder::Recorder;
use super::replay::{Replayed, no_order};
use super::requests::Recent;
use crate::cache::Replica;
use crate::error::{Error, Result};
use crate::tier::TierId;

/// What the L1 of one cache would have done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rerun {
    /// What the policy is called.
    pub policy: String,
    /// Blocks that it holds.
    pub blocks: u64,
    /// Requests that came.
    pub requests: u64,
    /// Blocks of all requests.
    pub block_refs: u64,
    /// Blocks found, up to the first that was not, of each request.
    pub hits: u64,
    /// Blocks that it gave up.
    pub evictions: u64,
    /// Names of the victims, in order; one that gives up only its end appears each time it does.
    pub victims: Vec<u64>,
}

/// An L1, its place among what the policies choose, and what is counted of it.
struct Cache {
    replica: Replica,
    rerun: Rerun,
}

/// Drives the L1 of each cache of a capture with its requests, commits and leases, under `policy` (any of the simulator's) and with
/// room for `blocks` blocks; none for what it was live. What was evicted is free at once, nothing is lent, and nothing expires but
/// by the policy.
///
/// # Errors
/// As [`replay`](super::replay); [`Error::InvalidArgument`] for a size of 0 blocks.
pub fn rerun(path: &Path, policy: Option<&str>, blocks: Option<u64>) -> Result<Vec<Rerun>> {
    if blocks == Some(0) {
        return Err(Error::invalid("an L1 of 0 blocks; use 1 or more"));
    }
    let mut reader = Reader::open(path)?;
    let chosen = Arc::<Mutex<Vec<Replayed>>>::default();
    let recorder = Recorder::Replay(Arc::clone(&chosen));
    // By order; none for those below L1.
    let mut caches: Vec<Option<Cache>> = Vec::new();
    let mut recent = Recent::default();
    while let Some(record) = reader.next() {
        let record = match record? {
            Record::Order {
                tier: 1,
                capacity,
                policy: live,
                block_tokens,
                ..
            } => {
                let blocks = blocks.unwrap_or(capacity);
                let name = policy.unwrap_or(&live);
                let block_tokens = block_tokens as usize;
                let (policy, _) = recorder.policy(TierId::L1, 0, name, blocks, block_tokens)?;
                let replica = Replica::new(blocks as usize, block_tokens, policy, true)?;
                caches.push(Some(Cache {
                    replica,
                    rerun: Rerun::new(name, blocks),
                }));
                continue;
            }
            Record::Order { .. } => {
                caches.push(None);
                continue;
            }
            record => record,
        };
        let applied = apply(&mut caches, &mut recent, record);
        applied.map_err(|error| match error {
            Error::InvalidArgument(what) => reader.damaged(&what),
            other => other,
        })?;
    }
    let chosen = std::mem::take(&mut *chosen.lock());
    let caches = caches.into_iter().flatten().zip(chosen);
    let reruns = caches.map(|(cache, order)| Rerun {
        evictions: cache.replica.evicted_blocks(),
        victims: order.victims,
        ..cache.rerun
    });
    Ok(reruns.collect())
}

fn cache_of(caches: &mut [Option<Cache>], order: u64) -> Result<&mut Cache> {
    let cache = caches.get_mut(order as usize).and_then(Option::as_mut);
    cache.ok_or_else(|| no_order(order))
}

fn apply(caches: &mut [Option<Cache>], recent: &mut Recent, record: Record) -> Result<()> {
    match record {
        Record::Request {
            time_ms,
            category,
            back,
            shared,
            blocks,
            claim,
            ..
        } => {
            let blocks = recent.whole(back, shared, blocks);
            let blocks =
                blocks.ok_or_else(|| Error::invalid("a request that goes on from none"))?;
            if let Some(claim) = claim {
                let Cache { replica, rerun } = cache_of(caches, claim.order)?;
                rerun.requests += 1;
                rerun.block_refs += blocks.len() as u64;
                rerun.hits += replica.begin(time_ms, category, &claim, blocks)? as u64;
            }
            Ok(())
        }
        Record::L1 { order, event } => cache_of(caches, order)?.replica.apply(event),
        _ => Ok(()),
    }
}

impl Rerun {
    fn new(policy: &str, blocks: u64) -> Self {
        Self {
            policy: policy.to_owned(),
            blocks,
            requests: 0,
            block_refs: 0,
            hits: 0,
            evictions: 0,
            victims: Vec::new(),
        }
    }
}
