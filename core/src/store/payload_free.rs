//! A store that moves nothing: the tiers, the queue and the decisions of a live one over runs without bytes, for the simulator.
//!
//! It has no threads: what is queued for L3 is written before the call returns. It is asked what a cache above asks a live store,
//! in the same order.

use std::fmt;
use std::sync::Arc;

use crate::sync::Mutex;

use super::above::Above;
use super::core::Core;
use super::inquiry::Beyond;
use super::plan::Plan;
use crate::clock::Clock;
use crate::config::{StoreConfig, WritePolicy};
use crate::cost::CostBook;
use crate::error::Result;
use crate::key::BlockKey;
use crate::memory::Region;
use crate::policy::EvictionPolicy;
use crate::run::{MAX_RUN_BLOCKS, RunHeader, RunSource, Terms};
use crate::tier::memory::{ARENA_PAGE, MemoryTier};
use crate::tier::{DurableTier, Flow, Put, Tier, disk};

/// What stands for a block's payload: a page of L2, so that tiers are as large in blocks as in pages.
const BLOCK_BYTES: u32 = ARENA_PAGE as u32;

/// The blocks of a store without payload, as runs.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    block_tokens: u32,
    run_blocks: usize,
    source: RunSource,
}

/// What L2 or L3 is made of.
#[derive(Debug)]
pub(crate) struct Size {
    pub(crate) policy: Box<dyn EvictionPolicy>,
    /// Bytes, of which a block takes [`PayloadFree::BLOCK_BYTES`]; none for a tier that holds all.
    pub(crate) bytes: Option<u64>,
}

/// A store without payload.
pub(crate) struct PayloadFree {
    core: Core,
    l3: Option<disk::PayloadFree>,
    shape: Shape,
    l2: Mutex<Moved>,
}

/// What L2 saw.
#[derive(Debug, Default)]
struct Moved {
    flow: Flow,
    /// The blocks of runs that were copied in since someone asked.
    written: Vec<BlockKey>,
}

impl Shape {
    /// Blocks of so many tokens, of which at most `run_blocks` make a run.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if the system has no memory at all.
    pub(crate) fn new(block_tokens: u32, run_blocks: usize) -> Result<Self> {
        Ok(Self {
            block_tokens,
            run_blocks: run_blocks.clamp(1, MAX_RUN_BLOCKS),
            source: RunSource {
                region: Arc::new(Region::new(1)?),
                lease: None,
                slices: Vec::new(),
            },
        })
    }

    /// The runs of consecutive blocks, of which the first hangs from `parent`.
    pub(crate) fn runs(
        &self,
        namespace: BlockKey,
        mut parent: BlockKey,
        keys: &[BlockKey],
    ) -> impl Iterator<Item = (RunHeader, RunSource)> {
        keys.chunks(self.run_blocks).map(move |keys| {
            let header = RunHeader {
                namespace,
                parent,
                keys: keys.into(),
                block_tokens: self.block_tokens,
                slices: [keys.len() as u32 * BLOCK_BYTES].into(),
                terms: Terms::default(),
            };
            parent = keys.last().copied().unwrap_or(parent);
            (header, self.source.clone())
        })
    }
}

impl fmt::Debug for PayloadFree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PayloadFree(l2: {:?}, l3: {:?})", self.core.l2, self.l3)
    }
}

impl PayloadFree {
    /// Payload bytes of a block.
    pub(crate) const BLOCK_BYTES: u64 = BLOCK_BYTES as u64;

    /// A store of these tiers. In L3 a run takes as many bytes as `record` says.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if the system has no memory at all, or no null device.
    pub(crate) fn new(
        l2: Option<Size>,
        l3: Option<Size>,
        write_policy: WritePolicy,
        shape: Shape,
        record: fn(&RunHeader) -> u64,
    ) -> Result<Self> {
        let clock = Clock::standing();
        let l2 = l2.map(|size| {
            let pages = size
                .bytes
                .map_or(u64::MAX, |bytes| bytes / Self::BLOCK_BYTES);
            let pages = u32::try_from(pages).unwrap_or(u32::MAX);
            MemoryTier::payload_free(pages, size.policy, clock.clone())
        });
        let l3 = l3.map(|size| {
            let bytes = size.bytes.unwrap_or(u64::MAX);
            disk::PayloadFree::new(size.policy, bytes, record)
        });
        let l3 = l3.transpose()?;
        let config = StoreConfig {
            write_policy,
            write_queue_bytes: u64::MAX,
            ..StoreConfig::default()
        };
        let durable = l3.clone().map(|l3| Arc::new(l3) as Arc<dyn DurableTier>);
        let mut core = Core::over(
            &config,
            l2.transpose()?,
            durable,
            CostBook::in_memory(),
            clock,
        );
        core.writer = core.writer.map(super::write::Writer::at_once);
        Ok(Self {
            core,
            l3,
            shape,
            l2: Mutex::default(),
        })
    }

    /// Tells the store of the tier above it.
    pub(crate) fn set_above<A: Above + 'static>(&self, above: &Arc<A>) {
        let above: Arc<dyn Above> = Arc::clone(above) as _;
        self.core.above.add(Arc::downgrade(&above));
    }

    /// Tells the policies that a request comes. Gives back the blocks of which they say that their time is over, and which left their
    /// tiers for that.
    pub(crate) fn request(&self, now_ms: u64, category: u32) -> Vec<BlockKey> {
        let mut gone = Vec::new();
        if let Some(l2) = &self.core.l2 {
            let before = l2.usage().blocks;
            gone = l2.request(now_ms, category);
            if !gone.is_empty() {
                self.l2.lock().flow.evicted += (before - l2.usage().blocks) as u64;
            }
        }
        if let Some(l3) = &self.l3 {
            gone.extend(l3.request(now_ms, category));
        }
        let keys = gone.iter().flat_map(|header| header.keys.iter());
        keys.copied().collect()
    }

    /// The leading consecutive blocks that L2 and L3 have, pinned while the plan lives.
    pub(crate) fn plan(&self, keys: &[BlockKey]) -> Plan {
        self.core.plan(keys, Beyond::Nothing)
    }

    /// Whether L2 or L3 has a block.
    pub(crate) fn contains(&self, key: &BlockKey) -> bool {
        let in_l2 = self.core.l2.as_ref().is_some_and(|l2| l2.contains(key));
        in_l2 || self.core.reaches_l3(key)
    }

    /// A prompt is committed, or more of it than before: what L3 lacks of it and should have by now is written. The uses of the
    /// first `counted` blocks were counted before.
    pub(crate) fn write_through(&self, namespace: BlockKey, keys: &[BlockKey], counted: usize) {
        let core = &self.core;
        let keys = &keys[..core.due_below(keys, counted)];
        let (stored, rest) = keys.split_at(core.leading_in_l3(keys));
        let parent = stored.last().copied().unwrap_or(namespace);
        for (header, source) in self.shape.runs(namespace, parent, rest) {
            if let Put::Refused(_) = core.queue_write(header, source) {
                break;
            }
        }
    }

    /// Takes consecutive blocks that L1 gives up.
    ///
    /// # Errors
    /// What L2 says of a run that cannot be.
    pub(crate) fn demote(
        &self,
        namespace: BlockKey,
        parent: BlockKey,
        keys: &[BlockKey],
    ) -> Result<()> {
        for (header, source) in self.shape.runs(namespace, parent, keys) {
            let blocks = header.keys.clone();
            let before = self.l2_blocks(&blocks);
            let put = self.core.take_in(header, source)?;
            if let (Some((held, lacking)), Some((now, left))) = (before, self.l2_blocks(&blocks)) {
                let stored = if put == Put::Stored { lacking } else { 0 };
                let mut l2 = self.l2.lock();
                let flow = &mut l2.flow;
                flow.stored += stored as u64;
                flow.evicted += (held + stored - now) as u64;
                flow.refused += left as u64;
                flow.peak = flow.peak.max(now);
                if put == Put::Stored {
                    l2.written.extend(blocks);
                }
            }
            if let Put::Refused(_) = put {
                break;
            }
        }
        Ok(())
    }

    /// Blocks that L2 has, and how many it lacks of these; none without an L2.
    fn l2_blocks(&self, keys: &[BlockKey]) -> Option<(usize, usize)> {
        let l2 = self.core.l2.as_ref()?;
        let lacking = keys.iter().filter(|key| !l2.contains(key)).count();
        Some((l2.usage().blocks, lacking))
    }

    /// L1 has taken these blocks over.
    pub(crate) fn forget_l2(&self, keys: &[BlockKey]) {
        self.core.forget_l2(keys);
    }

    /// What went in and out of L2 and L3.
    pub(crate) fn flows(&self) -> [Flow; 2] {
        let l3 = self.l3.as_ref().map(disk::PayloadFree::flow);
        [self.l2.lock().flow, l3.unwrap_or_default()]
    }

    /// The blocks of runs that were copied into L2 and written to L3 since the last call.
    pub(crate) fn take_written(&self) -> [Vec<BlockKey>; 2] {
        let l3 = self.l3.as_ref().map(disk::PayloadFree::take_written);
        let l2 = std::mem::take(&mut self.l2.lock().written);
        [l2, l3.unwrap_or_default()]
    }

    /// Blocks that L2 gave up and L3 neither had nor took.
    pub(crate) fn dropped(&self) -> u64 {
        self.core.counters.dropped_victim_blocks.get()
    }

    /// Checks every structure.
    ///
    /// # Errors
    /// A description of the first thing that is wrong.
    #[cfg(test)]
    pub(crate) fn validate(&self) -> Result<(), String> {
        self.core.validate()?;
        self.l3.as_ref().map_or(Ok(()), disk::PayloadFree::validate)
    }
}
