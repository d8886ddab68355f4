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
use crate::layout::{BufferLayout, RunWindow};
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
    /// Leading tokens that the hold's sequence may have: what is committed must begin with them.
    held: usize,
    hold: HoldId,
    /// When the time of each held block is over.
    expiries: Vec<u64>,
    /// What hits are rounded down to; a multiple of the block.
    grid: usize,
    steps: Vec<Step>,
    found: HitTokens,
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
            return Err(Error::invalid(
                "the prompt is empty; a request needs 1 token or more",
            ));
        }
        let grid = if grid <= 1 { block_tokens } else { grid };
        if !grid.is_multiple_of(block_tokens) {
            return Err(Error::invalid(format!(
                "a grid of {grid} tokens is no multiple of the block of {block_tokens} tokens; use 0 or a multiple"
            )));
        }
        // The last token is always computed: its logits are what the caller is after.
        let usable = (tokens.len() - 1) / grid * grid;
        let (hold, held, expiries) = {
            let mut l1 = shared.l1.lock();
            let (hold, held) = l1.begin(namespace, &tokens[..usable])?;
            (hold, held, l1.expiries(hold))
        };
        let mut request = Self {
            cache: cache.clone(),
            namespace,
            tokens,
            held,
            hold,
            expiries,
            grid,
            steps: Vec::new(),
            found: HitTokens::default(),
            last_commit: None,
        };
        if held < usable {
            let parent = shared.l1.lock().path_key(hold)?;
            let keys = shared.keys(parent, &request.tokens[held..usable]);
            request.steps = shared.store.plan(&keys)?.steps;
        }
        let below = request.steps.iter().map(|step| step.blocks).sum::<usize>();
        request.found = request.part(held, held + below * block_tokens);
        let mut left = (request.found.l2 + request.found.l3) / block_tokens;
        request.steps.retain_mut(|step| {
            step.blocks = step.blocks.min(left);
            left -= step.blocks;
            step.blocks > 0
        });
        Ok(request)
    }

    /// What of `arrived` leading tokens, of which L1 has `l1`, can be used on the grid, by tier.
    fn part(&self, l1: usize, arrived: usize) -> HitTokens {
        let mut left = arrived / self.grid * self.grid;
        let mut hit = HitTokens {
            l1: l1.min(left),
            ..HitTokens::default()
        };
        left -= hit.l1;
        for step in &self.steps {
            let tokens = (step.blocks * self.cache.shared.layout.block_tokens()).min(left);
            left -= tokens;
            match step.tier {
                TierId::L2 => hit.l2 += tokens,
                _ => hit.l3 += tokens,
            }
        }
        hit
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
    /// runs cut the prefix short, which is no error, and so does L1 memory that was given up since (after a commit or fork).
    /// What the tiers below gave is read once: a second call brings L1's part only.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the buffer is too small for the prompt or of another layout, [`Error::Closed`].
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
        let there = self.copy_l1(buffer);
        let mut restored = Restored {
            l1_time: start.elapsed(),
            failure: (!there)
                .then(|| "its L1 blocks were given up under memory pressure".to_owned()),
            ..Restored::default()
        };
        let mut arrived = self.found.l1;
        if let Some(ticket) = ticket {
            let outcome = ticket.wait();
            let whole = self.steps[..outcome.steps_ok].iter();
            arrived += whole.map(|step| step.blocks * block_tokens).sum::<usize>();
            restored.l2_bytes = outcome.l2.bytes;
            restored.l3_bytes = outcome.l3.bytes;
            let failure = outcome.failure.map(|failure| failure.to_string());
            restored.failure = restored.failure.or(failure);
            restored.below_time = start.elapsed();
        }
        if there {
            restored.tokens = self.part(self.found.l1, arrived);
        }
        if restored.tokens.total() > self.held {
            self.held = restored.tokens.total();
            let below = self.steps.iter().flat_map(|step| {
                let expires = step.run.header().terms.expires();
                std::iter::repeat_n(expires, step.blocks)
            });
            self.expiries.truncate(self.found.l1 / block_tokens);
            self.expiries.extend(below);
            self.expiries.truncate(self.held / block_tokens);
        }
        self.steps.clear();
        // The bytes are copied: whoever needs the blocks may have them.
        shared.l1.lock().set_idle(self.hold);
        restored.time = start.elapsed();
        Ok(restored)
    }

    /// Copies what L1 has of the hit into the buffer; false if the blocks are no longer there.
    fn copy_l1(&self, buffer: &Arc<CacheBuffer>) -> bool {
        let shared = &self.cache.shared;
        let block_tokens = shared.layout.block_tokens();
        let wanted = self.found.l1 / block_tokens;
        if wanted == 0 {
            return true;
        }
        let Some(blocks) = shared.l1.lock().start_copy(self.hold) else {
            return false;
        };
        let there = blocks.len() >= wanted;
        for (index, block) in blocks.iter().take(wanted).enumerate().filter(|_| there) {
            let span = BlockSpan {
                offset: shared.offset(*block),
                first: 0,
                tokens: block_tokens,
                at: index * block_tokens,
            };
            block_to_buffer(&shared.layout, &shared.arena, span, buffer);
        }
        shared.l1.lock().end_copy(self.hold);
        there
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
    /// [`Error::InvalidArgument`] if the tokens are not a continuation of what this request found in L1, restored or
    /// committed, if they do not fit, or for a buffer of another layout; [`Error::Closed`].
    pub fn commit(&mut self, tokens: Vec<u32>, buffer: &Arc<CacheBuffer>) -> Result<()> {
        self.check_buffer(buffer, tokens.len())?;
        let held = self.held;
        if !tokens.starts_with(&self.tokens[..held]) {
            return Err(Error::invalid(format!(
                "the {} tokens to commit do not begin with the {held} that this request found in L1, restored or committed; begin another request for them",
                tokens.len()
            )));
        }
        let shared = &self.cache.shared;
        let now = shared.store.clock().now();
        let terms = shared.terms(&self.namespace).stamped(now);
        self.expiries
            .resize(tokens.len() / shared.layout.block_tokens(), terms.expires());
        shared.l1.lock().retain(self.hold);
        let done = Arc::new(Done::default());
        let submitted = self.cache.committer.submit(Job {
            namespace: self.namespace,
            hold: self.hold,
            tokens: tokens.clone(),
            expiries: self.expiries.clone(),
            buffer: Arc::clone(buffer),
            done: Arc::clone(&done),
        });
        if let Err(error) = submitted {
            self.cache.shared.l1.lock().release(self.hold)?;
            return Err(error);
        }
        self.last_commit = Some(done);
        self.held = tokens.len();
        self.tokens = tokens;
        Ok(())
    }

    /// Waits until the last commit of this request no longer reads its buffer for L1; false if the time ran out.
    pub fn wait_committed(&self, timeout: Duration) -> bool {
        self.last_commit
            .as_ref()
            .is_none_or(|done| done.wait(timeout))
    }

    /// A second request on the same blocks, to go on from this one's tokens without touching it. What this one committed is
    /// waited for, and is found by the fork, in L1. None if the blocks were given up under memory pressure: begin again instead.
    ///
    /// # Errors
    /// [`Error::Timeout`] if the last commit does not end in time, [`Error::Closed`], [`Error::Forked`].
    pub fn fork(&self, timeout: Duration) -> Result<Option<Self>> {
        self.cache.shared.store.check_usable()?;
        if !self.wait_committed(timeout) {
            return Err(Error::Timeout {
                what: "the commit before the fork",
                seconds: timeout.as_secs_f64(),
            });
        }
        let forked = self.cache.shared.l1.lock().fork(self.hold)?;
        Ok(forked.map(|(hold, held)| {
            let mut fork = Self {
                cache: self.cache.clone(),
                namespace: self.namespace,
                tokens: self.tokens.clone(),
                held,
                hold,
                expiries: self.expiries.clone(),
                grid: self.grid,
                steps: Vec::new(),
                found: HitTokens::default(),
                last_commit: None,
            };
            let usable = held.min(self.tokens.len() - 1);
            fork.found = fork.part(usable, usable);
            fork
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
        self.cache.shared.store.check_usable()?;
        let capacity = buffer.layout().capacity();
        if *buffer.layout() != BufferLayout::new(&self.cache.shared.layout, capacity) {
            return Err(Error::invalid(
                "the cache buffer has another KV layout; lease it from this request's own cache",
            ));
        }
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
        if self.cache.shared.store.check_process().is_err() {
            return;
        }
        let released = self.cache.shared.l1.lock().release(self.hold);
        if let Err(error) = released {
            log::error!("a request's hold could not be released: {error}");
        }
    }
}

impl super::Shared {
    /// Keys of the whole blocks of `tokens`, which follow the block of key `parent`.
    pub(super) fn keys(&self, parent: BlockKey, tokens: &[u32]) -> Vec<BlockKey> {
        let mut keys = Vec::with_capacity(tokens.len() / self.layout.block_tokens());
        chain_keys(parent, tokens, self.layout.block_tokens(), &mut keys);
        keys
    }

    /// Keys of the prompt's usable whole blocks beyond what L1 has.
    pub(super) fn keys_beyond_l1(
        &self,
        namespace: BlockKey,
        tokens: &[u32],
    ) -> Result<Vec<BlockKey>> {
        if tokens.is_empty() {
            return Err(Error::invalid(
                "the prompt is empty; a prefetch needs 1 token or more",
            ));
        }
        let block_tokens = self.layout.block_tokens();
        let usable = &tokens[..(tokens.len() - 1) / block_tokens * block_tokens];
        let (matched, parent) = self.l1.lock().matched(&namespace, usable)?;
        Ok(self.keys(parent, &usable[matched..]))
    }
}
