//! Three tiers: L1 is the live tree, L2 and L3 are directories without payload; what is read and when comes from a cost model.
//!
//! As in the live store: L1's victims go down to L2, and L2's to L3 if that lacks them, or drop out. What is new goes to L3 by the
//! write policy. L3 takes a block only behind its parent, so that what goes down takes along what L3 lacks of its chain. A hit in a
//! lower tier leaves the copy there and puts the block into L1. How much of what is found is restored is decided by the live rule
//! ([`crate::cost::best`]).
//!
//! Unlike the live store: the unit of L2 and L3 is the block, not the run; a write is done at once and never refused for a full
//! queue; requests change the tiers one after the other, in the order of their arrival.

mod level;
mod timing;

pub use timing::{CostModel, ReadCost};

use std::ops::ControlFlow;

use super::tree::NAMESPACE;
use super::{STRIDE, capacity_of, policies, unknown};
use crate::cost::{Part, Question, RestoreMode, best};
use crate::error::Result;
use crate::policy;
use crate::radix::RadixTree;
use crate::sim::trace::{Request, Trace};
use crate::tier::TierId;
use level::{Level, Put, ROOT};
use timing::{Server, Times, Work};

/// When L3 gets what is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WritePolicy {
    /// When it is made.
    Through,
    /// At its second use.
    Selective,
    /// When L2 gives it up.
    Back,
}

impl WritePolicy {
    /// The names of the policies, as the live store has them.
    pub const NAMES: &[&str] = &["write_through", "write_through_selective", "write_back"];

    /// The policy of a name.
    ///
    /// # Errors
    /// [`crate::Error::Config`] that lists the known names.
    pub fn by_name(name: &str) -> Result<Self> {
        match name {
            "write_through" => Ok(Self::Through),
            "write_through_selective" => Ok(Self::Selective),
            "write_back" => Ok(Self::Back),
            _ => Err(unknown("write_policy", name, Self::NAMES)),
        }
    }
}

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
    /// Blocks that each gave up for others.
    pub evictions: [u64; 3],
    /// Blocks that came into each.
    pub stored: [u64; 3],
    /// Blocks that each did not take: larger than the cache, or nothing in it could go.
    pub refused: [u64; 3],
    /// Blocks that no tier had any more once they were evicted.
    pub lost: u64,
    /// The most blocks that each held.
    pub peak_blocks: [usize; 3],
    /// Payload bytes read from each.
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
    let mut tiers = Tiers::new(&trace, config)?;
    let mut server = Server::new(config.costs);
    for (index, request) in trace.requests().enumerate() {
        let work = tiers.serve(&trace, &request)?;
        let times = server.serve(&work);
        tiers.note(&work, times);
        if (index + 1).is_multiple_of(STRIDE) && progress(index + 1).is_break() {
            break;
        }
    }
    let mut outcome = tiers.outcome;
    outcome.peak_blocks[1] = tiers.l2.peak;
    outcome.peak_blocks[2] = tiers.l3.peak;
    let _ = progress(outcome.requests);
    Ok(outcome)
}

#[derive(Debug)]
struct Tiers<'a> {
    config: &'a TiersConfig,
    l1: RadixTree,
    l1_capacity: usize,
    l2: Level,
    l3: Level,
    /// By block: what it hangs from, how deep, and its tokens.
    parents: Vec<u32>,
    depths: Vec<u32>,
    tokens: Vec<u32>,
    /// By block: how many requests used it, two or more being the same.
    uses: Vec<u8>,
    /// By block: whether L1, or the request under way, has its bytes.
    at_hand: Vec<bool>,
    /// The category of the request under way.
    category: u32,
    outcome: TiersOutcome,
}

impl<'a> Tiers<'a> {
    fn new(trace: &Trace, config: &'a TiersConfig) -> Result<Self> {
        let l1_capacity = capacity_of(config.capacities[0])?;
        let unique = trace.unique_blocks();
        let by_name = |tier: usize| {
            let most = config.capacities[tier].unwrap_or(unique).min(unique).max(1);
            let name = &config.policies[tier];
            policy::simulated(name, most as u64)
                .map_err(|_| unknown("policy", name, &policies(super::Mode::Flat)))
        };
        let below = |tier: usize| -> Result<Level> {
            let capacity = config.capacities[tier].unwrap_or(usize::MAX);
            Ok(Level::new(by_name(tier)?, capacity, unique))
        };
        let mut parents = vec![ROOT; unique];
        let mut depths = vec![0; unique];
        let mut tokens = vec![0; unique];
        for request in trace.requests() {
            let mut parent = ROOT;
            for (depth, &block) in request.blocks.iter().enumerate() {
                parents[block as usize] = std::mem::replace(&mut parent, block);
                depths[block as usize] = depth as u32;
                let own = trace.tokens_of(&request, depth + 1) - trace.tokens_of(&request, depth);
                // A block that is partial at the end of one prompt may be whole in another.
                let most = &mut tokens[block as usize];
                *most = (own as u32).max(*most);
            }
        }
        Ok(Self {
            config,
            l1: RadixTree::of_ids(by_name(0)?)?,
            l1_capacity,
            l2: below(1)?,
            l3: below(2)?,
            parents,
            depths,
            tokens,
            uses: vec![0; unique],
            at_hand: vec![false; unique],
            category: 0,
            outcome: TiersOutcome::default(),
        })
    }

    fn bytes(&self, blocks: &[u32]) -> u64 {
        let tokens = blocks
            .iter()
            .map(|&block| u64::from(self.tokens[block as usize]));
        tokens.sum::<u64>() * self.config.costs.token_bytes
    }

    fn serve(&mut self, trace: &Trace, request: &Request<'_>) -> Result<Work> {
        let (now, blocks) = (request.at_ms as u64, request.blocks);
        self.category = request.category;
        self.l1.request(now, request.category);
        self.l2.request(now, request.category);
        self.l3.request(now, request.category);
        let (lock, in_l1) = self.l1.claim(&NAMESPACE, blocks);
        let found = self.find(&blocks[in_l1..]);
        let prompt = request.tokens as usize;
        let l1_tokens = trace.tokens_of(request, in_l1) as usize;
        let restored = in_l1 + self.choose(prompt, l1_tokens, &blocks[in_l1..], &found);
        let used = &found[..restored - in_l1];
        let mut work = Work {
            at: request.at_ms / 1000.0,
            prompt,
            // The last token of a prompt is always computed.
            restored: (trace.tokens_of(request, restored) as usize).min(prompt.saturating_sub(1)),
            output: request.output_tokens as usize,
            bytes: [self.bytes(&blocks[..in_l1]), 0, 0],
        };
        // Read, the root's side last, and kept from going meanwhile.
        for (&block, &tier) in blocks[in_l1..restored].iter().zip(used).rev() {
            work.bytes[tier as usize] += self.bytes(&[block]);
            self.outcome.hits[tier as usize] += 1;
            let level = self.level(tier);
            level.touch(block);
            level.pin(block, true);
        }
        self.outcome.hits[0] += in_l1 as u64;
        self.outcome.left_alone += (found.len() - used.len()) as u64;

        let missing = &blocks[in_l1..];
        let mut free = self.l1_capacity - self.l1.stats().total_blocks;
        let mut gone = Vec::new();
        if missing.len() > free {
            let wanted = missing.len() - free;
            free += self
                .l1
                .discard(wanted, |piece| gone.extend_from_slice(piece));
        }
        let taken = &missing[..missing.len().min(free)];
        self.l1.extend(lock, &NAMESPACE, taken, taken)?;
        self.l1.unlock(lock)?;
        self.outcome.evictions[0] += gone.len() as u64;
        self.outcome.refused[0] += (missing.len() - taken.len()) as u64;
        self.outcome.stored[0] += taken.len() as u64;
        self.outcome.bytes_written[0] += self.bytes(taken);
        self.outcome.peak_blocks[0] = self.outcome.peak_blocks[0].max(self.l1.stats().total_blocks);

        for &block in blocks {
            self.at_hand[block as usize] = true;
        }
        for block in gone {
            self.at_hand[block as usize] = false;
            self.demote(block);
        }
        for &block in blocks {
            self.uses[block as usize] = self.uses[block as usize].saturating_add(1);
            let due = match self.config.write {
                WritePolicy::Through => true,
                WritePolicy::Selective => self.uses[block as usize] > 1,
                WritePolicy::Back => false,
            };
            if due && !self.l3.contains(block) {
                self.write(block);
            }
        }
        for (&block, &tier) in blocks[in_l1..restored].iter().zip(used) {
            self.level(tier).pin(block, false);
        }
        for &block in &missing[taken.len()..] {
            self.at_hand[block as usize] = false;
        }
        self.outcome.requests += 1;
        self.outcome.block_refs += blocks.len() as u64;
        self.outcome.tokens += u64::from(request.tokens);
        self.outcome.recomputed_tokens += (prompt - work.restored) as u64;
        Ok(work)
    }

    fn level(&mut self, tier: TierId) -> &mut Level {
        match tier {
            TierId::L2 => &mut self.l2,
            _ => &mut self.l3,
        }
    }

    /// Where the blocks that follow L1's lie, up to the first that is nowhere.
    fn find(&self, blocks: &[u32]) -> Vec<TierId> {
        let tier_of = |&block: &u32| {
            let l2 = self.l2.contains(block).then_some(TierId::L2);
            l2.or_else(|| self.l3.contains(block).then_some(TierId::L3))
        };
        blocks.iter().map_while(tier_of).collect()
    }

    /// How many of the blocks found below L1 are restored.
    fn choose(&mut self, prompt: usize, l1: usize, blocks: &[u32], found: &[TierId]) -> usize {
        match self.config.restore {
            RestoreMode::Never => 0,
            RestoreMode::Auto if !found.is_empty() => {
                let mut left = prompt - l1;
                let parts = blocks.iter().zip(found).map(|(&block, &tier)| {
                    let tokens = left.min(self.tokens[block as usize] as usize);
                    left -= tokens;
                    Part {
                        tier,
                        bytes: self.bytes(&[block]),
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
                best(&question.cuts(&mut costs)).map_or(0, |cut| cut.parts)
            }
            _ => found.len(),
        }
    }

    /// What L1 gave up goes to L2, and what that gives up for it to L3.
    fn demote(&mut self, block: u32) {
        let mut gone = Vec::new();
        if self.config.capacities[1] == Some(0) {
            gone.push(block);
        } else {
            match self.put(TierId::L2, block, &mut gone) {
                Put::Stored => {}
                Put::Present => return,
                Put::NothingToEvict => gone.push(block),
            }
            self.outcome.evictions[1] +=
                gone.iter().filter(|&&other| other != block).count() as u64;
        }
        for block in gone {
            if !self.l3.contains(block) && !self.write(block) {
                self.outcome.lost += 1;
            }
        }
    }

    /// Writes a block to L3, behind what L3 lacks of its chain; false if it could not be.
    fn write(&mut self, block: u32) -> bool {
        if self.config.capacities[2] == Some(0) {
            return false;
        }
        let up = |&block: &u32| {
            let parent = self.parents[block as usize];
            (parent != ROOT && !self.l3.contains(parent)).then_some(parent)
        };
        let chain: Vec<u32> = std::iter::successors(Some(block), up).collect();
        // The block itself is just leaving.
        let readable = |&block: &u32| self.at_hand[block as usize] || self.l2.contains(block);
        if !chain[1..].iter().all(readable) {
            return false;
        }
        let mut gone = Vec::new();
        for &block in chain.iter().rev() {
            if self.put(TierId::L3, block, &mut gone) == Put::NothingToEvict {
                break;
            }
        }
        self.outcome.evictions[2] += gone.len() as u64;
        self.l3.contains(block)
    }

    fn put(&mut self, tier: TierId, block: u32, gone: &mut Vec<u32>) -> Put {
        let (depth, tokens) = (self.depths[block as usize], self.tokens[block as usize]);
        let category = self.category;
        let level = match tier {
            TierId::L2 => &mut self.l2,
            _ => &mut self.l3,
        };
        let put = level.put(block, &self.parents, depth as usize, tokens, category, gone);
        match put {
            Put::Stored => {
                self.outcome.stored[tier as usize] += 1;
                self.outcome.bytes_written[tier as usize] += self.bytes(&[block]);
            }
            Put::Present => {}
            Put::NothingToEvict => self.outcome.refused[tier as usize] += 1,
        }
        put
    }

    fn note(&mut self, work: &Work, times: Times) {
        for (sum, bytes) in self.outcome.bytes_read.iter_mut().zip(work.bytes) {
            *sum += bytes;
        }
        self.outcome.queued.push(times.queued as f32);
        self.outcome.first_token.push(times.first_token as f32);
        self.outcome.makespan = self.outcome.makespan.max(work.at + times.done);
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use proptest::prelude::*;

    use super::{CostModel, ReadCost, Tiers, TiersConfig, TiersOutcome, WritePolicy, replay_tiers};
    use crate::cost::RestoreMode;
    use crate::sim::prefix::{Config, Mode, Outcome, replay};
    use crate::sim::trace::Trace;
    use crate::sim::trace::testing::{prefixes, trace};

    const COSTS: CostModel = CostModel {
        prefill: [0.02, 1.2e-3, 4e-7],
        decode: 0.05,
        token_bytes: 46_080,
        read: [ReadCost {
            latency: 1e-4,
            bandwidth: 2e9,
            transfers: 2,
        }; 3],
        overlap: 0.8,
        concurrency: 1,
    };

    fn config(l1: usize, l2: Option<usize>, l3: Option<usize>, write: WritePolicy) -> TiersConfig {
        TiersConfig {
            capacities: [Some(l1), l2, l3],
            policies: ["lru", "lru", "lru"].map(str::to_owned),
            write,
            restore: RestoreMode::Always,
            costs: COSTS,
        }
    }

    fn run(trace: &Trace, config: &TiersConfig) -> TiersOutcome {
        replay_tiers(trace, config, |_| ControlFlow::Continue(())).unwrap()
    }

    fn one_tier(trace: &Trace, capacity: Option<usize>) -> Outcome {
        let config = Config {
            mode: Mode::Prefix,
            policy: "lru".to_owned(),
            capacity,
        };
        replay(trace, &config, |_| ControlFlow::Continue(())).unwrap()
    }

    fn write() -> impl Strategy<Value = WritePolicy> {
        prop_oneof![
            Just(WritePolicy::Through),
            Just(WritePolicy::Selective),
            Just(WritePolicy::Back)
        ]
    }

    proptest! {
        #[test]
        fn l1_does_not_know_of_what_is_below(
            requests in prefixes(50),
            sizes in (1..20_usize, 0..30_usize, 0..40_usize),
            write in write(),
        ) {
            let trace = trace(&requests);
            let config = config(sizes.0, Some(sizes.1), Some(sizes.2), write);
            let mut tiers = Tiers::new(&trace, &config).unwrap();
            for request in trace.requests() {
                tiers.serve(&trace, &request).unwrap();
                prop_assert_eq!(tiers.l2.validate(&tiers.parents), Ok(()));
                prop_assert_eq!(tiers.l3.validate(&tiers.parents), Ok(()));
                // L3 has whole chains only.
                for block in 0..tiers.parents.len() {
                    let parent = tiers.parents[block];
                    let whole = parent == super::ROOT || tiers.l3.contains(parent);
                    prop_assert!(whole || !tiers.l3.contains(block as u32));
                }
            }
            let (alone, outcome) = (one_tier(&trace, Some(sizes.0)), run(&trace, &config));
            prop_assert_eq!(outcome.hits[0], alone.hits);
            prop_assert_eq!(outcome.evictions[0], alone.evictions);
            prop_assert!(outcome.hits.iter().sum::<u64>() <= one_tier(&trace, None).hits);
        }

        #[test]
        fn a_tier_that_holds_all_finds_all(requests in prefixes(50), l1 in 1..20_usize, deep: bool) {
            let trace = trace(&requests);
            let (l2, l3) = if deep { (Some(3), None) } else { (None, Some(0)) };
            // L2 gets only what was in L1 once.
            prop_assume!(deep || requests.iter().all(|blocks| blocks.len() <= l1));
            let outcome = run(&trace, &config(l1, l2, l3, WritePolicy::Through));
            let ideal = one_tier(&trace, None);
            prop_assert_eq!(outcome.hits.iter().sum::<u64>(), ideal.hits);
            prop_assert_eq!(outcome.lost, 0);
        }

        #[test]
        fn without_a_tier_below_it_is_one_cache(requests in prefixes(50), l1 in 1..20_usize) {
            let trace = trace(&requests);
            let outcome = run(&trace, &config(l1, Some(0), Some(0), WritePolicy::Through));
            let alone = one_tier(&trace, Some(l1));
            prop_assert_eq!(outcome.hits, [alone.hits, 0, 0]);
            prop_assert_eq!(outcome.lost, alone.evictions);
            prop_assert_eq!(outcome.bytes_read[1..].to_vec(), [0, 0]);
        }

        /// The rule looks at one request by itself, so the first that finds anything below is never slower for it.
        #[test]
        fn the_rule_never_waits_longer_than_restoring_all_or_nothing(
            blocks in 1..60_usize, bandwidth in 1e5..1e10_f64, latency in 0.0..2.0_f64,
        ) {
            let prompt: Vec<u64> = (0..blocks as u64).collect();
            let trace = trace(&[prompt.clone(), vec![1000], prompt]);
            let first_token = |restore| {
                let mut config = config(blocks, Some(0), None, WritePolicy::Through);
                config.capacities[0] = Some(1);
                config.restore = restore;
                config.costs.read = [ReadCost { latency, bandwidth, transfers: 1 }; 3];
                config.costs.concurrency = 9;
                run(&trace, &config).first_token[2]
            };
            let auto = first_token(RestoreMode::Auto);
            let best = first_token(RestoreMode::Always).min(first_token(RestoreMode::Never));
            prop_assert!(auto <= best * 1.000_01 + 0.002, "{} {}", auto, best);
        }
    }

    #[test]
    fn write_back_writes_what_l2_gives_up_and_selective_what_is_used_twice() {
        let trace = trace(&[vec![0, 1, 2], vec![3, 4, 5], vec![0, 1, 6], vec![7, 8, 9]]);
        let stored = |write| run(&trace, &config(3, Some(2), None, write)).stored;
        assert_eq!(stored(WritePolicy::Through)[2], 10);
        // 0 and 1, when they were used again.
        let selective = stored(WritePolicy::Selective);
        let back = stored(WritePolicy::Back);
        assert!(selective[2] >= 2 && selective[2] < 10, "{selective:?}");
        assert!(back[2] > 0 && back[2] < 10, "{back:?}");
    }
}
