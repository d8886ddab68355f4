//! One request's view of the cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::PrefixCache;
use super::commit::{Done, Job};
use super::l1::HoldId;
use super::resident::{Lease, Wanted, commit_begins, commit_ends};
use super::restore::{Restore, Restored};
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

/// What a request found: L1's part, and what the tiers below have after it.
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
                TierId::L2 => hit.l2 += tokens,
                _ => hit.l3 += tokens,
            }
        }
        hit
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
    found: Found,
    /// Leading tokens whose rows in the buffer are those of L1: restored, taken over or committed first by this request.
    standing: Arc<AtomicUsize>,
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
        let (hold, held) = shared.l1.lock().begin(namespace, &tokens[..usable])?;
        let mut request = Self {
            cache: cache.clone(),
            namespace,
            tokens,
            held,
            hold,
            found: Found {
                grid,
                ..Found::default()
            },
            standing: Arc::default(),
            last_commit: None,
        };
        if held < usable {
            let parent = shared.l1.lock().path_key(hold)?;
            let keys = shared.keys(parent, &request.tokens[held..usable]);
            request.found.steps = shared.store.plan(&keys)?.steps;
        }
        let found = &mut request.found;
        found.tokens.l1 = held;
        let below = found.steps.iter().map(|step| step.blocks).sum::<usize>();
        found.tokens = found.part(held + below * block_tokens, block_tokens);
        let mut left = (found.tokens.l2 + found.tokens.l3) / block_tokens;
        found.steps.retain_mut(|step| {
            step.blocks = step.blocks.min(left);
            left -= step.blocks;
            step.blocks > 0
        });
        Ok(request)
    }

    /// Tokens found, by tier, in whole blocks.
    pub fn found(&self) -> HitTokens {
        self.found.tokens
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
        self.standing.store(tokens, Ordering::Release);
        // Nothing is copied from them: whoever needs the blocks may have them.
        shared.l1.lock().set_idle(self.hold);
        Ok(Some((Lease::new(buffer, shared), tokens)))
    }

    /// Begins to bring what was found into `buffer`, from its first token on, the first layers first. L1 memory that was given
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
        self.found.steps.clear();
        self.held = self.held.max(restore.tokens().total());
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
    /// buffer's rows of these tokens must not change until then (see [`Self::wait_committed`]). With `resident` they stay as
    /// they are even longer: until the lease is dropped, when they become resident, or until [`Lease::forget`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the tokens are not a continuation of what this request found in L1, restored or
    /// committed, if they do not fit, or for a buffer of another layout; [`Error::Closed`].
    pub fn commit(
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
        self.cache.shared.l1.lock().retain(self.hold);
        if resident {
            commit_begins(buffer, self.namespace, tokens.clone());
        }
        let done = Arc::new(Done::default());
        let submitted = self.cache.committer.submit(Job {
            namespace: self.namespace,
            hold: self.hold,
            tokens: tokens.clone(),
            buffer: Arc::clone(buffer),
            standing: Arc::clone(&self.standing),
            resident,
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
                found: Found {
                    grid: self.found.grid,
                    ..Found::default()
                },
                standing: Arc::default(),
                last_commit: None,
            };
            let usable = held.min(self.tokens.len() - 1);
            fork.found.tokens.l1 = usable;
            let block_tokens = self.cache.shared.layout.block_tokens();
            fork.found.tokens = fork.found.part(usable, block_tokens);
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
