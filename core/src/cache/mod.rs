//! `PrefixCache`: token ids to the longest cached prefix. The radix tree over L1 blocks, with the store below.
//!
//! The way of a request: [`PrefixCache::begin`] matches, locks the path, forks a sequence from it and looks below by key;
//! [`Request::start_restore`] brings the bytes into a cache buffer, layer by layer; the caller computes the suffix there, each
//! layer as soon as [`Restore::wait_layer`] says so; [`Request::commit`] hands the
//! buffer over, and a worker fills L1 from it and writes through to the tiers below, off the caller's path.

mod commit;
mod copy;
mod explain;
mod l1;
mod lend;
mod request;
mod resident;
mod restore;
#[cfg(test)]
mod tests;
mod unasked;
mod upper;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sync::{Condvar, Mutex};

use crate::block::BlockPool;
use crate::buffer::{BufferPool, BufferStats};
use crate::config::StopPolicy;
use crate::error::{Error, Result};
use crate::key::BlockKey;
use crate::layout::Layout;
use crate::memory::Region;
use crate::radix::RadixTree;
use crate::run::Terms;
use crate::sim::capture;
use crate::store::{BlockStore, Inquiry, PrefetchTicket};
use crate::tier::TierId;

use commit::Committer;
use l1::{Journal, L1};
use lend::Lender;
use resident::Residents;
use unasked::Unasked;

pub use explain::Explanation;
pub use l1::L1Stats;
pub(crate) use l1::Replica;
pub use request::{Begin, HitTokens, Request};
pub(crate) use resident::Contents;
pub use resident::{Lease, ResidentStats};
pub use restore::{Restore, Restored};
pub(crate) use upper::Upper;

/// How a [`PrefixCache`] divides its memory.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// Bytes of the L1 block arena.
    pub block_bytes: u64,
    /// Bytes that cache buffers may take.
    pub buffer_bytes: u64,
    /// Sequences that stay in their cache buffer, within `buffer_bytes`, until a request goes on from them; 0 for none.
    pub residents: usize,
    /// Eviction policy of L1. Default: `lru`.
    pub policy: String,
}

/// What a [`PrefixCache`] holds.
#[derive(Clone, Debug)]
pub struct CacheStats {
    /// The block arena.
    pub l1: L1Stats,
    /// The cache buffers.
    pub buffers: BufferStats,
    /// Sequences that stay in their buffers.
    pub residents: ResidentStats,
    /// Commits that wait or are under way.
    pub pending_commits: usize,
}

/// The prefix cache of one KV layout; namespaces are separate roots in it. Cheap to clone, safe from many threads.
#[derive(Clone, Debug)]
pub struct PrefixCache {
    shared: Arc<Shared>,
    committer: Arc<Committer>,
}

/// What requests and the commit worker share.
#[derive(Debug)]
pub(crate) struct Shared {
    layout: Layout,
    store: BlockStore,
    buffers: BufferPool,
    residents: Residents,
    arena: Arc<Region>,
    l1: Arc<Mutex<L1>>,
    /// Told whenever evicted or lent blocks are free again.
    blocks_freed: Arc<Condvar>,
    /// The same L1, for the store below.
    lender: Arc<Lender>,
    /// Who does without L4 for a while.
    unasked: Unasked,
}

impl PrefixCache {
    /// A cache of `layout` over `store`.
    ///
    /// # Errors
    /// [`Error::Config`] if the arena holds no block or the policy is unknown, [`Error::Io`] if memory cannot be mapped.
    pub fn new(layout: Layout, store: BlockStore, config: &CacheConfig) -> Result<Self> {
        let block = layout.block_bytes() as u64;
        let blocks = config.block_bytes / block;
        if blocks == 0 {
            return Err(Error::Config {
                name: "l1",
                value: format!("{} bytes for blocks", config.block_bytes),
                remedy: format!(
                    "one block of this model takes {block} bytes; give l1 room for several"
                ),
            });
        }
        let pool = BlockPool::new(blocks as usize, layout.block_bytes())?;
        let arena = Arc::clone(pool.region());
        let (policy, tap) = capture::policy(
            store.recorder(),
            TierId::L1,
            0,
            &config.policy,
            blocks,
            layout.block_tokens(),
        )?;
        let tree = RadixTree::new(layout.block_tokens(), policy)?;
        let journal = tap.map(Journal::new);
        let clock = store.clock().clone();
        let l1 = Arc::new(Mutex::new(L1::new(pool, tree, clock, journal)?));
        let blocks_freed = Arc::new(Condvar::new());
        let lender = Arc::new(Lender {
            l1: Arc::clone(&l1),
            blocks_freed: Arc::clone(&blocks_freed),
            arena: Arc::clone(&arena),
            layout: layout.clone(),
            terms: Mutex::default(),
        });
        store.set_above(&lender);
        let shared = Arc::new(Shared {
            residents: Residents::new(config.residents, layout.block_tokens()),
            layout,
            store,
            buffers: BufferPool::new(config.buffer_bytes),
            arena,
            l1,
            blocks_freed,
            lender,
            unasked: Unasked::default(),
        });
        let committer = Arc::new(Committer::start(Arc::clone(&shared))?);
        Ok(Self { shared, committer })
    }

    /// The layout of its blocks and buffers.
    pub fn layout(&self) -> &Layout {
        &self.shared.layout
    }

    /// The store below.
    pub fn store(&self) -> &BlockStore {
        &self.shared.store
    }

    /// Says what the tiers below are asked for with the runs of a namespace; holds for what is stored from now on.
    pub fn set_terms(&self, namespace: BlockKey, terms: Terms) {
        self.shared.lender.terms.lock().insert(namespace, terms);
    }

    /// Starts a request: the longest cached prefix of `tokens` in whole blocks, at most all but the last token, rounded down
    /// to a multiple of `grid` tokens (0 or 1: to blocks). Its L1 path stays locked until it is restored or the request is dropped.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an empty prompt or a grid that is no multiple of the block, [`Error::Closed`].
    pub fn begin(&self, namespace: BlockKey, tokens: Vec<u32>, grid: usize) -> Result<Request> {
        let options = Begin {
            grid,
            ..Begin::default()
        };
        self.begin_with(namespace, tokens, options)
    }

    /// As [`Self::begin`], with all that can be said of a request.
    ///
    /// # Errors
    /// As for [`Self::begin`].
    pub fn begin_with(
        &self,
        namespace: BlockKey,
        tokens: Vec<u32>,
        options: Begin<'_>,
    ) -> Result<Request> {
        self.check_open()?;
        Request::begin(self, namespace, tokens, options)
    }

    /// Asks L4, for at most its time-out, for what of a prompt is not on this machine, ahead of the request: one that begins with the
    /// answer does not wait. It is not asked where requests of the namespace left it alone a short while ago.
    ///
    /// # Errors
    /// As for [`Self::begin`].
    pub fn inquire(&self, namespace: BlockKey, tokens: &[u32], grid: usize) -> Result<Inquiry> {
        self.check_open()?;
        let shared = &self.shared;
        let (_, usable) = shared.usable(tokens.len(), grid)?;
        // A look that is no use of what L1 has.
        let known = shared.l1.lock().divergence(&namespace, tokens).matched;
        let blocks = known.min(usable) / shared.layout.block_tokens();
        let wanted = usable - blocks * shared.layout.block_tokens();
        if wanted == 0 || !shared.asks_l4(&namespace, wanted) {
            return Ok(Inquiry::default());
        }
        let keys = shared.keys(namespace, &tokens[..usable]);
        shared.store.inquire(&keys[blocks..])
    }

    /// A cache buffer for `tokens` tokens. Residents make way for it, and if commits and writes under way hold the memory, it
    /// waits for them.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if buffers in use leave too little, [`Error::Closed`].
    pub fn lease(&self, tokens: usize) -> Result<Lease> {
        self.lease_with_spare(tokens, 0)
    }

    /// [`Self::lease`], with room for up to `spare` tokens more where that costs nothing.
    ///
    /// # Errors
    /// As for [`Self::lease`].
    pub fn lease_with_spare(&self, tokens: usize, spare: usize) -> Result<Lease> {
        self.check_open()?;
        let shared = &self.shared;
        let lease = || loop {
            match shared
                .buffers
                .lease_with_spare(&shared.layout, tokens, spare)
            {
                Err(Error::OutOfMemory { .. }) if shared.residents.reclaim() => {}
                other => break other,
            }
        };
        let buffer = match lease() {
            // Commits and writes under way hold buffers: better a wait than a refusal.
            Err(Error::OutOfMemory { .. }) => {
                self.flush(Duration::from_secs(60))?;
                lease()?
            }
            other => other?,
        };
        Ok(Lease::new(Arc::new(buffer), shared))
    }

    /// Starts to pull what L3 has of the prompt beyond L1 into L2, before anyone asks for it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an empty prompt, [`Error::Closed`].
    pub fn prefetch(&self, namespace: BlockKey, tokens: &[u32]) -> Result<PrefetchTicket> {
        self.check_open()?;
        let keys = self.shared.keys_beyond_l1(namespace, tokens)?;
        self.shared.store.prefetch(&keys)
    }

    /// As [`Self::prefetch`], with a policy of its own for the request that meets it before it is done.
    ///
    /// # Errors
    /// As [`Self::prefetch`].
    pub fn prefetch_with(
        &self,
        namespace: BlockKey,
        tokens: &[u32],
        stop: StopPolicy,
    ) -> Result<PrefetchTicket> {
        self.check_open()?;
        let keys = self.shared.keys_beyond_l1(namespace, tokens)?;
        self.shared.store.prefetch_with(&keys, stop)
    }

    /// Gives up to `blocks` evictable L1 blocks to the tiers below, and all residents; gives back how many blocks went. Waits
    /// for the copies.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn evict(&self, blocks: usize) -> Result<usize> {
        self.check_open()?;
        self.committer.flush(Duration::from_secs(60))?;
        self.shared.residents.evict(None);
        self.shared.evict(blocks)
    }

    /// Drops what L1 holds of a namespace, or of all; locked prefixes stay. Gives back how many blocks went.
    ///
    /// # Errors
    /// [`Error::Timeout`] if commits under way do not end, [`Error::Closed`].
    pub fn clear(&self, namespace: Option<&BlockKey>) -> Result<usize> {
        self.check_open()?;
        self.committer.flush(Duration::from_secs(60))?;
        self.shared.residents.evict(namespace);
        self.shared.l1.lock().clear(namespace)
    }

    /// Waits until every commit is in L1 and every accepted write in L3. What waits for L4 has memory of its own.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub fn flush(&self, timeout: Duration) -> Result<()> {
        self.shared.store.check_usable()?;
        let start = Instant::now();
        self.committer.flush(timeout)?;
        self.shared
            .store
            .flush_l3(timeout.saturating_sub(start.elapsed()))
    }

    fn check_open(&self) -> Result<()> {
        self.shared.store.check_process()?;
        if self.committer.is_closed() {
            return Err(Error::Closed);
        }
        Ok(())
    }

    /// Takes no more commits and waits for those under way; a second call does nothing.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub fn close(&self, timeout: Duration) -> Result<()> {
        self.shared.store.check_process()?;
        self.committer.close();
        self.shared.residents.close();
        self.committer.flush(timeout)
    }

    /// What is held where.
    pub fn stats(&self) -> CacheStats {
        CacheStats {
            l1: self.shared.l1.lock().stats(),
            buffers: self.shared.buffers.stats(),
            residents: self.shared.residents.stats(),
            pending_commits: self.committer.pending(),
        }
    }

    /// Checks pool, sequences, tree and their counters against each other.
    ///
    /// # Errors
    /// A description of the first thing that is wrong.
    pub fn validate(&self) -> std::result::Result<(), String> {
        self.shared.l1.lock().validate()
    }
}
