//! Three tiers, as the live store has them: L1 is the live tree; L2, L3 and what moves between them is a live store's memory tier,
//! disk directory, queue and decisions, over runs without bytes ([`crate::store`]).
//!
//! A request goes the way that it goes in [`crate::cache`], in the same order: what L1 has is claimed; the runs that have the blocks
//! behind it are found and pinned, in L2 before L3; the live rule decides how many of them are read ([`crate::cost`]), with its
//! margin and its trials of a tier that it leaves alone; what L3 lacks and should have is written, in runs; L1 makes room, and each piece
//! that it gives up is a run that goes down to L2, or else to L3, with what is missing above it; L1 takes the new blocks in, and
//! L2 drops the runs of which L1 has all there is in L2.
//!
//! A live store of these sizes, asked one request after the other with its queue drained after each write, finds the same blocks in
//! the same tiers and gives up the same runs, as the tests check. What is not modelled, because time decides it:
//! - The queue for L3. Here a write is done at once. Live, runs wait in line: they are refused if the queue is full, L2's victims hold
//!   their memory until they are written, and two writers may finish in another order than they began.
//! - Requests at once. Here they change the tiers one after the other, in the order of their arrival; live they share what is locked.
//! - What is measured. The costs that the rule goes by are given and do not change, so that a trial never finds a tier faster than
//!   predicted.
//! - Prefetches; times to live; tenants' quotas. A trace has none of them.
//!
//! In L1, the tree of a trace counts a request's use when its new blocks come in, a live one when the request begins; and its blocks have
//! one token each. Policies that age by uses (`lfu`, `w-tinylfu`) or weigh a block's tokens (`gdsf`) may choose otherwise there.
//!
//! What is not modelled of sizes: a block is one page of L2 and as much of L3, whatever it holds. Live, each layer of a run starts on
//! a page of its own, L3 adds a header to each run, makes room by segment file and counts its index. And a partial last block of a
//! prompt is a block as any other, which live never leaves L1's sequence.
//!
//! Policies that know time ([`crate::policy::EvictionPolicy::expired`]) are asked in each tier when a request begins; what they let go
//! of is not sent down. Live policies let go of nothing by themselves.

#[cfg(test)]
mod live;
#[cfg(test)]
mod tests;
mod timing;

pub use timing::{CostModel, ReadCost};

use std::ops::ControlFlow;
use std::sync::Arc;

use super::tree::NAMESPACE;
use super::{STRIDE, capacity_of, policies, unknown};
use crate::block::BlockId;
use crate::cache::Upper;
use crate::config::WritePolicy;
use crate::cost::{Costs, Part, Question, RestoreMode, Trials, weigh};
use crate::error::Result;
use crate::key::BlockKey;
use crate::layout::MAX_RUN_BYTES;
use crate::policy::{self, EvictionPolicy};
use crate::radix::RadixTree;
use crate::run::RunHeader;
use crate::sim::capture::Recorder;
use crate::sim::trace::{BlockTokens, Request, Trace};
use crate::store::{PayloadFree, Plan, Shape, Size};
use crate::tier::TierId;
use timing::{Server, Times, Work};

/// Before the first block of a prompt.
const ROOT: u32 = u32::MAX;

/// A hierarchy.
#[derive(Clone, Debug)]
pub struct TiersConfig {
    /// Blocks that fit into L1, L2 and L3; none for a tier that holds all. L2 and L3 may be 0: there is none.
    pub capacities: [Option<usize>; 3],
    /// What evicts in each.
    pub policies: [String; 3],
    /// When L3 gets what is new.
    pub write: WritePolicy,
    /// How much of what is found below L1 is restored.
    pub restore: RestoreMode,
    /// What things cost.
    pub costs: CostModel,
}

/// What a replay over three tiers counted. By tier: L1, L2, L3.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TiersOutcome {
    /// Requests replayed.
    pub requests: usize,
    /// Blocks of all requests.
    pub block_refs: u64,
    /// Tokens of the prompts.
    pub tokens: u64,
    /// Blocks used from each tier.
    pub hits: [u64; 3],
    /// Tokens of the prompts that were computed, the last of each included.
    pub recomputed_tokens: u64,
    /// Blocks found below L1 that were computed all the same, because that was predicted to be faster.
    pub left_alone: u64,
    /// Blocks that each gave up for others, or because the policy said that their time was over.
    pub evictions: [u64; 3],
    /// Blocks that came into each.
    pub stored: [u64; 3],
    /// Blocks that each did not take: larger than the cache, or nothing in it could go.
    pub refused: [u64; 3],
    /// Blocks that left L1 or L2 for want of room and that nothing below took, or whose time was over in the last tier that had them.
    pub lost: u64,
    /// The most blocks that each held.
    pub peak_blocks: [usize; 3],
    /// Payload bytes read from each. Runs are read whole.
    pub bytes_read: [u64; 3],
    /// Payload bytes written into each.
    pub bytes_written: [u64; 3],
    /// Predicted seconds in line, by request.
    pub queued: Vec<f32>,
    /// Predicted seconds from arrival to the first token, by request.
    pub first_token: Vec<f32>,
    /// Predicted seconds from the first arrival to the end of the last answer.
    pub makespan: f64,
}

/// Replays a trace over three tiers. `progress` is as in [`replay`](super::replay).
///
/// # Errors
/// [`crate::Error::Config`] for an unknown policy, [`crate::Error::InvalidArgument`] for an L1 of 0 blocks or costs that cannot be.
pub fn replay_tiers(
    trace: &Trace,
    config: &TiersConfig,
    mut progress: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<TiersOutcome> {
    config.costs.validate()?;
    let trace = trace.prefix_ids();
    let mut tiers = Tiers::new(&trace, config, &Names::Numbers, None)?;
    let mut server = Server::new(config.costs);
    for (index, request) in trace.requests().enumerate() {
        let work = tiers.serve(&trace, &request)?;
        let times = server.serve(&work);
        tiers.note(&work, times);
        if (index + 1).is_multiple_of(STRIDE) && progress(index + 1).is_break() {
            break;
        }
    }
    let outcome = tiers.finish();
    let _ = progress(outcome.requests);
    Ok(outcome)
}

/// What blocks are called below L1, where policies may choose by names.
enum Names {
    /// By their numbers, spread out as digests are.
    Numbers,
    /// By these names, in L1 and below.
    #[cfg(test)]
    Given { l1: Vec<u64>, below: Vec<u64> },
}

impl Names {
    /// A tree of blocks that are called so.
    fn tree(&self, policy: Box<dyn EvictionPolicy>) -> Result<RadixTree> {
        match self {
            Self::Numbers => RadixTree::of_ids(policy),
            #[cfg(test)]
            Self::Given { l1, .. } => {
                let mut tree = RadixTree::of_named_blocks(1, policy)?;
                for (block, name) in l1.iter().enumerate() {
                    tree.name_block(block as u32, *name);
                }
                Ok(tree)
            }
        }
    }

    fn key(&self, block: u32) -> BlockKey {
        let name = match self {
            Self::Numbers => spread(block),
            #[cfg(test)]
            Self::Given { below, .. } => below[block as usize],
        };
        let mut key = [0; 32];
        key[..8].copy_from_slice(&name.to_le_bytes());
        key[28..].copy_from_slice(&block.to_le_bytes());
        BlockKey(key)
    }
}

/// `SplitMix64` (Steele et al., 2014): different numbers give different names.
fn spread(block: u32) -> u64 {
    let mut bits = (u64::from(block) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// The block that a key of [`Names`] was made for.
fn block_of(key: &BlockKey) -> u32 {
    let [.., a, b, c, d] = key.0;
    u32::from_le_bytes([a, b, c, d])
}

struct Tiers<'a> {
    config: &'a TiersConfig,
    names: &'a Names,
    l1: RadixTree,
    l1_capacity: usize,
    /// What of L1 the store may borrow.
    upper: Arc<Upper>,
    below: PayloadFree,
    /// By block: what it hangs from, and its tokens.
    parents: Vec<u32>,
    tokens: Vec<u32>,
    trials: Trials,
    outcome: TiersOutcome,
}

impl<'a> Tiers<'a> {
    /// What a recorder is told is what the policies choose, under the names.
    fn new(
        trace: &Trace,
        config: &'a TiersConfig,
        names: &'a Names,
        recorder: Option<&Recorder>,
    ) -> Result<Self> {
        Self::with_records(trace, config, names, recorder, RunHeader::payload_bytes)
    }

    /// As [`Self::new`], of an L3 in which a run takes as many bytes as `record` says.
    fn with_records(
        trace: &Trace,
        config: &'a TiersConfig,
        names: &'a Names,
        recorder: Option<&Recorder>,
        record: fn(&RunHeader) -> u64,
    ) -> Result<Self> {
        let l1_capacity = capacity_of(config.capacities[0])?;
        let unique = trace.unique_blocks();
        let by_name = |tier: TierId, capacity: u64| -> Result<Box<dyn EvictionPolicy>> {
            let name = &config.policies[tier as usize];
            let known = policy::simulated(name, capacity)
                .map_err(|_| unknown("policy", name, &policies(super::Mode::Flat)))?;
            match recorder {
                None => Ok(known),
                Some(recorder) => Ok(recorder.policy(tier, 0, name, capacity, 0)?.0),
            }
        };
        let most = |tier: TierId| config.capacities[tier as usize].unwrap_or(unique).max(1) as u64;
        let below = |tier: TierId| -> Result<Option<Size>> {
            let bytes =
                config.capacities[tier as usize].map(|n| n as u64 * PayloadFree::BLOCK_BYTES);
            let policy = by_name(tier, most(tier) * PayloadFree::BLOCK_BYTES)?;
            Ok((bytes != Some(0)).then_some(Size { policy, bytes }))
        };
        let l1 = by_name(TierId::L1, most(TierId::L1))?;
        let mut parents = vec![ROOT; unique];
        let mut tokens = vec![0; unique];
        for request in trace.requests() {
            let mut parent = ROOT;
            for (depth, &block) in request.blocks.iter().enumerate() {
                parents[block as usize] = std::mem::replace(&mut parent, block);
                let own = trace.tokens_of(&request, depth + 1) - trace.tokens_of(&request, depth);
                // A block that is partial at the end of one prompt may be whole in another.
                let most = &mut tokens[block as usize];
                *most = (own as u32).max(*most);
            }
        }
        let block_tokens = match trace.block_tokens() {
            BlockTokens::Fixed(tokens) => u64::from(*tokens),
            BlockTokens::Each(_) | BlockTokens::Even => {
                trace.total_tokens() / trace.block_refs().max(1)
            }
        };
        let block_tokens = block_tokens.clamp(1, u64::from(u32::MAX)) as u32;
        let block_bytes = u64::from(block_tokens).saturating_mul(config.costs.token_bytes);
        let run_blocks = (MAX_RUN_BYTES as u64 / block_bytes.max(1)) as usize;
        let shape = Shape::new(block_tokens, run_blocks)?;
        let upper = Arc::new(Upper::new(shape.clone()));
        let below = PayloadFree::new(
            below(TierId::L2)?,
            below(TierId::L3)?,
            config.write,
            shape,
            record,
        )?;
        below.set_above(&upper);
        Ok(Self {
            config,
            names,
            l1: names.tree(l1)?,
            l1_capacity,
            upper,
            below,
            parents,
            tokens,
            trials: Trials::default(),
            outcome: TiersOutcome::default(),
        })
    }

    fn bytes<'b>(&self, blocks: impl IntoIterator<Item = &'b u32>) -> u64 {
        let tokens = blocks
            .into_iter()
            .map(|&block| u64::from(self.tokens[block as usize]));
        tokens.sum::<u64>() * self.config.costs.token_bytes
    }

    fn bytes_of(&self, keys: &[BlockKey]) -> u64 {
        let tokens = keys
            .iter()
            .map(|key| u64::from(self.tokens[block_of(key) as usize]));
        tokens.sum::<u64>() * self.config.costs.token_bytes
    }

    fn serve(&mut self, trace: &Trace, request: &Request<'_>) -> Result<Work> {
        let blocks = request.blocks;
        self.begin(request.at_ms as u64, request.category);
        let (lock, in_l1) = self.l1.claim(&NAMESPACE, blocks);
        let keys: Vec<_> = blocks.iter().map(|&block| self.names.key(block)).collect();
        let prompt = request.tokens as usize;
        let l1_tokens = trace.tokens_of(request, in_l1) as usize;
        let mut plan = self.below.plan(&keys[in_l1..]);
        let found = plan.blocks();
        let parts = self.choose(prompt, l1_tokens, &blocks[in_l1..], &plan);
        plan.steps.truncate(parts);
        let restored = in_l1 + plan.blocks();
        let mut work = Work {
            at: request.at_ms / 1000.0,
            prompt,
            // The last token of a prompt is always computed.
            restored: (trace.tokens_of(request, restored) as usize).min(prompt.saturating_sub(1)),
            output: request.output_tokens as usize,
            bytes: [self.bytes(&blocks[..in_l1]), 0, 0],
        };
        for step in &plan.steps {
            work.bytes[step.tier as usize] += self.bytes_of(&step.run.header().keys);
            self.outcome.hits[step.tier as usize] += step.blocks as u64;
        }
        self.outcome.hits[0] += in_l1 as u64;
        self.outcome.left_alone += (in_l1 + found - restored) as u64;
        self.note_read(&work);
        // They are read: the pins end.
        drop(plan);

        self.below.write_through(NAMESPACE, &keys, 0);
        let missing = &blocks[in_l1..];
        let room = self.make_room(missing.len())?;
        let taken = &missing[..missing.len().min(room)];
        self.l1.extend(lock, &NAMESPACE, taken, taken)?;
        self.l1.unlock(lock)?;
        let held = in_l1 + taken.len();
        let parent = in_l1.checked_sub(1).map_or(NAMESPACE, |last| keys[last]);
        self.upper
            .extend(NAMESPACE, parent, &keys[in_l1..held], taken);
        self.below.forget_l2(&keys[..held]);

        let outcome = &mut self.outcome;
        outcome.refused[0] += (missing.len() - taken.len()) as u64;
        outcome.stored[0] += taken.len() as u64;
        outcome.peak_blocks[0] = outcome.peak_blocks[0].max(self.l1.stats().total_blocks);
        outcome.requests += 1;
        outcome.block_refs += blocks.len() as u64;
        outcome.tokens += u64::from(request.tokens);
        outcome.recomputed_tokens += (prompt - work.restored) as u64;
        self.outcome.bytes_written[0] += self.bytes(taken);
        let [l2, l3] = self.below.take_written();
        self.outcome.bytes_written[1] += self.bytes_of(&l2);
        self.outcome.bytes_written[2] += self.bytes_of(&l3);
        Ok(work)
    }

    /// Tells the policies that a request comes, and lets go of what they say the time of is over.
    fn begin(&mut self, now_ms: u64, category: u32) {
        self.l1.request(now_ms, category);
        let mut gone = Vec::new();
        self.l1
            .discard_expired(|piece| gone.extend_from_slice(piece));
        self.upper.remove(gone.iter().copied().map(BlockId));
        self.outcome.evictions[0] += gone.len() as u64;
        let below = self.below.request(now_ms, category);
        gone.extend(below.iter().map(block_of));
        gone.sort_unstable();
        gone.dedup();
        let nowhere = |block: &&u32| {
            !self.upper.contains(**block) && !self.below.contains(&self.names.key(**block))
        };
        self.outcome.lost += gone.iter().filter(nowhere).count() as u64;
    }

    /// A read takes as long as predicted, so that no trial promises more.
    fn note_read(&mut self, work: &Work) {
        let mut costs = self.config.costs;
        let read = [TierId::L2, TierId::L3].into_iter().filter_map(|tier| {
            let bytes = work.bytes[tier as usize];
            (bytes > 0).then(|| (tier, costs.read(tier, bytes)))
        });
        if let Some((tier, seconds)) = read.max_by(|a, b| a.1.total_cmp(&b.1)) {
            self.trials.read(tier, seconds, seconds);
        }
    }

    /// How many of the runs found below L1 are read.
    fn choose(&mut self, prompt: usize, l1: usize, blocks: &[u32], plan: &Plan) -> usize {
        match self.config.restore {
            RestoreMode::Never => 0,
            RestoreMode::Auto if !plan.steps.is_empty() => {
                let (mut left, mut rest) = (prompt - l1, blocks);
                let parts = plan.steps.iter().map(|step| {
                    let (own, behind) = rest.split_at(step.blocks);
                    rest = behind;
                    let own = own
                        .iter()
                        .map(|&block| self.tokens[block as usize] as usize);
                    let tokens = left.min(own.sum());
                    left -= tokens;
                    Part {
                        tier: step.tier,
                        bytes: self.bytes_of(&step.run.header().keys),
                        tokens,
                    }
                });
                let parts: Vec<_> = parts.collect();
                let question = Question {
                    prompt,
                    l1,
                    parts: &parts,
                    grid: 1,
                    chunked: false,
                };
                let mut costs = self.config.costs;
                let Some(weighed) = weigh(&question.cuts(&mut costs)) else {
                    return 0;
                };
                let chosen = weighed.chosen;
                let left = parts.get(chosen.parts).map(|part| part.tier);
                match (weighed.next, left) {
                    (Some(next), Some(left)) if self.trials.tries(left, &chosen, &next) => {
                        next.parts
                    }
                    _ => chosen.parts,
                }
            }
            _ => plan.steps.len(),
        }
    }

    /// Has L1 give up what it takes for so many blocks, as far as it can; the room that there is then. What goes, goes down.
    fn make_room(&mut self, wanted: usize) -> Result<usize> {
        let free = self.l1_capacity - self.l1.stats().total_blocks;
        if wanted <= free {
            return Ok(free);
        }
        let (mut gone, mut ends) = (Vec::new(), Vec::new());
        let discarded = self.l1.discard(wanted - free, |piece| {
            gone.extend_from_slice(piece);
            ends.push(gone.len());
        });
        let mut start = 0;
        for end in ends {
            let piece = &gone[std::mem::replace(&mut start, end)..end];
            let keys: Vec<_> = piece.iter().map(|&block| self.names.key(block)).collect();
            let parent = match self.parents[piece[0] as usize] {
                ROOT => NAMESPACE,
                parent => self.names.key(parent),
            };
            self.below.demote(NAMESPACE, parent, &keys)?;
            self.upper.remove(piece.iter().copied().map(BlockId));
            let lost = keys.iter().filter(|key| !self.below.contains(key));
            self.outcome.lost += lost.count() as u64;
        }
        self.outcome.evictions[0] += discarded as u64;
        Ok(free + discarded)
    }

    fn note(&mut self, work: &Work, times: Times) {
        for (sum, bytes) in self.outcome.bytes_read.iter_mut().zip(work.bytes) {
            *sum += bytes;
        }
        self.outcome.queued.push(times.queued as f32);
        self.outcome.first_token.push(times.first_token as f32);
        self.outcome.makespan = self.outcome.makespan.max(work.at + times.done);
    }

    fn finish(self) -> TiersOutcome {
        let mut outcome = self.outcome;
        for (tier, flow) in [TierId::L2, TierId::L3].into_iter().zip(self.below.flows()) {
            let tier = tier as usize;
            outcome.evictions[tier] = flow.evicted;
            outcome.stored[tier] = flow.stored;
            outcome.refused[tier] = flow.refused;
            outcome.peak_blocks[tier] = flow.peak;
        }
        outcome.lost += self.below.dropped();
        outcome
    }
}
