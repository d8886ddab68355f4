//! One request's view of the cache.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::PrefixCache;
use super::commit::{Done, Job};
use super::copy::{BlockSpan, block_to_buffer};
use super::l1::HoldId;
use crate::block::BlockId;
use crate::buffer::CacheBuffer;
use crate::error::{Error, Result};
use crate::key::{BlockKey, chain_keys};
use crate::layout::RunWindow;
use crate::run::RunTarget;
use crate::store::{ReadRequest, Step};
use crate::tier::TierId;

/// Tokens found per tier; the tiers' parts follow one another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HitTokens {
    /// From L1 blocks.
    pub l1: usize,
    /// From L2 runs.
    pub l2: usize,
    /// From L3 runs.
    pub l3: usize,
}

impl HitTokens {
    /// All tiers together.
    pub fn total(self) -> usize {
        self.l1 + self.l2 + self.l3
    }

    /// Gives up what is beyond the first `total` tokens, the lowest tier's first.
    fn cut(&mut self, total: usize) {
        self.l1 = self.l1.min(total);
        self.l2 = self.l2.min(total - self.l1);
        self.l3 = self.l3.min(total - self.l1 - self.l2);
    }
}

/// What a restore brought.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// Tokens that stand in the buffer now, by where they came from.
    pub tokens: HitTokens,
    /// Payload bytes read from L2.
    pub l2_bytes: u64,
    /// Payload bytes read from L3.
    pub l3_bytes: u64,
    /// Copying L1 blocks.
    pub l1_time: Duration,
    /// From asking the tiers below until the last byte was verified.
    pub below_time: Duration,
    /// All of it.
    pub time: Duration,
    /// Why fewer tokens came than were found.
    pub failure: Option<String>,
}

/// A request: its L1 path is locked and forked as a sequence until it is dropped. Once restored or committed, that may be
/// given up under pressure.
#[derive(Debug)]
pub struct Request {
    cache: PrefixCache,
    namespace: BlockKey,
    tokens: Vec<u32>,
    hold: HoldId,
    blocks: Vec<BlockId>,
    steps: Vec<Step>,
    found: HitTokens,
    /// Hits are whole multiples of so many tokens.
    grid: usize,
    /// Leading tokens whose KV this request has restored or committed.
    restored: Option<usize>,
    last_commit: Option<Arc<Done>>,
}

impl Request {
    pub(super) fn begin(
        cache: &PrefixCache,
        namespace: BlockKey,
        tokens: Vec<u32>,
        grid: usize,
    ) -> Result<Self> {
        let shared = &cache.shared;
        let block_tokens = shared.layout.block_tokens();
        if tokens.is_empty() {
            return Err(Error::invalid("the prompt is empty"));
        }
        let grid = if grid <= 1 { block_tokens } else { grid };
        if !grid.is_multiple_of(block_tokens) {
            return Err(Error::invalid(format!(
                "a grid of {grid} tokens is no multiple of the block of {block_tokens} tokens"
            )));
        }
        // The last token is always computed: its logits are what the caller is after.
        let usable = (tokens.len() - 1) / grid * grid;
        let (hold, mut blocks) = shared.l1.lock().begin(namespace, &tokens[..usable])?;
        let mut steps = Vec::new();
        let mut found = HitTokens {
            l1: blocks.len() * block_tokens,
            ..HitTokens::default()
        };
        if found.l1 < usable {
            let keys = shared.keys(namespace, &tokens[..usable], blocks.len());
            steps = shared.store.plan(&keys)?.steps;
        }
        let below = steps.iter().map(|step| step.blocks).sum::<usize>();
        let hit = (blocks.len() + below) * block_tokens / grid * grid;
        let mut left = hit / block_tokens;
        blocks.truncate(left);
        left -= blocks.len();
        found.l1 = blocks.len() * block_tokens;
        steps.retain_mut(|step| {
            step.blocks = step.blocks.min(left);
            left -= step.blocks;
            match step.tier {
                TierId::L2 => found.l2 += step.blocks * block_tokens,
                _ => found.l3 += step.blocks * block_tokens,
            }
            step.blocks > 0
        });
        Ok(Self {
            cache: cache.clone(),
            namespace,
            tokens,
            hold,
            blocks,
            steps,
            found,
            grid,
            restored: None,
            last_commit: None,
        })
    }

    /// Tokens found, by tier, in whole blocks.
    pub fn found(&self) -> HitTokens {
        self.found
    }

    /// The prompt's length in tokens.
    pub fn prompt_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Brings what was found into `buffer`, from its first token on; blocks until all of it arrived and is verified. Damaged
    /// runs cut the prefix short, which is no error.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the buffer is too small for the prompt.
    pub fn restore(&mut self, buffer: &Arc<CacheBuffer>) -> Result<Restored> {
        let start = Instant::now();
        self.check_buffer(buffer, self.tokens.len())?;
        let shared = Arc::clone(&self.cache.shared);
        let block_tokens = shared.layout.block_tokens();
        let requests = self.read_requests(buffer);
        let ticket = if requests.is_empty() {
            None
        } else {
            Some(shared.store.read(requests)?)
        };
        for (index, block) in self.blocks.iter().enumerate() {
            let at = index * block_tokens;
            let span = BlockSpan {
                offset: shared.offset(*block),
                first: 0,
                tokens: block_tokens,
                at,
            };
            block_to_buffer(&shared.layout, &shared.arena, span, buffer);
        }
        let mut restored = Restored {
            tokens: HitTokens {
                l1: self.found.l1,
                ..HitTokens::default()
            },
            l1_time: start.elapsed(),
            ..Restored::default()
        };
        if let Some(ticket) = ticket {
            let outcome = ticket.wait();
            for step in &self.steps[..outcome.steps_ok] {
                match step.tier {
                    TierId::L2 => restored.tokens.l2 += step.blocks * block_tokens,
                    _ => restored.tokens.l3 += step.blocks * block_tokens,
                }
            }
            restored.l2_bytes = outcome.l2.bytes;
            restored.l3_bytes = outcome.l3.bytes;
            restored.failure = outcome.failure.map(|failure| failure.to_string());
            restored.below_time = start.elapsed();
        }
        restored
            .tokens
            .cut(restored.tokens.total() / self.grid * self.grid);
        self.steps.clear();
        self.restored = Some(restored.tokens.total());
        // The bytes are copied: whoever needs the blocks may have them.
        shared.l1.lock().set_idle(self.hold);
        restored.time = start.elapsed();
        Ok(restored)
    }

    fn read_requests(&self, buffer: &Arc<CacheBuffer>) -> Vec<ReadRequest> {
        let layout = &self.cache.shared.layout;
        let block_tokens = layout.block_tokens();
        let mut at = self.found.l1;
        self.steps
            .iter()
            .map(|step| {
                let window = RunWindow {
                    run_tokens: step.run.header().keys.len() * block_tokens,
                    kept: step.first * block_tokens..(step.first + step.blocks) * block_tokens,
                    at,
                };
                at += step.blocks * block_tokens;
                ReadRequest {
                    step: step.clone(),
                    target: RunTarget {
                        region: Arc::clone(buffer.region()),
                        lease: Some(buffer.clone()),
                        slices: (0..layout.layers().len())
                            .map(|layer| layout.buffer_pieces(buffer.layout(), layer, &window))
                            .collect(),
                    },
                }
            })
            .collect()
    }

    /// Hands over `tokens`, whose KV stands in `buffer` from its first token on: a worker puts them into L1 and below. The
    /// buffer's rows of these tokens must not change until then (see [`Self::wait_committed`]).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the tokens are not a continuation of what this request restored or committed, or do not fit.
    pub fn commit(&mut self, tokens: Vec<u32>, buffer: &Arc<CacheBuffer>) -> Result<()> {
        self.check_buffer(buffer, tokens.len())?;
        let known = self.restored.unwrap_or(0).min(self.tokens.len());
        if tokens.len() < known || tokens[..known] != self.tokens[..known] {
            return Err(Error::invalid(format!(
                "the {} tokens to commit do not begin with the {known} that this request restored or committed before",
                tokens.len()
            )));
        }
        self.cache.shared.l1.lock().retain(self.hold);
        let done = Arc::new(Done::default());
        self.last_commit = Some(Arc::clone(&done));
        self.restored = Some(tokens.len());
        self.tokens.clone_from(&tokens);
        self.cache.committer.submit(Job {
            namespace: self.namespace,
            hold: self.hold,
            tokens,
            buffer: Arc::clone(buffer),
            done,
        })
    }

    /// Waits until the last commit of this request no longer reads its buffer for L1; false if the time ran out.
    pub fn wait_committed(&self, timeout: Duration) -> bool {
        self.last_commit
            .as_ref()
            .is_none_or(|done| done.wait(timeout))
    }

    /// A second request on the same blocks, to go on from this one's tokens without touching it. What this one committed is
    /// waited for. None if the blocks were given up under memory pressure: match again instead.
    ///
    /// # Errors
    /// [`Error::Timeout`] if the last commit does not end in time.
    pub fn fork(&self, timeout: Duration) -> Result<Option<Self>> {
        if !self.wait_committed(timeout) {
            return Err(Error::Timeout {
                what: "the commit before the fork",
                seconds: timeout.as_secs_f64(),
            });
        }
        let forked = self.cache.shared.l1.lock().fork(self.hold)?;
        Ok(forked.map(|hold| Self {
            cache: self.cache.clone(),
            namespace: self.namespace,
            tokens: self.tokens.clone(),
            hold,
            blocks: self.blocks.clone(),
            steps: Vec::new(),
            found: self.found,
            grid: self.grid,
            restored: self.restored,
            last_commit: None,
        }))
    }

    /// The blocks of this request's sequence now, and its tokens; empty once given up under pressure.
    pub fn sequence(&self) -> (Vec<BlockId>, usize) {
        let l1 = self.cache.shared.l1.lock();
        l1.sequence(self.hold)
            .map_or_else(Default::default, |(blocks, tokens)| {
                (blocks.to_vec(), tokens)
            })
    }

    fn check_buffer(&self, buffer: &CacheBuffer, tokens: usize) -> Result<()> {
        self.cache.shared.check_process()?;
        let capacity = buffer.layout().capacity();
        if capacity < tokens {
            return Err(Error::invalid(format!(
                "{tokens} tokens do not fit into a cache buffer of {capacity}"
            )));
        }
        Ok(())
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        // A forked child has only a copy, whose mutex may have been held by a thread that the child does not have.
        if self.cache.shared.check_process().is_err() {
            return;
        }
        let released = self.cache.shared.l1.lock().release(self.hold);
        if let Err(error) = released {
            log::error!("a request's hold could not be released: {error}");
        }
    }
}

impl super::Shared {
    /// Keys of the whole blocks of `tokens` from block `first` on.
    pub(super) fn keys(&self, namespace: BlockKey, tokens: &[u32], first: usize) -> Vec<BlockKey> {
        let mut keys = Vec::with_capacity(tokens.len() / self.layout.block_tokens());
        chain_keys(namespace, tokens, self.layout.block_tokens(), &mut keys);
        keys.drain(..first);
        keys
    }

    /// Keys of the prompt's usable whole blocks beyond what L1 has.
    pub(super) fn keys_beyond_l1(
        &self,
        namespace: BlockKey,
        tokens: &[u32],
    ) -> Result<Vec<BlockKey>> {
        if tokens.is_empty() {
            return Err(Error::invalid("the prompt is empty"));
        }
        let block_tokens = self.layout.block_tokens();
        let usable = &tokens[..(tokens.len() - 1) / block_tokens * block_tokens];
        let matched = self.l1.lock().matched_tokens(&namespace, usable);
        Ok(self.keys(namespace, usable, matched / block_tokens))
    }
}
