//! What one mutex guards: pool, sequences, tree, and who holds what of them.

mod holds;
mod journal;
mod leaving;
mod replica;

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::block::{BlockId, BlockPool, PoolStats, SequenceId, SequenceTable};
use crate::clock::Clock;
use crate::error::Result;
use crate::key::BlockKey;
use crate::radix::{Divergence, Evicted, LockId, Match, RadixTree};
use crate::run::NEVER;

use super::lend::{KeyIndex, Keyed};

pub(in crate::cache) use journal::Journal;
pub(crate) use replica::Replica;

/// A request's claim on L1: its sequence, and the lock on the path that the sequence was forked from.
pub(in crate::cache) type HoldId = u64;

#[derive(Debug)]
struct Hold {
    namespace: BlockKey,
    /// None once given up under pressure.
    claim: Option<Claim>,
    /// The request, and each commit of it that waits.
    users: u32,
    /// Its place in the order of idle holds, if it is one.
    idle: Option<u64>,
    /// Restores that are reading its blocks just now.
    copies: u32,
}

#[derive(Clone, Copy, Debug)]
struct Claim {
    sequence: SequenceId,
    path: Match,
    lock: LockId,
}

/// How full L1 is. Blocks: `free + evictable + protected + private + in_flight = blocks`.
#[derive(Clone, Debug)]
pub struct L1Stats {
    /// Pool and sequences.
    pub pool: PoolStats,
    /// Blocks in the tree that may go.
    pub evictable: usize,
    /// Blocks in the tree that are locked.
    pub protected: usize,
    /// Blocks that only sequences hold (partial tails, duplicates, blocks evicted from the tree while in use).
    pub private: usize,
    /// Blocks on their way to the tiers below.
    pub in_flight: usize,
    /// Nodes of the tree.
    pub nodes: usize,
    /// Blocks that requests took by reference instead of computing them, so far.
    pub reused_blocks: u64,
    /// Blocks that sequences hold now beyond the distinct ones: what sharing saves at this moment.
    pub saved_blocks: usize,
    /// Blocks that left for the tiers below or were dropped, so far.
    pub evicted_blocks: u64,
    /// Blocks that could not be kept for want of room, so far.
    pub refused_blocks: u64,
}

#[derive(Debug)]
pub(in crate::cache) struct L1 {
    pub(in crate::cache) pool: BlockPool,
    sequences: SequenceTable,
    tree: RadixTree,
    block_tokens: usize,
    holds: HashMap<HoldId, Hold>,
    next_hold: HoldId,
    /// Holds that may be given up under pressure, longest idle first.
    idle: BTreeMap<u64, HoldId>,
    next_idle: u64,
    /// Evicted from the tree, their bytes still being copied down.
    in_flight: HashSet<BlockId>,
    clock: Clock,
    /// When each block's time is over, by block id; stale for blocks that are not in the tree.
    expiries: Vec<u64>,
    /// Whether any block ever had a limit.
    mortal: bool,
    /// The whole blocks of the tree, and those in flight, by their keys.
    index: KeyIndex,
    /// Blocks that the store is writing or will write, with how often each was lent.
    lent: HashMap<BlockId, u32>,
    /// Blocks whose bytes came out of a lossy codec.
    decoded: HashSet<BlockId>,
    /// There while it is captured.
    journal: Option<Journal>,
    reused_blocks: u64,
    evicted_blocks: u64,
    refused_blocks: u64,
}

/// Blocks of a sequence that were appended and wait for their bytes.
#[derive(Debug)]
pub(in crate::cache) struct Appended {
    /// Tokens that the sequence had before.
    pub(in crate::cache) from: usize,
    /// Tokens that it has now.
    pub(in crate::cache) to: usize,
    /// Its blocks.
    pub(in crate::cache) blocks: Vec<BlockId>,
}

/// What became of a hold that wants more blocks.
#[derive(Debug)]
pub(in crate::cache) enum Grown {
    /// It has them, or as many as there are.
    Appended(Appended),
    /// These went for it, and are free once they arrived below: ask again then.
    Evicted(Vec<Evicted>),
    /// Nothing can go just now, but blocks are on their way out.
    Draining,
}

impl L1 {
    pub(in crate::cache) fn new(
        pool: BlockPool,
        tree: RadixTree,
        clock: Clock,
        journal: Option<Journal>,
    ) -> Result<Self> {
        let block_tokens = tree.block_tokens();
        Ok(Self {
            sequences: SequenceTable::new(&pool, block_tokens)?,
            expiries: vec![NEVER; pool.blocks()],
            mortal: false,
            clock,
            pool,
            tree,
            block_tokens,
            holds: HashMap::new(),
            next_hold: 0,
            idle: BTreeMap::new(),
            next_idle: 0,
            in_flight: HashSet::new(),
            index: KeyIndex::default(),
            lent: HashMap::new(),
            decoded: HashSet::new(),
            journal,
            reused_blocks: 0,
            evicted_blocks: 0,
            refused_blocks: 0,
        })
    }

    fn expiry(&self, block: u32) -> u64 {
        self.expiries.get(block as usize).copied().unwrap_or(NEVER)
    }

    /// When the time of the earliest of these blocks is over.
    pub(in crate::cache) fn earliest_expiry<'a>(
        &self,
        blocks: impl Iterator<Item = &'a BlockId>,
    ) -> u64 {
        let expiries = blocks.map(|block| self.expiry(block.0));
        expiries.min().unwrap_or(NEVER)
    }

    /// When the time of each block of a hold's sequence is over.
    pub(in crate::cache) fn expiries(&self, id: HoldId) -> Vec<u64> {
        let blocks = self.sequence(id).map_or(&[][..], |(blocks, _)| blocks);
        blocks.iter().map(|block| self.expiry(block.0)).collect()
    }

    /// Notes when the time of published blocks is over. Those that the tree had already were stored again: the later end holds.
    fn set_expiries(&mut self, path: &Match, had: usize, expiries: &[u64]) -> Result<()> {
        self.mortal |= expiries.iter().any(|expires| *expires != NEVER);
        if !self.mortal {
            return Ok(());
        }
        let mut blocks = Vec::with_capacity(path.blocks());
        self.tree.blocks_of(path, &mut blocks)?;
        for (position, block) in blocks.into_iter().enumerate() {
            let new = expiries.get(position).copied().unwrap_or(NEVER);
            if let Some(expires) = self.expiries.get_mut(block as usize) {
                *expires = if position < had {
                    new.max(*expires)
                } else {
                    new
                };
            }
        }
        Ok(())
    }

    /// How far the tree knows a prompt; counts as no use.
    pub(in crate::cache) fn divergence(&self, namespace: &BlockKey, tokens: &[u32]) -> Divergence {
        self.tree.divergence(namespace, tokens)
    }

    /// The namespaces that the tree has anything of.
    pub(in crate::cache) fn namespaces(&self) -> Vec<BlockKey> {
        self.tree.namespaces().copied().collect()
    }

    /// Notes of a block that is being filled whether its bytes came out of a lossy codec.
    pub(in crate::cache) fn set_decoded(&mut self, block: BlockId, decoded: bool) {
        if decoded {
            self.decoded.insert(block);
        } else {
            self.decoded.remove(&block);
        }
    }

    /// Which of these blocks hold what came out of a lossy codec.
    pub(in crate::cache) fn decoded<'a>(
        &self,
        blocks: impl Iterator<Item = &'a BlockId>,
    ) -> Vec<bool> {
        blocks.map(|block| self.decoded.contains(block)).collect()
    }

    /// Tokens of `tokens` that the tree has, in whole blocks, and the key of the last of these. Counts as a use.
    pub(in crate::cache) fn matched(
        &mut self,
        namespace: &BlockKey,
        tokens: &[u32],
    ) -> Result<(usize, BlockKey)> {
        let live = self.live_tokens(namespace, tokens)?;
        self.note_use(namespace, tokens, live);
        let (lock, _) = self.tree.claim(namespace, &tokens[..live]);
        self.tree.use_locked(lock)?;
        let found = self.tree.locked(lock)?;
        // A lock on nothing knows no namespace.
        let key = if found.tokens() == 0 {
            *namespace
        } else {
            self.tree.path_key(&found)?
        };
        self.tree.unlock(lock)?;
        Ok((found.tokens(), key))
    }

    pub(in crate::cache) fn stats(&self) -> L1Stats {
        let pool = PoolStats::of(&self.pool, &self.sequences);
        let tree = self.tree.stats();
        L1Stats {
            evictable: tree.evictable_blocks(),
            protected: tree.protected_blocks,
            private: pool
                .used
                .saturating_sub(tree.total_blocks + self.in_flight.len()),
            in_flight: self.in_flight.len(),
            nodes: tree.nodes,
            reused_blocks: self.reused_blocks,
            saved_blocks: self.saved_blocks(),
            evicted_blocks: self.evicted_blocks,
            refused_blocks: self.refused_blocks,
            pool,
        }
    }

    fn saved_blocks(&self) -> usize {
        let mut distinct = HashSet::new();
        let mut references = 0;
        for claim in self.holds.values().filter_map(|hold| hold.claim.as_ref()) {
            if let Ok(blocks) = self.sequences.blocks(claim.sequence) {
                references += blocks.len();
                distinct.extend(blocks.iter().copied());
            }
        }
        references - distinct.len()
    }

    pub(in crate::cache) fn validate(&self) -> std::result::Result<(), String> {
        self.tree.validate()?;
        let mut external = HashMap::<BlockId, u32>::new();
        for block in self
            .tree
            .all_blocks()
            .map(BlockId)
            .chain(self.in_flight.iter().copied())
        {
            *external.entry(block).or_default() += 1;
        }
        self.index.validate()?;
        let keyed = self.index.blocks().collect::<HashSet<_>>();
        if let Some(block) = keyed.iter().find(|block| !external.contains_key(block)) {
            return Err(format!("block {block} has a key and is not in the tree"));
        }
        let known = |block: &u32| keyed.contains(&BlockId(*block));
        if let Some(block) = self.tree.all_blocks().find(|block| !known(block)) {
            return Err(format!("block {block} of the tree has no key"));
        }
        for (block, times) in &self.lent {
            *external.entry(*block).or_default() += times;
        }
        self.sequences
            .validate(&self.pool, |block| {
                external.get(&block).copied().unwrap_or(0)
            })
            .map_err(|error| format!("sequences: {error}"))?;
        let idle = |(place, id): (&u64, &HoldId)| {
            self.holds
                .get(id)
                .is_some_and(|hold| hold.idle == Some(*place))
        };
        if !self.idle.iter().all(idle) || self.idle.len() > self.holds.len() {
            return Err("the order of idle holds names one that is not idle".to_owned());
        }
        let stats = self.stats();
        let sum =
            stats.pool.free + stats.evictable + stats.protected + stats.private + stats.in_flight;
        if sum != stats.pool.blocks {
            return Err(format!(
                "blocks do not add up to {}: {stats:?}",
                stats.pool.blocks
            ));
        }
        Ok(())
    }
}
