//! L1 driven by a capture: the same pool, sequences and tree, over blocks without bytes.

use std::collections::HashMap;

use super::{Grown, HoldId, L1};
use crate::block::{BlockId, BlockPool};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::policy::EvictionPolicy;
use crate::radix::RadixTree;
use crate::run::NEVER;
use crate::sim::capture::{Claim, L1Event, Name};

/// An L1 whose blocks' tokens stand for the names of a capture.
#[derive(Debug)]
pub(crate) struct Replica {
    l1: L1,
    /// What stands for a name: the token that its block is full of.
    tokens: HashMap<Name, u32>,
    /// The blocks of holds, as the capture says.
    holds: HashMap<HoldId, Vec<Name>>,
    /// Whether evicted blocks are free at once, and none are lent: what time decided live is not asked for.
    timeless: bool,
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
        })
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

    /// A request begins; gives back how many of its blocks were found.
    ///
    /// # Errors
    /// What L1 says.
    pub(crate) fn begin(
        &mut self,
        time_ms: u64,
        category: u32,
        claim: &Claim,
        names: Vec<Name>,
    ) -> Result<usize> {
        let namespace = claim.namespace.key();
        let tokens = self.spell_live(&names, claim.live);
        if self.timeless {
            self.l1.tell_request(time_ms, category)?;
        }
        let (hold, found) = self.l1.begin(namespace, &tokens, category)?;
        self.holds.insert(hold, names);
        Ok(found / self.l1.block_tokens)
    }

    fn held(&self, hold: HoldId) -> Result<&Vec<Name>> {
        self.holds.get(&hold).ok_or_else(|| unknown("hold", hold))
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
            } => {
                let held = self.held(hold)?;
                let mut names = held.get(..shared as usize).unwrap_or_default().to_vec();
                names.extend(blocks);
                let tokens = self.spell_live(&names, live);
                self.holds.insert(hold, names);
                self.l1.adopt(hold, &tokens)
            }
            L1Event::Append { hold, tokens } => self.append(hold, tokens as usize),
            L1Event::Publish { hold } => {
                let names = self.held(hold)?.clone();
                let tokens = self.spell(&names);
                let keys = names.iter().map(|name| name.key()).collect::<Vec<_>>();
                self.l1
                    .publish(hold, &tokens, &keys, &vec![NEVER; keys.len()])?;
                Ok(())
            }
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

    /// Frees what was evicted, unless the capture says when.
    fn leave(&mut self, evicted: &[crate::radix::Evicted]) -> Result<()> {
        if self.timeless {
            for part in evicted {
                let blocks = part.blocks().iter().copied().map(BlockId);
                self.l1.finish_eviction(&blocks.collect::<Vec<_>>())?;
            }
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
