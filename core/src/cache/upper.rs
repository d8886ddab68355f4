//! What a simulated L1 holds, by key, for the store without payload below it.

use std::sync::Arc;

use crate::sync::Mutex;

use super::lend::{KeyIndex, Keyed};
use crate::block::BlockId;
use crate::key::BlockKey;
use crate::run::{RunHeader, RunSource};
use crate::store::{Above, Shape};

/// The blocks of an L1 without bytes, which a store may borrow.
#[derive(Debug)]
pub(crate) struct Upper {
    index: Mutex<KeyIndex>,
    shape: Shape,
}

impl Upper {
    pub(crate) fn new(shape: Shape) -> Self {
        Self {
            index: Mutex::default(),
            shape,
        }
    }

    /// L1 took in a block.
    pub(super) fn insert(&self, block: Keyed) {
        self.index.lock().insert(block);
    }

    /// L1 took in consecutive blocks, of which the first hangs from `parent`.
    pub(crate) fn extend(
        &self,
        namespace: BlockKey,
        mut parent: BlockKey,
        keys: &[BlockKey],
        blocks: &[u32],
    ) {
        for (&key, &block) in keys.iter().zip(blocks) {
            let block = BlockId(block);
            self.insert(Keyed {
                namespace,
                parent: std::mem::replace(&mut parent, key),
                key,
                block,
            });
        }
    }

    /// Blocks left L1, and arrived below if they went there.
    pub(crate) fn remove(&self, blocks: impl IntoIterator<Item = BlockId>) {
        let mut index = self.index.lock();
        for block in blocks {
            index.remove(block);
        }
    }

    /// L1 has these blocks now.
    pub(super) fn replace(&self, index: &KeyIndex) {
        *self.index.lock() = index.clone();
    }

    /// Whether L1 has a block, or one that is on its way down.
    pub(crate) fn contains(&self, block: u32) -> bool {
        self.index.lock().key_of(BlockId(block)).is_some()
    }
}

impl Above for Upper {
    fn lend(
        self: Arc<Self>,
        key: &BlockKey,
        known: &dyn Fn(&BlockKey) -> bool,
    ) -> Vec<(RunHeader, RunSource)> {
        let chain = self.index.lock().chain(key);
        let below = chain.iter().rposition(|entry| known(&entry.key));
        let missing = &chain[below.map_or(0, |last| last + 1)..];
        let Some(first) = missing.first() else {
            return Vec::new();
        };
        let keys = missing.iter().map(|entry| entry.key).collect::<Vec<_>>();
        let runs = self.shape.runs(first.namespace, first.parent, &keys);
        runs.collect()
    }

    fn ends(&self) -> Vec<BlockKey> {
        self.index.lock().ends()
    }
}
