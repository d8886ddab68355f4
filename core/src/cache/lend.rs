//! L1 by key: the beginnings of chains, lent to the store below when it sends down what follows them.
//!
//! A lower tier takes a run only behind its parent, and leaves go down first, so the beginning of a chain may be in L1 alone
//! when a later part has to be written. It is written too then, out of the blocks where it lies, and stays in L1.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use crate::sync::{Condvar, Mutex};

use super::l1::L1;
use crate::block::BlockId;
use crate::key::{BlockKey, KeyMap};
use crate::layout::Layout;
use crate::memory::Region;
use crate::run::{Lease, NEVER, RunHeader, RunSource, Terms};
use crate::store::Above;

/// A block of L1 as the store names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Keyed {
    pub(super) namespace: BlockKey,
    pub(super) parent: BlockKey,
    pub(super) key: BlockKey,
    pub(super) block: BlockId,
}

/// The whole blocks of the tree, and those on their way out of it, by their keys.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyIndex {
    by_key: KeyMap<Keyed>,
    by_block: HashMap<BlockId, BlockKey>,
}

impl KeyIndex {
    /// Lists a block. A key that is listed (its block is on its way out) now stands for this one.
    pub(super) fn insert(&mut self, entry: Keyed) {
        if let Some(before) = self.by_key.insert(entry.key, entry) {
            self.by_block.remove(&before.block);
        }
        self.by_block.insert(entry.block, entry.key);
    }

    pub(super) fn remove(&mut self, block: BlockId) {
        if let Some(key) = self.by_block.remove(&block) {
            self.by_key.remove(&key);
        }
    }

    /// The blocks up to and with `key`, the first one first; none if the block is not listed.
    pub(super) fn chain(&self, key: &BlockKey) -> Vec<Keyed> {
        let mut chain = Vec::new();
        let mut at = self.by_key.get(key);
        while let Some(entry) = at {
            chain.push(*entry);
            at = self.by_key.get(&entry.parent);
        }
        chain.reverse();
        chain
    }

    /// What is listed by a key.
    pub(super) fn get(&self, key: &BlockKey) -> Option<&Keyed> {
        self.by_key.get(key)
    }

    /// The key of a block that is listed.
    pub(super) fn key_of(&self, block: BlockId) -> Option<BlockKey> {
        self.by_block.get(&block).copied()
    }

    /// Keys of the blocks that no other listed block follows.
    pub(super) fn ends(&self) -> Vec<BlockKey> {
        let parents = self.by_key.values().map(|entry| entry.parent);
        let parents = parents.collect::<HashSet<_>>();
        let ends = self.by_key.keys().filter(|key| !parents.contains(*key));
        ends.copied().collect()
    }

    /// The blocks that are listed.
    pub(super) fn blocks(&self) -> impl Iterator<Item = BlockId> {
        self.by_block.keys().copied()
    }

    /// Checks both directions against each other.
    pub(super) fn validate(&self) -> Result<(), String> {
        let agrees = |(block, key): (&BlockId, &BlockKey)| {
            let entry = self.by_key.get(key);
            entry.is_some_and(|entry| entry.block == *block && entry.key == *key)
        };
        if self.by_block.len() != self.by_key.len() || !self.by_block.iter().all(agrees) {
            return Err("the index of keys disagrees with itself".to_owned());
        }
        Ok(())
    }
}

/// Cuts blocks, of which it is known which ones were decoded, into runs of at most `most` blocks that are so as a whole or not at all.
pub(super) fn alike(decoded: &[bool], most: usize) -> impl Iterator<Item = (Range<usize>, bool)> {
    let mut at = 0;
    decoded
        .chunk_by(|a, b| a == b)
        .flat_map(move |same| same.chunks(most).map(|run| (run.len(), run[0])))
        .map(move |(len, decoded)| {
            let start = at;
            at += len;
            (start..at, decoded)
        })
}

/// L1 and what describes its blocks. It holds no store: its leases end on the store's threads, and the last handle of a store
/// must not be dropped there.
#[derive(Debug)]
pub(super) struct Lender {
    pub(super) l1: Arc<Mutex<L1>>,
    pub(super) blocks_freed: Arc<Condvar>,
    pub(super) arena: Arc<Region>,
    pub(super) layout: Layout,
    /// What namespaces ask of the tiers below; the default for those that are not here.
    pub(super) terms: Mutex<HashMap<BlockKey, Terms>>,
}

impl Lender {
    pub(super) fn terms(&self, namespace: &BlockKey) -> Terms {
        let terms = self.terms.lock().get(namespace).copied();
        terms.unwrap_or_default()
    }

    /// The header of a run of which the first block's time is over at `expires`.
    pub(super) fn header(
        &self,
        namespace: BlockKey,
        parent: BlockKey,
        keys: &[BlockKey],
        decoded: bool,
        expires: u64,
    ) -> RunHeader {
        let mut terms = self.terms(&namespace);
        terms.decoded = decoded;
        if expires != NEVER {
            // As old as its oldest block.
            terms.born = expires.saturating_sub(u64::from(terms.ttl_seconds));
        }
        RunHeader {
            namespace,
            parent,
            keys: keys.into(),
            block_tokens: self.layout.block_tokens() as u32,
            slices: self.layout.slice_lengths(keys.len()),
            terms,
        }
    }

    /// These blocks as a run's payload.
    pub(super) fn source(&self, blocks: impl Iterator<Item = BlockId>, lease: Lease) -> RunSource {
        let offsets = blocks.map(|block| self.offset(block)).collect::<Vec<_>>();
        RunSource {
            region: Arc::clone(&self.arena),
            lease,
            slices: (0..self.layout.layers().len())
                .map(|layer| self.layout.block_pieces(&offsets, layer))
                .collect(),
        }
    }

    pub(super) fn offset(&self, block: BlockId) -> usize {
        block.0 as usize * self.layout.block_bytes()
    }
}

impl Above for Lender {
    fn lend(
        self: Arc<Self>,
        key: &BlockKey,
        known: &dyn Fn(&BlockKey) -> bool,
    ) -> Vec<(RunHeader, RunSource)> {
        let lent = {
            let mut l1 = self.l1.lock();
            l1.lend(key).map(|chain| {
                let decoded = l1.decoded(chain.iter().map(|entry| &entry.block));
                (chain, decoded)
            })
        };
        let (chain, decoded) = match lent {
            Ok(lent) => lent,
            Err(error) => {
                log::error!("blocks could not be lent: {error}");
                return Vec::new();
            }
        };
        let mut runs = Vec::new();
        // What is known goes back at once, when its lease is dropped.
        let below = chain.iter().rposition(|entry| known(&entry.key));
        let (known, missing) = chain.split_at(below.map_or(0, |last| last + 1));
        drop(Lent::new(&self, known));
        let decoded = &decoded[known.len()..];
        for (run, decoded) in alike(decoded, self.layout.max_run_blocks()) {
            let part = &missing[run];
            let blocks = part.iter().map(|entry| &entry.block);
            let expires = self.l1.lock().earliest_expiry(blocks);
            let lease = Arc::new(Lent::new(&self, part));
            let keys = part.iter().map(|entry| entry.key).collect::<Vec<_>>();
            let Some(first) = part.first() else { continue };
            runs.push((
                self.header(first.namespace, first.parent, &keys, decoded, expires),
                self.source(part.iter().map(|entry| entry.block), Some(lease)),
            ));
        }
        runs
    }

    fn ends(&self) -> Vec<BlockKey> {
        self.l1.lock().chain_ends()
    }
}

/// Blocks that stay as they are until this is dropped.
struct Lent {
    lender: Arc<Lender>,
    blocks: Vec<BlockId>,
}

impl Lent {
    /// Takes over the references that [`L1::lend`] took.
    fn new(lender: &Arc<Lender>, entries: &[Keyed]) -> Self {
        Self {
            lender: Arc::clone(lender),
            blocks: entries.iter().map(|entry| entry.block).collect(),
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // Logged without the lock: a log record may wait for Python, which may wait for the lock.
        let returned = self.lender.l1.lock().take_back(&self.blocks);
        if let Err(error) = returned {
            log::error!("lent blocks could not be taken back: {error}");
        }
        self.lender.blocks_freed.notify_all();
    }
}
