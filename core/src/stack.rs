//! `Store`: what a user opens. One memory budget for L1, a prefix cache per KV layout, the block store below.

use std::time::{Duration, Instant};

use crate::sync::Mutex;

use crate::cache::{CacheConfig, CacheStats, PrefixCache};
use crate::config::StoreConfig;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::store::{BlockStore, StoreStats};
use crate::tier::TierId;

/// A store: prefix caches that share an L1 budget, over one [`BlockStore`].
#[derive(Debug)]
pub struct Store {
    blocks: BlockStore,
    l1_bytes: u64,
    policy: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    claimed: u64,
    caches: Vec<PrefixCache>,
}

impl Store {
    /// Opens L2 and L3 as configured; `l1_bytes` is shared by the caches that are made later, buffers included.
    ///
    /// # Errors
    /// As [`BlockStore::open`]; [`Error::Config`] for an unknown policy.
    pub fn open(l1_bytes: u64, policy: &str, config: &StoreConfig) -> Result<Self> {
        crate::policy::by_name(policy, l1_bytes)?;
        Ok(Self {
            blocks: BlockStore::open(config)?,
            l1_bytes,
            policy: policy.to_owned(),
            state: Mutex::default(),
        })
    }

    /// The prefix cache of a layout: the one that exists, or a new one with `l1_bytes` of L1 (by default all that is left), half
    /// of it for blocks and half for cache buffers, of which `residents` sequences at most stay in theirs.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if other layouts have taken the budget, [`Error::Config`] if it holds no block, [`Error::Closed`].
    pub fn prefix_cache(
        &self,
        layout: &Layout,
        l1_bytes: Option<u64>,
        residents: usize,
    ) -> Result<PrefixCache> {
        self.blocks.check_usable()?;
        let mut state = self.state.lock();
        if let Some(cache) = state.caches.iter().find(|cache| cache.layout() == layout) {
            return Ok(cache.clone());
        }
        let left = self.l1_bytes - state.claimed;
        let share = l1_bytes.unwrap_or(left);
        if share > left || share == 0 {
            return Err(Error::OutOfMemory {
                what: "l1",
                requested: share.max(2 * layout.block_bytes() as u64),
                available: left,
                budget: self.l1_bytes,
                remedy: "open the store with a larger l1, or give each attached model a share of it (l1=)",
            });
        }
        let config = CacheConfig {
            block_bytes: share / 2,
            buffer_bytes: share - share / 2,
            residents,
            policy: self.policy.clone(),
        };
        let cache = PrefixCache::new(layout.clone(), self.blocks.clone(), &config)?;
        state.claimed += share;
        state.caches.push(cache.clone());
        Ok(cache)
    }

    /// The block store below.
    pub fn blocks(&self) -> &BlockStore {
        &self.blocks
    }

    fn caches(&self) -> Result<Vec<PrefixCache>> {
        self.blocks.check_process()?;
        let state = self.state.lock();
        if state.closed {
            return Err(Error::Closed);
        }
        Ok(state.caches.clone())
    }

    /// Pushes what a tier holds, and what the tiers above it hold, to the tiers below, and waits until it is there.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Timeout`].
    pub fn evict(&self, down_to: TierId, timeout: Duration) -> Result<()> {
        let start = Instant::now();
        for cache in self.caches()? {
            cache.evict(usize::MAX)?;
        }
        if down_to == TierId::L2 {
            self.blocks
                .evict_l2(timeout.saturating_sub(start.elapsed()))?;
        }
        self.blocks.flush(timeout.saturating_sub(start.elapsed()))
    }

    /// Waits until every commit is in L1 and every accepted write in L3, and writes the learnt costs down.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Timeout`].
    pub fn flush(&self, timeout: Duration) -> Result<()> {
        let start = Instant::now();
        for cache in self.caches()? {
            cache.flush(timeout.saturating_sub(start.elapsed()))?;
        }
        self.blocks.flush(timeout.saturating_sub(start.elapsed()))?;
        self.blocks.costs().save();
        Ok(())
    }

    /// Forgets everything in every tier, for good.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Timeout`].
    pub fn clear(&self) -> Result<()> {
        for cache in self.caches()? {
            cache.clear(None)?;
        }
        self.blocks.clear(None)?;
        Ok(())
    }

    /// Drains and closes; a second call does nothing.
    ///
    /// # Errors
    /// [`Error::Timeout`] if writes were still under way at the limit: they are lost, nothing is damaged. [`Error::Forked`].
    pub fn close(&self, timeout: Duration) -> Result<()> {
        self.blocks.check_process()?;
        let start = Instant::now();
        let caches = {
            let mut state = self.state.lock();
            if std::mem::replace(&mut state.closed, true) {
                return Ok(());
            }
            std::mem::take(&mut state.caches)
        };
        let drained = caches
            .iter()
            .try_for_each(|cache| cache.close(timeout.saturating_sub(start.elapsed())));
        let closed = self.blocks.close(timeout.saturating_sub(start.elapsed()));
        drained.and(closed)
    }

    /// What each cache and tier holds.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn stats(&self) -> Result<(Vec<CacheStats>, StoreStats)> {
        let caches = self.caches()?.iter().map(PrefixCache::stats).collect();
        Ok((caches, self.blocks.stats()?))
    }
}
