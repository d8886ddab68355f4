//! One request's view of the cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::PrefixCache;
use super::commit::{Done, Job};
use super::l1::HoldId;
use super::resident::{Lease, Wanted, commit_begins, commit_ends};
use super::restore::{Restore, Restored};
use crate::block::BlockId;
use crate::buffer::CacheBuffer;
use crate::cost::{Choice, Part, Question, RestoreMode};
use crate::error::{Error, Result};
use crate::key::{BlockKey, chain_keys};
use crate::layout::{BufferLayout, RunWindow};
use crate::run::{NEVER, RunHeader, RunTarget};
use crate::store::{Inquiry, ReadRequest, Step};
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
    /// From L4 runs.
    pub l4: usize,
}

/// How a request begins.
#[derive(Clone, Copy, Debug, Default)]
pub struct Begin<'a> {
    /// What hits are rounded down to, in tokens: a multiple of the block; 0 or 1 for the block.
    pub grid: usize,
    /// What kind of request it is, by the caller's own numbers; 0 if that is not known. A capture writes it down.
    pub category: u32,
    /// What L4 said of its prompt ([`PrefixCache::inquire`]); without it, L4 is asked now.
    pub inquiry: Option<&'a Inquiry>,
}

impl HitTokens {
    /// All tiers together.
    pub fn total(self) -> usize {
        self.l1 + self.l2 + self.l3 + self.l4
    }
}

/// What a request restores: L1's part, and what the tiers below have after it.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub(super) tokens: HitTokens,
    pub(super) steps: Vec<Step>,
    /// What hits are rounded down to; a multiple of the block.
    grid: usize,
}

impl Found {
    /// What of `arrived` leading tokens can be used on the grid, by tier.
    pub(super) fn part(&self, arrived: usize, block_tokens: usize) -> HitTokens {
        let mut left = arrived / self.grid * self.grid;
        let mut hit = HitTokens {
            l1: self.tokens.l1.min(left),
            ..HitTokens::default()
        };
        left -= hit.l1;
        for step in &self.steps {
            let tokens = (step.blocks * block_tokens).min(left);
            left -= tokens;
            match step.tier {
                TierId::L1 | TierId::L2 => hit.l2 += tokens,
                TierId::L3 => hit.l3 += tokens,
                TierId::L4 => hit.l4 += tokens,
            }
        }
        hit
    }

    /// Leaves the tokens beyond the first `tokens` alone: their runs lose their pins.
    fn cut(&mut self, tokens: usize, block_tokens: usize) {
        self.tokens = self.part(tokens, block_tokens);
        let mut left = (self.tokens.total() - self.tokens.l1) / block_tokens;
        self.steps.retain_mut(|step| {
            step.blocks = step.blocks.min(left);
            left -= step.blocks;
            step.blocks > 0
        });
    }
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
    /// Leading tokens whose use a commit has counted.
    counted: usize,
    /// What was there when the request began.
    there: HitTokens,
    /// What of it is restored.
    found: Found,
    /// Leading tokens whose rows in the buffer are those of L1: restored, taken over or committed first by this request.
    standing: Arc<AtomicUsize>,
    /// Which of the leading blocks of the buffer came out of a lossy codec, as far as they were restored.
    decoded: Arc<Mutex<Vec<bool>>>,
    /// Whether the rest of the prompt is computed in forwards that end on the grid.
    chunked: bool,
    last_commit: Option<Arc<Done>>,
}

impl Request {
    pub(super) fn begin(
        cache: &PrefixCache,
        namespace: BlockKey,
        tokens: Vec<u32>,
        options: Begin<'_>,
    ) -> Result<Self> {
        let shared = &cache.shared;
        let block_tokens = shared.layout.block_tokens();
        let chunked = options.grid > 1;
        let (grid, usable) = shared.usable(tokens.len(), options.grid)?;
        let (hold, held, expiries) = {
            let mut l1 = shared.l1.lock();
            let (hold, held) = l1.begin(namespace, &tokens[..usable], options.category)?;
            (hold, held, l1.expiries(hold))
        };
        let mut request = Self {
            cache: cache.clone(),
            namespace,
            tokens,
            held,
            hold,
            expiries,
            counted: 0,
            there: HitTokens::default(),
            found: Found {
                grid,
                ..Found::default()
            },
            standing: Arc::default(),
            decoded: Arc::default(),
            chunked,
            last_commit: None,
        };
        if held < usable {
            let parent = shared.l1.lock().path_key(hold)?;
            let keys = shared.keys(parent, &request.tokens[held..usable]);
            let fits = |header: &RunHeader| {
                header.block_tokens as usize == block_tokens
                    && header.slices == shared.layout.slice_lengths(header.keys.len())
            };
            let store = &shared.store;
            let plan = if let Some(inquiry) = options.inquiry {
                store.plan_asked(&keys, inquiry, &fits)?
            } else if shared.asks_l4(&namespace, usable - held) {
                store.plan_fitting(&keys, &fits)?
            } else {
                store.plan_here(&keys)?
            };
            request.found.steps = plan.steps;
        }
        let found = &mut request.found;
        found.tokens.l1 = held;
        let below = found.steps.iter().map(|step| step.blocks).sum::<usize>();
        found.cut(held + below * block_tokens, block_tokens);
        request.there = found.tokens;
        Ok(request)
    }

    /// Decides how much of what was found a restore brings, before it starts; without this, all of it. What is cut off is for
    /// the caller to compute. `model` stands for all that the time of a forward depends on.
    pub fn choose(&mut self, mode: RestoreMode, model: &BlockKey) -> Choice {
        let block_tokens = self.cache.shared.layout.block_tokens();
        let parts = self.found.steps.iter().map(|step| Part {
            tier: step.tier,
            bytes: step.run.header().payload_bytes(),
            tokens: step.blocks * block_tokens,
        });
        let question = Question {
            prompt: self.tokens.len(),
            l1: self.found.tokens.l1,
            parts: &parts.collect::<Vec<_>>(),
            grid: self.found.grid,
            chunked: self.chunked,
        };
        let costs = self.cache.shared.store.costs();
        let choice = costs.choose(mode, model, &question);
        self.found.cut(choice.tokens, block_tokens);
        if mode == RestoreMode::Auto {
            let (found, restored) = (self.there.l4, self.found.tokens.l4);
            let unasked = &self.cache.shared.unasked;
            unasked.note(&self.namespace, found, restored);
        }
        choice
    }

    /// Notes how long a forward of this request took: `tokens` tokens after `context` others, waits for a restore not
    /// counted. It teaches [`Self::choose`].
    pub fn computed(&self, model: &BlockKey, tokens: usize, context: usize, time: Duration) {
        let costs = self.cache.shared.store.costs();
        costs.note_prefill(model, tokens, context, time);
    }

    /// Notes that a restore of `read` ([`Restored::below_time`]) went on beside a forward, which computed for `computed` and
    /// waited for `waited` on top. It teaches [`Self::choose`].
    pub fn overlapped(&self, read: Duration, computed: Duration, waited: Duration) {
        self.cache
            .shared
            .store
            .costs()
            .note_overlap(read, computed, waited);
    }

    /// Tokens found, by tier, in whole blocks.
    pub fn found(&self) -> HitTokens {
        self.there
    }

    /// The prompt's length in tokens.
    pub fn prompt_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Takes over the buffer of a resident sequence that has no fewer of the prompt's tokens than were found, with room for
    /// `capacity` tokens; gives back how many stand in it, and nothing needs to be restored. What the resident had behind
    /// them is given up for it only if `cut` is true, and only if that is less than what is reused.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn take_resident(&mut self, capacity: usize, cut: bool) -> Result<Option<(Lease, usize)>> {
        let shared = &self.cache.shared;
        shared.store.check_usable()?;
        let grid = self.found.grid;
        let taken = shared.residents.take(&Wanted {
            namespace: &self.namespace,
            tokens: &self.tokens[..(self.tokens.len() - 1) / grid * grid],
            grid,
            least: self.found.tokens.total(),
            capacity: capacity.max(self.tokens.len()),
            cut,
        });
        let Some((buffer, tokens)) = taken else {
            return Ok(None);
        };
        self.found.steps.clear();
        self.found.tokens = HitTokens {
            l1: tokens,
            ..HitTokens::default()
        };
        self.held = self.held.max(tokens);
        let blocks = tokens / shared.layout.block_tokens();
        self.expiries.resize(blocks, NEVER);
        self.standing.store(tokens, Ordering::Release);
        // Nothing is copied from them: whoever needs the blocks may have them.
        shared.l1.lock().set_idle(self.hold);
        Ok(Some((Lease::new(buffer, shared), tokens)))
    }

    /// Begins to bring what was found, or [`Self::choose`] left of it, into `buffer`, from its first token on, the first layers
    /// first. L1 memory that was given
    /// up since (after a commit or fork) is restored no more, which is no error. What the tiers below gave is read once: a
    /// second call brings L1's part only.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the buffer is too small for the prompt or of another layout, [`Error::Closed`].
    pub fn start_restore(&mut self, buffer: &Arc<CacheBuffer>) -> Result<Restore> {
        let start = Instant::now();
        self.check_buffer(buffer, self.tokens.len())?;
        let shared = &self.cache.shared;
        let found = self.found.clone();
        let standing = Arc::clone(&self.standing);
        let mut restore = Restore::start(shared, self.hold, buffer, found, standing, start);
        if restore.is_there() && !self.found.steps.is_empty() {
            restore.reads(shared.store.read(self.read_requests(buffer))?);
        }
        let steps = std::mem::take(&mut self.found.steps);
        if restore.tokens().total() > self.held {
            self.held = restore.tokens().total();
            let below = steps.iter().flat_map(|step| {
                let expires = step.run.header().terms.expires();
                std::iter::repeat_n(expires, step.blocks)
            });
            let block_tokens = shared.layout.block_tokens();
            self.expiries.truncate(self.found.tokens.l1 / block_tokens);
            self.expiries.extend(below);
            self.expiries.truncate(self.held / block_tokens);
        }
        self.decoded = restore.decoded();
        Ok(restore)
    }

    /// [`Self::start_restore`], and waits until all of it arrived and is verified. Damaged runs cut the prefix short, which is
    /// no error.
    ///
    /// # Errors
    /// As for [`Self::start_restore`].
    pub fn restore(&mut self, buffer: &Arc<CacheBuffer>) -> Result<Restored> {
        Ok(self.start_restore(buffer)?.finish())
    }

    fn read_requests(&self, buffer: &Arc<CacheBuffer>) -> Vec<ReadRequest> {
        let layout = &self.cache.shared.layout;
        let block_tokens = layout.block_tokens();
        let mut at = self.found.tokens.l1;
        self.found
            .steps
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
        self.hand_over(tokens, buffer, false)
    }

    /// [`Self::commit`] of rows that stay as they are even longer: until the lease is dropped, when they become resident, or
    /// until [`Lease::forget`].
    ///
    /// # Errors
    /// As for [`Self::commit`].
    pub fn commit_resident(&mut self, tokens: Vec<u32>, lease: &Lease) -> Result<()> {
        self.hand_over(tokens, lease, true)
    }

    fn hand_over(
        &mut self,
        tokens: Vec<u32>,
        buffer: &Arc<CacheBuffer>,
        resident: bool,
    ) -> Result<()> {
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
        let terms = shared.lender.terms(&self.namespace).stamped(now);
        self.expiries
            .resize(tokens.len() / shared.layout.block_tokens(), terms.expires());
        shared.l1.lock().retain(self.hold);
        // A resident is taken without a look at times and codecs: only rows that never end, as they were computed, become one.
        let decoded = self.decoded.lock().clone();
        let resident = resident
            && self.expiries.iter().all(|expires| *expires == NEVER)
            && !decoded.contains(&true);
        if resident {
            commit_begins(buffer, self.namespace, tokens.clone());
        }
        let done = Arc::new(Done::default());
        let submitted = self.cache.committer.submit(Job {
            namespace: self.namespace,
            hold: self.hold,
            tokens: tokens.clone(),
            expiries: self.expiries.clone(),
            buffer: Arc::clone(buffer),
            standing: Arc::clone(&self.standing),
            resident,
            counted: self.counted,
            decoded,
            done: Arc::clone(&done),
        });
        if let Err(error) = submitted {
            if resident {
                commit_ends(buffer);
            }
            self.cache.shared.l1.lock().release(self.hold)?;
            return Err(error);
        }
        self.last_commit = Some(done);
        self.held = tokens.len();
        self.counted = tokens.len();
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
                counted: 0,
                there: HitTokens::default(),
                found: Found {
                    grid: self.found.grid,
                    ..Found::default()
                },
                standing: Arc::default(),
                decoded: Arc::default(),
                chunked: self.chunked,
                last_commit: None,
            };
            let usable = held.min(self.tokens.len() - 1);
            fork.found.tokens.l1 = usable;
            let block_tokens = self.cache.shared.layout.block_tokens();
            fork.found.cut(usable, block_tokens);
            fork.there = fork.found.tokens;
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

    /// What hits of a prompt are rounded down to, and its tokens that can be hits: the last one is always computed, since its
    /// logits are what the caller is after.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an empty prompt or a grid that is no multiple of the block.
    pub(super) fn usable(&self, tokens: usize, grid: usize) -> Result<(usize, usize)> {
        let block_tokens = self.layout.block_tokens();
        if tokens == 0 {
            return Err(Error::invalid(
                "the prompt is empty; it needs 1 token or more",
            ));
        }
        let grid = if grid > 1 { grid } else { block_tokens };
        if !grid.is_multiple_of(block_tokens) {
            return Err(Error::invalid(format!(
                "a grid of {grid} tokens is no multiple of the block of {block_tokens} tokens; use 0 or a multiple"
            )));
        }
        Ok((grid, (tokens - 1) / grid * grid))
    }

    /// Keys of the prompt's usable whole blocks beyond what L1 has.
    pub(super) fn keys_beyond_l1(
        &self,
        namespace: BlockKey,
        tokens: &[u32],
    ) -> Result<Vec<BlockKey>> {
        let usable = &tokens[..self.usable(tokens.len(), 0)?.1];
        let (matched, parent) = self.l1.lock().matched(&namespace, usable)?;
        Ok(self.keys(parent, &usable[matched..]))
    }

    /// Whether a request that could find `tokens` tokens in L4 asks it; who does not counts as one that left it alone.
    pub(super) fn asks_l4(&self, namespace: &BlockKey, tokens: usize) -> bool {
        let (_, _, has_l4) = self.store.tiers();
        let passes = has_l4 && self.unasked.passes(namespace, tokens);
        if passes {
            self.store.costs().pass_over(TierId::L4);
        }
        has_l4 && !passes
    }
}
