//! L1 driven by a capture: the same pool, sequences and tree, over blocks without bytes.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Grown, HoldId, L1};
use crate::block::{BlockId, BlockPool};
use crate::cache::upper::Upper;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::key::BlockKey;
use crate::policy::EvictionPolicy;
use crate::radix::{Evicted, RadixTree};
use crate::run::NEVER;
use crate::sim::capture::{Claim, L1Event, Name};
use crate::store::{PayloadFree, Shape};

/// An L1 whose blocks' tokens stand for the names of a capture.
#[derive(Debug)]
pub(crate) struct Replica {
    l1: L1,
    /// What stands for a name: the token that its block is full of.
    tokens: HashMap<Name, u32>,
    /// The blocks of holds, as the capture says.
    holds: HashMap<HoldId, Held>,
    /// Whether evicted blocks are free at once, and none are lent: what time decided live is not asked for.
    timeless: bool,
    /// What lies below an L1 that is timeless.
    below: Option<Below>,
}

#[derive(Debug, Clone)]
struct Held {
    namespace: BlockKey,
    names: Vec<Name>,
    /// Leading blocks that a commit has handed over.
    committed: usize,
}

/// A store without payload, and what it may borrow of L1.
#[derive(Debug)]
struct Below {
    store: Arc<PayloadFree>,
    upper: Arc<Upper>,
}

fn keys(names: &[Name]) -> Vec<BlockKey> {
    names.iter().map(|name| name.key()).collect()
}

fn unknown(what: &str, number: u64) -> Error {
    Error::invalid(format!(
        "the capture speaks of {what} {number}, which did not begin"
    ))
}

impl Replica {
    /// An L1 of `blocks` blocks.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for sizes that no L1 has.
    pub(crate) fn new(
        blocks: usize,
        block_tokens: usize,
        policy: Box<dyn EvictionPolicy>,
        timeless: bool,
    ) -> Result<Self> {
        let tree = RadixTree::of_named_blocks(block_tokens, policy)?;
        Ok(Self {
            l1: L1::new(BlockPool::new(blocks, 0)?, tree, Clock::default(), None)?,
            tokens: HashMap::new(),
            holds: HashMap::new(),
            timeless,
            below: None,
        })
    }

    /// Puts a timeless L1 above a store.
    pub(crate) fn over(mut self, store: &Arc<PayloadFree>, shape: &Shape) -> Self {
        let upper = Arc::new(Upper::new(shape.clone()));
        store.set_above(&upper);
        self.below = Some(Below {
            store: Arc::clone(store),
            upper,
        });
        self
    }

    /// Tokens for these blocks.
    fn spell(&mut self, names: &[Name]) -> Vec<u32> {
        let block_tokens = self.l1.block_tokens;
        let mut tokens = Vec::with_capacity(names.len() * block_tokens);
        for name in names {
            let next = self.tokens.len() as u32;
            let token = *self.tokens.entry(*name).or_insert(next);
            if token == next {
                self.l1.tree.name_block(token, name.0);
            }
            tokens.extend(std::iter::repeat_n(token, block_tokens));
        }
        tokens
    }

    /// Tokens for those of these blocks that may be found: all, where time does not tell.
    fn spell_live(&mut self, names: &[Name], live: Option<u64>) -> Vec<u32> {
        let live = live.filter(|_| !self.timeless);
        let live = live.map_or(names.len(), |live| names.len().min(live as usize));
        self.spell(&names[..live])
    }

    /// A request begins; gives back how many of its blocks were found, by tier.
    ///
    /// # Errors
    /// What L1 says.
    pub(crate) fn begin(
        &mut self,
        time_ms: u64,
        category: u32,
        claim: &Claim,
        names: Vec<Name>,
    ) -> Result<[u64; 3]> {
        let namespace = claim.namespace.key();
        let tokens = self.spell_live(&names, claim.live);
        if self.timeless {
            let gone = self.l1.tell_request(time_ms, category)?;
            if let Some(below) = &self.below {
                below.upper.remove(gone);
                below.store.request(time_ms, category);
            }
        }
        let (hold, found) = self.l1.begin(namespace, &tokens, category)?;
        let found = found / self.l1.block_tokens;
        let mut hits = [found as u64, 0, 0];
        if let Some(below) = &self.below {
            for step in below.store.plan(&keys(&names[found..])).steps {
                hits[step.tier as usize] += step.blocks as u64;
            }
        }
        let held = Held {
            namespace,
            names,
            committed: 0,
        };
        self.holds.insert(hold, held);
        Ok(hits)
    }

    fn held(&self, hold: HoldId) -> Result<&Held> {
        self.holds.get(&hold).ok_or_else(|| unknown("hold", hold))
    }

    /// The commit of these blocks begins.
    fn adopt(
        &mut self,
        hold: HoldId,
        shared: u64,
        blocks: Vec<Name>,
        live: Option<u64>,
    ) -> Result<()> {
        let mut held = self.held(hold)?.clone();
        held.names.truncate(shared as usize);
        held.names.extend(blocks);
        let tokens = self.spell_live(&held.names, live);
        if let Some(below) = &self.below {
            let counted = held.committed.min(held.names.len());
            below
                .store
                .write_through(held.namespace, &keys(&held.names), counted);
        }
        held.committed = held.names.len();
        self.holds.insert(hold, held);
        self.l1.adopt(hold, &tokens)
    }

    fn publish(&mut self, hold: HoldId) -> Result<()> {
        let names = self.held(hold)?.names.clone();
        let tokens = self.spell(&names);
        let keys = keys(&names);
        let (published, _) = self
            .l1
            .publish(hold, &tokens, &keys, &vec![NEVER; keys.len()])?;
        if let Some(below) = &self.below {
            let keys = &keys[..published / self.l1.block_tokens];
            for entry in keys.iter().filter_map(|key| self.l1.index.get(key)) {
                below.upper.insert(*entry);
            }
            below.store.forget_l2(keys);
        }
        Ok(())
    }

    /// Whatever else L1 was asked.
    ///
    /// # Errors
    /// What L1 says; [`Error::InvalidArgument`] for a hold that did not begin.
    pub(crate) fn apply(&mut self, event: L1Event) -> Result<()> {
        match event {
            L1Event::Adopt {
                hold,
                shared,
                blocks,
                live,
            } => self.adopt(hold, shared, blocks, live),
            L1Event::Append { hold, tokens } => self.append(hold, tokens as usize),
            L1Event::Publish { hold } => self.publish(hold),
            L1Event::Retain { hold } => {
                self.l1.retain(hold);
                Ok(())
            }
            L1Event::Release { hold } => {
                self.l1.release(hold)?;
                self.drop_ended(hold);
                Ok(())
            }
            L1Event::SetIdle { hold } => {
                self.l1.set_idle(hold);
                Ok(())
            }
            L1Event::StartCopy { hold } => {
                self.l1.start_copy(hold);
                Ok(())
            }
            L1Event::EndCopy { hold } => {
                self.l1.end_copy(hold)?;
                self.drop_ended(hold);
                Ok(())
            }
            L1Event::Fork { hold } => {
                let held = self.held(hold)?.clone();
                if let Some((fork, _)) = self.l1.fork(hold)? {
                    self.holds.insert(fork, held);
                }
                Ok(())
            }
            L1Event::Evict { blocks } => {
                let evicted = self.l1.evict(blocks as usize)?;
                self.leave(&evicted)
            }
            L1Event::Use {
                namespace,
                blocks,
                live,
            } => {
                let tokens = self.spell_live(&blocks, live);
                self.l1.matched(&namespace.key(), &tokens)?;
                Ok(())
            }
            L1Event::Clear { namespace } => {
                self.l1.clear(namespace.map(Name::key).as_ref())?;
                if let Some(below) = &self.below {
                    below.upper.replace(&self.l1.index);
                }
                Ok(())
            }
            L1Event::Freed { .. } | L1Event::Lend { .. } | L1Event::TakeBack { .. }
                if self.timeless =>
            {
                Ok(())
            }
            L1Event::Freed { blocks } => self.l1.finish_eviction(&self.mine(blocks)?),
            L1Event::Lend { block } => {
                let key = self.l1.index.key_of(BlockId(block));
                let key = key.ok_or_else(|| unknown("block", u64::from(block)))?;
                self.l1.lend(&key)?;
                Ok(())
            }
            L1Event::TakeBack { blocks } => self.l1.take_back(&self.mine(blocks)?),
        }
    }

    /// Blocks of the capture, which have the same ids here.
    fn mine(&self, blocks: Vec<u32>) -> Result<Vec<BlockId>> {
        let all = self.l1.pool.blocks();
        let mine = blocks.into_iter().map(|block| {
            let known = (block as usize) < all;
            known
                .then_some(BlockId(block))
                .ok_or_else(|| unknown("block", u64::from(block)))
        });
        mine.collect()
    }

    fn append(&mut self, hold: HoldId, tokens: usize) -> Result<()> {
        loop {
            match self.l1.grow(hold, tokens)? {
                Grown::Evicted(evicted) if self.timeless => self.leave(&evicted)?,
                Grown::Appended(_) | Grown::Evicted(_) | Grown::Draining => return Ok(()),
            }
        }
    }

    /// Frees what was evicted, unless the capture says when; before that, it goes to the store below.
    fn leave(&mut self, evicted: &[Evicted]) -> Result<()> {
        if !self.timeless {
            return Ok(());
        }
        for part in evicted {
            let blocks = part.blocks().iter().copied().map(BlockId);
            let blocks = blocks.collect::<Vec<_>>();
            if let Some(below) = &self.below {
                // A partial block has no key: it goes nowhere.
                let known = blocks.iter().filter_map(|block| {
                    let key = self.l1.index.key_of(*block)?;
                    self.l1.index.get(&key)
                });
                let known = known.copied().collect::<Vec<_>>();
                if let Some(first) = known.first() {
                    let keys = known.iter().map(|entry| entry.key).collect::<Vec<_>>();
                    below.store.demote(first.namespace, first.parent, &keys)?;
                }
                below.upper.remove(blocks.iter().copied());
            }
            self.l1.finish_eviction(&blocks)?;
        }
        Ok(())
    }

    fn drop_ended(&mut self, hold: HoldId) {
        if !self.l1.has_hold(hold) {
            self.holds.remove(&hold);
        }
    }

    /// Blocks given up, so far.
    pub(crate) fn evicted_blocks(&self) -> u64 {
        self.l1.evicted_blocks
    }

    /// Checks L1's structures.
    ///
    /// # Errors
    /// A description of the first thing that is wrong.
    pub(crate) fn validate(&self) -> std::result::Result<(), String> {
        self.l1.validate()
    }
}
