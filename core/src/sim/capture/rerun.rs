//! A capture under other policies or in other sizes: what the tiers would have done with the same requests.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::format::Reader;
use super::record::Record;
use super::recorder::Recorder;
use super::replay::{Replayed, no_order};
use super::requests::Recent;
use crate::cache::Replica;
use crate::config::WritePolicy;
use crate::error::{Error, Result};
use crate::policy;
use crate::run::{MAX_RUN_BLOCKS, RunHeader};
use crate::store::{PayloadFree, Shape, Size};
use crate::tier::TierId;

/// What a policy divides among its parts where a tier holds all, in bytes.
const UNLIMITED: u64 = 1 << 50;

/// What is to be otherwise than it was live.
#[derive(Clone, Debug)]
pub struct Otherwise {
    /// What evicts in every tier, any of the simulator's policies; none for what L1 had live.
    pub policy: Option<String>,
    /// Blocks that each L1 holds; none for as many as it held live.
    pub l1_blocks: Option<u64>,
    /// Blocks that the L2 of all caches holds: 0 if there is none, the default; none for one that holds all.
    pub l2_blocks: Option<u64>,
    /// Of L3.
    pub l3_blocks: Option<u64>,
    /// When L3 gets what is new. Default: write-through.
    pub write: WritePolicy,
    /// The most blocks of a run, 16 MiB of payload live. Default: [`MAX_RUN_BLOCKS`].
    pub run_blocks: usize,
}

impl Default for Otherwise {
    fn default() -> Self {
        Self {
            policy: None,
            l1_blocks: None,
            l2_blocks: Some(0),
            l3_blocks: Some(0),
            write: WritePolicy::default(),
            run_blocks: MAX_RUN_BLOCKS,
        }
    }
}

/// What would have been found for one cache, and what its L1 would have done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rerun {
    /// What the policy is called.
    pub policy: String,
    /// Blocks that its L1 holds.
    pub blocks: u64,
    /// Requests that came.
    pub requests: u64,
    /// Blocks of all requests.
    pub block_refs: u64,
    /// Blocks found in L1, up to the first that was not, of each request.
    pub hits: u64,
    /// Blocks found behind them in L2.
    pub l2_hits: u64,
    /// And in L3.
    pub l3_hits: u64,
    /// Blocks that L1 gave up.
    pub evictions: u64,
    /// Names of the victims of L1, in order; one that gives up only its end appears each time it does.
    pub victims: Vec<u64>,
}

/// An L1, its place among what the policies choose, and what is counted of it.
struct Cache {
    replica: Replica,
    rerun: Rerun,
}

/// Those of a capture, by order; none for the orders below L1.
struct Caches<'a> {
    otherwise: &'a Otherwise,
    recorder: Recorder,
    orders: Vec<Option<Cache>>,
    recent: Recent,
    /// There once the first L1 has begun, if there is to be an L2 or L3.
    below: Option<(Arc<PayloadFree>, Shape)>,
}

/// Drives the L1 of each cache of a capture with its requests, commits and leases, and below them a store without payload, under other
/// policies and in other sizes. What was evicted is free at once, what is queued for L3 is written at once, nothing expires but by the
/// policy, all that is found is restored, and nothing is prefetched.
///
/// # Errors
/// As [`replay`](super::replay); [`Error::InvalidArgument`] for an L1 of 0 blocks.
pub fn rerun(path: &Path, otherwise: &Otherwise) -> Result<Vec<Rerun>> {
    if otherwise.l1_blocks == Some(0) {
        return Err(Error::invalid("an L1 of 0 blocks; use 1 or more"));
    }
    let mut reader = Reader::open(path)?;
    let chosen = Arc::<Mutex<Vec<Replayed>>>::default();
    let mut caches = Caches {
        otherwise,
        recorder: Recorder::Replay(Arc::clone(&chosen)),
        orders: Vec::new(),
        recent: Recent::default(),
        below: None,
    };
    while let Some(record) = reader.next() {
        let record = record?;
        if let Record::Order { .. } = record {
            caches.begin(&record)?;
            continue;
        }
        caches.apply(record).map_err(|error| match error {
            Error::InvalidArgument(what) => reader.damaged(&what),
            other => other,
        })?;
    }
    let chosen = std::mem::take(&mut *chosen.lock());
    let caches = caches.orders.into_iter().flatten().zip(chosen);
    let reruns = caches.map(|(cache, order)| Rerun {
        evictions: cache.replica.evicted_blocks(),
        victims: order.victims,
        ..cache.rerun
    });
    Ok(reruns.collect())
}

impl Caches<'_> {
    fn begin(&mut self, order: &Record) -> Result<()> {
        let Record::Order {
            tier: 1,
            capacity,
            policy: live,
            block_tokens,
            ..
        } = order
        else {
            self.orders.push(None);
            return Ok(());
        };
        let blocks = self.otherwise.l1_blocks.unwrap_or(*capacity);
        let name = self.otherwise.policy.as_ref().unwrap_or(live);
        let tokens = *block_tokens as usize;
        let recorder = &self.recorder;
        let (policy, _) = recorder.policy(TierId::L1, 0, name, blocks, tokens)?;
        let mut replica = Replica::new(blocks as usize, tokens, policy, true)?;
        if self.below.is_none() {
            self.below = self.otherwise.store(name, *block_tokens)?;
        }
        if let Some((store, shape)) = &self.below {
            replica = replica.over(store, shape);
        }
        self.orders.push(Some(Cache {
            replica,
            rerun: Rerun::new(name, blocks),
        }));
        Ok(())
    }

    fn cache(&mut self, order: u64) -> Result<&mut Cache> {
        let cache = self.orders.get_mut(order as usize);
        cache
            .and_then(Option::as_mut)
            .ok_or_else(|| no_order(order))
    }

    fn apply(&mut self, record: Record) -> Result<()> {
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
                let blocks = self.recent.whole(back, shared, blocks);
                let blocks =
                    blocks.ok_or_else(|| Error::invalid("a request that goes on from none"))?;
                if let Some(claim) = claim {
                    let Cache { replica, rerun } = self.cache(claim.order)?;
                    rerun.requests += 1;
                    rerun.block_refs += blocks.len() as u64;
                    let [l1, l2, l3] = replica.begin(time_ms, category, &claim, blocks)?;
                    rerun.hits += l1;
                    rerun.l2_hits += l2;
                    rerun.l3_hits += l3;
                }
            }
            Record::L1 { order, event } => self.cache(order)?.replica.apply(event)?,
            _ => {}
        }
        if let Some((store, _)) = &self.below {
            // Nobody counts them here.
            drop(store.take_written());
        }
        Ok(())
    }
}

impl Otherwise {
    /// What is to lie below L1: one store for all caches, as live.
    fn store(&self, policy: &str, block_tokens: u32) -> Result<Option<(Arc<PayloadFree>, Shape)>> {
        if (self.l2_blocks, self.l3_blocks) == (Some(0), Some(0)) {
            return Ok(None);
        }
        let size = |blocks: Option<u64>| -> Result<Option<Size>> {
            let bytes = blocks.map(|blocks| blocks.saturating_mul(PayloadFree::BLOCK_BYTES));
            let policy = policy::simulated(policy, bytes.unwrap_or(UNLIMITED))?;
            Ok((bytes != Some(0)).then_some(Size { policy, bytes }))
        };
        let shape = Shape::new(block_tokens, self.run_blocks)?;
        let (l2, l3) = (size(self.l2_blocks)?, size(self.l3_blocks)?);
        let record = RunHeader::payload_bytes;
        let store = PayloadFree::new(l2, l3, self.write, shape.clone(), record)?;
        Ok(Some((Arc::new(store), shape)))
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
            l2_hits: 0,
            l3_hits: 0,
            evictions: 0,
            victims: Vec::new(),
        }
    }
}
