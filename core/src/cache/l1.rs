//! What one mutex guards: pool, sequences, tree, and who holds what of them.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::block::{BlockId, BlockPool, PoolStats, SequenceId, SequenceTable};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::key::BlockKey;
use crate::radix::{Divergence, Evicted, LockId, Match, RadixTree};
use crate::run::NEVER;

use super::lend::{KeyIndex, Keyed};

/// A request's claim on L1: its sequence, and the lock on the path that the sequence was forked from.
pub(super) type HoldId = u64;

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
pub(super) struct L1 {
    pub(super) pool: BlockPool,
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
    reused_blocks: u64,
    evicted_blocks: u64,
    refused_blocks: u64,
}

/// Blocks of a sequence that were appended and wait for their bytes.
#[derive(Debug)]
pub(super) struct Appended {
    /// Tokens that the sequence had before.
    pub(super) from: usize,
    /// Tokens that it has now.
    pub(super) to: usize,
    /// Its blocks.
    pub(super) blocks: Vec<BlockId>,
}

impl L1 {
    pub(super) fn new(pool: BlockPool, tree: RadixTree, clock: Clock) -> Result<Self> {
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
            reused_blocks: 0,
            evicted_blocks: 0,
            refused_blocks: 0,
        })
    }

    /// Matches whole blocks of `tokens`, locks the path and forks a sequence from it. Gives back the hold and the tokens that matched.
    pub(super) fn begin(&mut self, namespace: BlockKey, tokens: &[u32]) -> Result<(HoldId, usize)> {
        let (claim, blocks) = self.claim(&namespace, tokens)?;
        self.reused_blocks += blocks.len() as u64;
        let id = self.insert_hold(Hold {
            namespace,
            claim: Some(claim),
            users: 1,
            idle: None,
            copies: 0,
        });
        Ok((id, blocks.len() * self.block_tokens))
    }

    /// What the policy calls a prompt's whole blocks.
    pub(super) fn block_names(&self, namespace: &BlockKey, tokens: &[u32]) -> Vec<u64> {
        self.tree.block_names(namespace, tokens)
    }

    fn insert_hold(&mut self, hold: Hold) -> HoldId {
        let id = self.next_hold;
        self.next_hold += 1;
        self.holds.insert(id, hold);
        id
    }

    fn claim(&mut self, namespace: &BlockKey, tokens: &[u32]) -> Result<(Claim, Vec<BlockId>)> {
        let found = self.live_prefix(namespace, tokens)?;
        let lock = self.tree.lock(&found)?;
        // The match itself may name a node that goes further, and may be evicted.
        let path = self.tree.locked(lock)?;
        match self.sequence_over(&path) {
            Ok((sequence, blocks)) => Ok((
                Claim {
                    sequence,
                    path,
                    lock,
                },
                blocks,
            )),
            Err(error) => {
                self.tree.unlock(lock)?;
                Err(error)
            }
        }
    }

    /// The longest prefix in the tree whose time is not over. What is over stays until it is evicted or stored again.
    fn live_prefix(&mut self, namespace: &BlockKey, tokens: &[u32]) -> Result<Match> {
        let found = self.tree.match_prefix(namespace, tokens);
        if !self.mortal {
            return Ok(found);
        }
        let mut blocks = Vec::with_capacity(found.blocks());
        self.tree.blocks_of(&found, &mut blocks)?;
        let now = self.clock.now();
        let over = |block: &u32| self.expiry(*block) <= now;
        match blocks.iter().position(over) {
            Some(live) => Ok(self
                .tree
                .match_prefix(namespace, &tokens[..live * self.block_tokens])),
            None => Ok(found),
        }
    }

    fn expiry(&self, block: u32) -> u64 {
        self.expiries.get(block as usize).copied().unwrap_or(NEVER)
    }

    /// When the time of the earliest of these blocks is over.
    pub(super) fn earliest_expiry<'a>(&self, blocks: impl Iterator<Item = &'a BlockId>) -> u64 {
        let expiries = blocks.map(|block| self.expiry(block.0));
        expiries.min().unwrap_or(NEVER)
    }

    /// When the time of each block of a hold's sequence is over.
    pub(super) fn expiries(&self, id: HoldId) -> Vec<u64> {
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

    fn sequence_over(&mut self, path: &Match) -> Result<(SequenceId, Vec<BlockId>)> {
        let mut ids = Vec::with_capacity(path.blocks());
        self.tree.blocks_of(path, &mut ids)?;
        let blocks = ids.into_iter().map(BlockId).collect::<Vec<_>>();
        let sequence = self
            .sequences
            .from_blocks(&mut self.pool, &blocks, path.tokens())?;
        Ok((sequence, blocks))
    }

    fn give_up(&mut self, claim: Claim) -> Result<()> {
        self.tree.unlock(claim.lock)?;
        self.sequences.free(&mut self.pool, claim.sequence)?;
        Ok(())
    }

    /// How far the tree knows a prompt; counts as no use.
    pub(super) fn divergence(&self, namespace: &BlockKey, tokens: &[u32]) -> Divergence {
        self.tree.divergence(namespace, tokens)
    }

    /// The namespaces that the tree has anything of.
    pub(super) fn namespaces(&self) -> Vec<BlockKey> {
        self.tree.namespaces().copied().collect()
    }

    /// One more user of a hold.
    pub(super) fn retain(&mut self, id: HoldId) {
        if let Some(hold) = self.holds.get_mut(&id) {
            hold.users += 1;
            if let Some(place) = hold.idle.take() {
                self.idle.remove(&place);
            }
        }
    }

    /// One user fewer; the last one frees sequence and lock.
    pub(super) fn release(&mut self, id: HoldId) -> Result<()> {
        let Some(hold) = self.holds.get_mut(&id) else {
            return Ok(());
        };
        hold.users -= 1;
        if hold.users > 0 {
            return Ok(());
        }
        let Some(hold) = self.holds.remove(&id) else {
            return Ok(());
        };
        if let Some(place) = hold.idle {
            self.idle.remove(&place);
        }
        hold.claim.map_or(Ok(()), |claim| self.give_up(claim))
    }

    /// From now on the hold may be given up under pressure, oldest first.
    pub(super) fn set_idle(&mut self, id: HoldId) {
        if let Some(hold) = self.holds.get_mut(&id)
            && hold.idle.is_none()
        {
            hold.idle = Some(self.next_idle);
            self.idle.insert(self.next_idle, id);
            self.next_idle += 1;
        }
    }

    /// The blocks of a hold's sequence, which stay as they are until [`Self::end_copy`], even if the hold's request is dropped.
    /// None if they were given up.
    pub(super) fn start_copy(&mut self, id: HoldId) -> Option<Vec<BlockId>> {
        let blocks = self.sequence(id)?.0.to_vec();
        let hold = self.holds.get_mut(&id)?;
        hold.copies += 1;
        hold.users += 1;
        Some(blocks)
    }

    pub(super) fn end_copy(&mut self, id: HoldId) -> Result<()> {
        if let Some(hold) = self.holds.get_mut(&id) {
            hold.copies -= 1;
        }
        self.release(id)
    }

    /// Notes of a block that is being filled whether its bytes came out of a lossy codec.
    pub(super) fn set_decoded(&mut self, block: BlockId, decoded: bool) {
        if decoded {
            self.decoded.insert(block);
        } else {
            self.decoded.remove(&block);
        }
    }

    /// Which of these blocks hold what came out of a lossy codec.
    pub(super) fn decoded<'a>(&self, blocks: impl Iterator<Item = &'a BlockId>) -> Vec<bool> {
        blocks.map(|block| self.decoded.contains(block)).collect()
    }

    /// Gives up the hold that has been idle longest.
    pub(super) fn reclaim_idle(&mut self) -> Result<bool> {
        let free = |id: &HoldId| self.holds.get(id).is_some_and(|hold| hold.copies == 0);
        let Some(place) = self
            .idle
            .iter()
            .find(|(_, id)| free(id))
            .map(|(place, _)| *place)
        else {
            return Ok(false);
        };
        let hold = self
            .idle
            .remove(&place)
            .and_then(|id| self.holds.get_mut(&id));
        let Some(claim) = hold.and_then(|hold| {
            hold.idle = None;
            hold.claim.take()
        }) else {
            return Ok(false);
        };
        self.give_up(claim)?;
        Ok(true)
    }

    /// A second hold on the same blocks, and its tokens. None if the first was given up under pressure.
    pub(super) fn fork(&mut self, id: HoldId) -> Result<Option<(HoldId, usize)>> {
        let Some(hold) = self.holds.get(&id) else {
            return Ok(None);
        };
        let (namespace, Some(claim)) = (hold.namespace, hold.claim.as_ref()) else {
            return Ok(None);
        };
        let path = claim.path;
        let sequence = self.sequences.fork(&mut self.pool, claim.sequence)?;
        let lock = self.tree.lock(&path)?;
        let tokens = self.sequences.tokens(sequence)?;
        self.reused_blocks += self.sequences.blocks(sequence)?.len() as u64;
        let claim = Some(Claim {
            sequence,
            path,
            lock,
        });
        let id = self.insert_hold(Hold {
            namespace,
            claim,
            users: 1,
            idle: None,
            copies: 0,
        });
        self.set_idle(id);
        Ok(Some((id, tokens)))
    }

    /// Blocks and tokens of a hold's sequence.
    pub(super) fn sequence(&self, id: HoldId) -> Option<(&[BlockId], usize)> {
        let claim = self.holds.get(&id)?.claim.as_ref()?;
        let blocks = self.sequences.blocks(claim.sequence).ok()?;
        Some((blocks, self.sequences.tokens(claim.sequence).ok()?))
    }

    /// Takes over by reference what the tree has of `tokens` beyond the hold's sequence.
    pub(super) fn adopt(&mut self, id: HoldId, tokens: &[u32]) -> Result<()> {
        let Some(hold) = self.holds.get(&id) else {
            return Ok(());
        };
        let namespace = hold.namespace;
        let before = self.sequence(id).map(|(_, tokens)| tokens);
        if before.is_some_and(|before| before % self.block_tokens != 0) {
            return Ok(());
        }
        let (claim, blocks) = self.claim(&namespace, tokens)?;
        if before.is_some_and(|before| before >= blocks.len() * self.block_tokens) {
            return self.give_up(claim);
        }
        let before = self
            .holds
            .get_mut(&id)
            .and_then(|hold| hold.claim.replace(claim));
        before.map_or(Ok(()), |claim| self.give_up(claim))
    }

    /// Lengthens the hold's sequence to `tokens` tokens.
    pub(super) fn append(&mut self, id: HoldId, tokens: usize) -> Result<Appended> {
        let Some(claim) = self.holds.get(&id).and_then(|hold| hold.claim.as_ref()) else {
            return Ok(Appended {
                from: tokens,
                to: tokens,
                blocks: Vec::new(),
            });
        };
        let from = self.sequences.tokens(claim.sequence)?;
        if tokens > from {
            self.sequences
                .append(&mut self.pool, claim.sequence, tokens - from)?;
        }
        Ok(Appended {
            from,
            to: tokens.max(from),
            blocks: self.sequences.blocks(claim.sequence)?.to_vec(),
        })
    }

    /// How many tokens the hold's sequence could have with the blocks that are free.
    pub(super) fn room(&self, id: HoldId) -> usize {
        let Some((blocks, tokens)) = self.sequence(id) else {
            return 0;
        };
        // A shared partial tail would be copied first: one block of the free ones goes there.
        let copied = usize::from(
            tokens % self.block_tokens != 0
                && blocks
                    .last()
                    .is_some_and(|block| self.pool.ref_count(*block) > 1),
        );
        match self.pool.free().checked_sub(copied) {
            Some(free) => (blocks.len() + free) * self.block_tokens,
            None => tokens,
        }
    }

    /// Puts the hold's whole blocks into the tree, now that their bytes are there, and locks that path instead. `keys` are
    /// the keys of the blocks of `tokens`, and `expiries` says when the time of each is over. Gives back how many leading tokens
    /// the tree has of it now, and how many it had before.
    pub(super) fn publish(
        &mut self,
        id: HoldId,
        tokens: &[u32],
        keys: &[BlockKey],
        expiries: &[u64],
    ) -> Result<(usize, usize)> {
        let Some(hold) = self.holds.get(&id) else {
            return Ok((0, 0));
        };
        let (namespace, Some(claim)) = (hold.namespace, hold.claim.as_ref()) else {
            return Ok((0, 0));
        };
        let whole = self.sequences.tokens(claim.sequence)?.min(tokens.len()) / self.block_tokens;
        if whole == 0 {
            return Ok((0, 0));
        }
        let tokens = &tokens[..whole * self.block_tokens];
        let blocks = &self.sequences.blocks(claim.sequence)?[..whole];
        let ids = blocks.iter().map(|block| block.0).collect::<Vec<_>>();
        let inserted = self.tree.insert(&namespace, tokens, &ids)?;
        for (at, block) in blocks.iter().enumerate().skip(inserted.duplicates) {
            self.pool.retain(*block)?;
            self.index.insert(Keyed {
                namespace,
                parent: at.checked_sub(1).map_or(namespace, |before| keys[before]),
                key: keys[at],
                block: *block,
            });
        }
        if let Some(displaced) = inserted.displaced {
            self.pool.release(BlockId(displaced))?;
        }
        self.set_expiries(&inserted.path, inserted.duplicates, expiries)?;
        let lock = self.tree.lock(&inserted.path)?;
        let path = self.tree.locked(lock)?;
        let Some(claim) = self.holds.get_mut(&id).and_then(|hold| hold.claim.as_mut()) else {
            self.tree.unlock(lock)?;
            return Ok((0, 0));
        };
        claim.path = path;
        let before = std::mem::replace(&mut claim.lock, lock);
        self.tree.unlock(before)?;
        let block = self.block_tokens;
        Ok((whole * block, inserted.duplicates * block))
    }

    /// Takes up to `wanted` blocks out of the tree; they stay allocated until [`Self::finish_eviction`].
    pub(super) fn start_eviction(&mut self, wanted: usize) -> Vec<Evicted> {
        let mut evicted = Vec::new();
        self.tree.evict_keyed(wanted, &mut evicted);
        for part in &evicted {
            self.evicted_blocks += part.blocks().len() as u64;
            self.in_flight
                .extend(part.blocks().iter().copied().map(BlockId));
        }
        evicted
    }

    /// The bytes of evicted blocks are copied: their memory may be used again.
    pub(super) fn finish_eviction(&mut self, blocks: &[BlockId]) -> Result<()> {
        for block in blocks {
            self.in_flight.remove(block);
            self.index.remove(*block);
            self.pool.release(*block)?;
        }
        Ok(())
    }

    /// Whether blocks wait for the tiers below, and will be free without anyone's doing.
    pub(super) fn is_draining(&self) -> bool {
        !self.in_flight.is_empty() || !self.lent.is_empty()
    }

    /// The blocks up to and with `key`, the first one first, which stay as they are until [`Self::take_back`]. None if L1 does
    /// not have the block.
    pub(super) fn lend(&mut self, key: &BlockKey) -> Result<Vec<Keyed>> {
        let chain = self.index.chain(key);
        for entry in &chain {
            self.pool.retain(entry.block)?;
            *self.lent.entry(entry.block).or_insert(0) += 1;
        }
        Ok(chain)
    }

    pub(super) fn take_back(&mut self, blocks: &[BlockId]) -> Result<()> {
        for block in blocks {
            if let Some(times) = self.lent.get_mut(block) {
                *times -= 1;
                if *times == 0 {
                    self.lent.remove(block);
                }
            }
            self.pool.release(*block)?;
        }
        Ok(())
    }

    /// Keys of the last blocks of all chains.
    pub(super) fn chain_ends(&self) -> Vec<BlockKey> {
        self.index.ends()
    }

    pub(super) fn count_refused(&mut self, blocks: usize) {
        self.refused_blocks += blocks as u64;
    }

    /// Drops what the tree holds of a namespace, or of all.
    pub(super) fn clear(&mut self, namespace: Option<&BlockKey>) -> Result<usize> {
        while self.reclaim_idle()? {}
        let namespaces = match namespace {
            Some(one) => vec![*one],
            None => self.tree.namespaces().copied().collect(),
        };
        let mut gone = 0;
        for namespace in &namespaces {
            for block in self.tree.remove_namespace(namespace).blocks {
                self.index.remove(BlockId(block));
                self.pool.release(BlockId(block))?;
                gone += 1;
            }
        }
        Ok(gone)
    }

    /// Tokens of `tokens` that the tree has, in whole blocks, and the key of the last of these. Counts as a use.
    pub(super) fn matched(
        &mut self,
        namespace: &BlockKey,
        tokens: &[u32],
    ) -> Result<(usize, BlockKey)> {
        let found = self.live_prefix(namespace, tokens)?;
        Ok((found.tokens(), self.tree.path_key(&found)?))
    }

    /// The key of the last block of the path that a hold locks; the namespace if that has none.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`] if the hold was given up: any key would be a guess.
    pub(super) fn path_key(&mut self, id: HoldId) -> Result<BlockKey> {
        let hold = self.holds.get(&id).ok_or(Error::UnknownSequence(id))?;
        let claim = hold.claim.as_ref().ok_or(Error::UnknownSequence(id))?;
        if claim.path.blocks() == 0 {
            return Ok(hold.namespace);
        }
        self.tree.path_key(&claim.path)
    }

    /// Has the tree remember what `keys` says of the path that a hold locks, so that it is not hashed again.
    pub(super) fn remember_key(&mut self, id: HoldId, keys: &[BlockKey]) -> Result<()> {
        let claim = self.holds.get(&id).and_then(|hold| hold.claim.as_ref());
        match claim.map(|claim| (claim.path, claim.path.blocks().checked_sub(1))) {
            Some((path, Some(last))) if last < keys.len() => {
                self.tree.remember_key(&path, keys[last])
            }
            _ => Ok(()),
        }
    }

    pub(super) fn stats(&self) -> L1Stats {
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

    pub(super) fn validate(&self) -> std::result::Result<(), String> {
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
