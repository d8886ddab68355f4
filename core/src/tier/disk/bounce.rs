//! Page-aligned working memory for transfers, touched once and reused.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::Result;
use crate::memory::Region;

/// Size of a pooled region in bytes; a longer one is made for one use.
pub(super) const BOUNCE_BYTES: usize = 4 << 20;
/// Regions that are kept while nobody uses them.
const IDLE_REGIONS: usize = 8;

/// A pool of regions of [`BOUNCE_BYTES`].
#[derive(Debug, Default)]
pub(super) struct BouncePool {
    idle: Mutex<Vec<Arc<Region>>>,
}

/// A region in use; it goes back to its pool when dropped.
#[derive(Debug)]
pub(super) struct Bounce<'a> {
    pub(super) region: Arc<Region>,
    pool: &'a BouncePool,
}

impl BouncePool {
    /// A region of at least `len` bytes, with unspecified content.
    pub(super) fn take(&self, len: usize) -> Result<Bounce<'_>> {
        let pooled = (len <= BOUNCE_BYTES)
            .then(|| self.idle.lock().pop())
            .flatten();
        let region = if let Some(region) = pooled {
            region
        } else {
            let region = Region::new(len.max(BOUNCE_BYTES))?;
            region.prefault();
            Arc::new(region)
        };
        Ok(Bounce { region, pool: self })
    }
}

impl Drop for Bounce<'_> {
    fn drop(&mut self) {
        let mut idle = self.pool.idle.lock();
        if self.region.len() == BOUNCE_BYTES && idle.len() < IDLE_REGIONS {
            idle.push(Arc::clone(&self.region));
        }
    }
}
