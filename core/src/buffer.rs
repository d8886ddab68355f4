//! Cache buffers: the contiguous per-layer memory that a model computes from, pooled so that its pages are touched once.

use std::sync::Arc;

use crate::sync::Mutex;

use crate::cache::Contents;
use crate::error::{Error, Result};
use crate::layout::{BufferLayout, Layout};
use crate::memory::{Region, page_align};

#[derive(Debug)]
struct Shared {
    budget: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes of all regions, leased and idle.
    mapped: u64,
    /// Regions that nobody uses, all their pages touched.
    idle: Vec<Arc<Region>>,
}

/// Hands out cache buffers within a fixed budget of bytes.
#[derive(Clone, Debug)]
pub struct BufferPool {
    shared: Arc<Shared>,
}

/// How much of a [`BufferPool`] is in use, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferStats {
    /// The most that may be mapped.
    pub budget: u64,
    /// Mapped now, in use or idle.
    pub mapped: u64,
    /// Mapped and idle.
    pub idle: u64,
}

/// A leased buffer: memory for `capacity` tokens, back in its pool when dropped.
#[derive(Debug)]
pub struct CacheBuffer {
    region: Arc<Region>,
    layout: BufferLayout,
    pool: Arc<Shared>,
    contents: Mutex<Option<Contents>>,
}

impl BufferPool {
    /// A pool that maps at most `budget` bytes.
    pub fn new(budget: u64) -> Self {
        Self {
            shared: Arc::new(Shared {
                budget,
                state: Mutex::default(),
            }),
        }
    }

    /// A buffer for at least `tokens` tokens: the smallest idle one that fits, else a new one, for which idle ones are
    /// given back if the budget asks for it. New memory is touched once here.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for no tokens, [`Error::OutOfMemory`] if the buffers in use leave too little, [`Error::Io`]
    /// if the system has no memory.
    pub fn lease(&self, layout: &Layout, tokens: usize) -> Result<CacheBuffer> {
        self.lease_with_spare(layout, tokens, 0)
    }

    /// [`Self::lease`], with room for up to `spare` tokens more if that costs nothing: in an idle buffer, or in a new one as long
    /// as half of the budget stays free.
    ///
    /// # Errors
    /// As for [`Self::lease`].
    pub fn lease_with_spare(
        &self,
        layout: &Layout,
        tokens: usize,
        spare: usize,
    ) -> Result<CacheBuffer> {
        let block = layout.block_tokens();
        if tokens == 0 {
            return Err(Error::invalid(
                "a cache buffer for 0 tokens cannot be leased; ask for 1 or more",
            ));
        }
        let capacity = tokens.div_ceil(block).saturating_mul(block);
        let least = (capacity as u64).saturating_mul(layout.token_bytes() as u64);
        if least > self.shared.budget {
            return Err(self.shared.too_little(least, &self.shared.state.lock()));
        }
        let exact = BufferLayout::new(layout, capacity);
        let spare = spare.min(capacity) / block * block;
        let larger = BufferLayout::new(layout, capacity + spare);
        let (region, layout) = match self.take_idle(page_align(exact.bytes())) {
            Some(region) if larger.bytes() <= region.len() => (region, larger),
            Some(region) => (region, exact),
            None if self.has_half(larger.bytes()) => {
                (self.map(page_align(larger.bytes()))?, larger)
            }
            None => (self.map(page_align(exact.bytes()))?, exact),
        };
        Ok(CacheBuffer {
            region,
            layout,
            pool: Arc::clone(&self.shared),
            contents: Mutex::default(),
        })
    }

    /// Whether half of the budget stays free with so many bytes more.
    fn has_half(&self, bytes: usize) -> bool {
        self.shared.state.lock().mapped + bytes as u64 <= self.shared.budget / 2
    }

    fn take_idle(&self, bytes: usize) -> Option<Arc<Region>> {
        let mut state = self.shared.state.lock();
        let best = state
            .idle
            .iter()
            .enumerate()
            .filter(|(_, region)| region.len() >= bytes)
            .min_by_key(|(_, region)| region.len())
            .map(|(index, _)| index)?;
        Some(state.idle.swap_remove(best))
    }

    fn map(&self, bytes: usize) -> Result<Arc<Region>> {
        let wanted = bytes as u64;
        {
            let mut state = self.shared.state.lock();
            while state.mapped + wanted > self.shared.budget
                && let Some(region) = state.idle.pop()
            {
                state.mapped -= region.len() as u64;
            }
            if state.mapped + wanted > self.shared.budget {
                return Err(self.shared.too_little(wanted, &state));
            }
            state.mapped += wanted;
        }
        match Region::new(bytes) {
            Ok(region) => {
                region.prefault();
                Ok(Arc::new(region))
            }
            Err(error) => {
                self.shared.state.lock().mapped -= wanted;
                Err(error)
            }
        }
    }

    /// What is in use.
    pub fn stats(&self) -> BufferStats {
        let state = self.shared.state.lock();
        BufferStats {
            budget: self.shared.budget,
            mapped: state.mapped,
            idle: state.idle.iter().map(|region| region.len() as u64).sum(),
        }
    }
}

impl Shared {
    fn too_little(&self, requested: u64, state: &State) -> Error {
        let idle = state
            .idle
            .iter()
            .map(|region| region.len() as u64)
            .sum::<u64>();
        Error::OutOfMemory {
            what: "cache buffers",
            requested,
            available: self.budget - (state.mapped - idle),
            budget: self.budget,
            remedy: "close other sessions and caches, or open the store with a larger l1",
        }
    }
}

impl CacheBuffer {
    /// The memory.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// What is known to stand in it.
    pub(crate) fn contents(&self) -> &Mutex<Option<Contents>> {
        &self.contents
    }

    /// Where each layer lies in it.
    pub fn layout(&self) -> &BufferLayout {
        &self.layout
    }
}

impl Drop for CacheBuffer {
    fn drop(&mut self) {
        self.pool.state.lock().idle.push(Arc::clone(&self.region));
    }
}

#[cfg(test)]
mod tests {
    use super::BufferPool;
    use crate::layout::{LayerLayout, Layout};

    fn layout() -> Layout {
        let layer = LayerLayout {
            k_heads: 2,
            k_dim: 8,
            v_heads: 2,
            v_dim: 8,
        };
        Layout::new(&[layer; 2], 4, 16).expect("a valid layout")
    }

    #[test]
    fn buffers_are_reused_and_the_budget_holds() {
        let layout = layout();
        let one = BufferPool::new(u64::MAX)
            .lease(&layout, 64)
            .expect("room")
            .region()
            .len() as u64;
        let pool = BufferPool::new(2 * one);
        let first = pool.lease(&layout, 64).expect("room for one");
        let address = first.region().address();
        let second = pool.lease(&layout, 60).expect("room for two");
        assert!(pool.lease(&layout, 64).is_err(), "no room for three");
        drop(first);
        let again = pool.lease(&layout, 33).expect("the idle one fits");
        assert_eq!(again.region().address(), address);
        drop((again, second));
        let stats = pool.stats();
        assert_eq!((stats.mapped, stats.idle), (2 * one, 2 * one));
        let larger = pool.lease(&layout, 128).expect("idle buffers make way");
        assert!(pool.stats().mapped <= 2 * one);
        drop(larger);
    }
}
