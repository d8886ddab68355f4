//! Blocks on their way out: evicted and still copied down, or lent to the store below.

use crate::block::BlockId;
use crate::error::Result;
use crate::key::BlockKey;
use crate::radix::Evicted;
use crate::sim::capture::L1Event;

use super::journal::ids;
use super::{Keyed, L1};

impl L1 {
    /// Takes up to `wanted` blocks out of the tree, giving up idle holds if need be, longest idle first.
    pub(in crate::cache) fn evict(&mut self, wanted: usize) -> Result<Vec<Evicted>> {
        self.note(|| L1Event::Evict {
            blocks: wanted as u64,
        });
        let mut evicted = self.start_eviction(wanted);
        let count = |evicted: &[Evicted]| evicted.iter().map(|part| part.blocks().len()).sum();
        let mut gone: usize = count(&evicted);
        while gone < wanted && self.reclaim_idle()? {
            evicted.extend(self.start_eviction(wanted - gone));
            gone = count(&evicted);
        }
        Ok(evicted)
    }

    /// Takes up to `wanted` blocks out of the tree; they stay allocated until [`Self::finish_eviction`].
    pub(super) fn start_eviction(&mut self, wanted: usize) -> Vec<Evicted> {
        let mut evicted = Vec::new();
        self.tree.evict_keyed(wanted, &mut evicted);
        for part in &evicted {
            self.evicted_blocks += part.blocks().len() as u64;
            self.in_flight
                .extend(part.blocks().iter().copied().map(BlockId));
        }
        evicted
    }

    /// The bytes of evicted blocks are copied: their memory may be used again.
    pub(in crate::cache) fn finish_eviction(&mut self, blocks: &[BlockId]) -> Result<()> {
        self.note(|| L1Event::Freed {
            blocks: ids(blocks),
        });
        for block in blocks {
            self.in_flight.remove(block);
            self.index.remove(*block);
            self.pool.release(*block)?;
        }
        Ok(())
    }

    /// Whether blocks wait for the tiers below, and will be free without anyone's doing.
    pub(super) fn is_draining(&self) -> bool {
        !self.in_flight.is_empty() || !self.lent.is_empty()
    }

    /// The blocks up to and with `key`, the first one first, which stay as they are until [`Self::take_back`]. None if L1 does
    /// not have the block.
    pub(in crate::cache) fn lend(&mut self, key: &BlockKey) -> Result<Vec<Keyed>> {
        let chain = self.index.chain(key);
        if let Some(last) = chain.last() {
            self.note(|| L1Event::Lend {
                block: last.block.0,
            });
        }
        for entry in &chain {
            self.pool.retain(entry.block)?;
            *self.lent.entry(entry.block).or_insert(0) += 1;
        }
        Ok(chain)
    }

    pub(in crate::cache) fn take_back(&mut self, blocks: &[BlockId]) -> Result<()> {
        self.note(|| L1Event::TakeBack {
            blocks: ids(blocks),
        });
        for block in blocks {
            if let Some(times) = self.lent.get_mut(block) {
                *times -= 1;
                if *times == 0 {
                    self.lent.remove(block);
                }
            }
            self.pool.release(*block)?;
        }
        Ok(())
    }

    /// Keys of the last blocks of all chains.
    pub(in crate::cache) fn chain_ends(&self) -> Vec<BlockKey> {
        self.index.ends()
    }

    /// Drops what the tree holds of a namespace, or of all.
    pub(in crate::cache) fn clear(&mut self, namespace: Option<&BlockKey>) -> Result<usize> {
        self.note_clear(namespace);
        while self.reclaim_idle()? {}
        let namespaces = match namespace {
            Some(one) => vec![*one],
            None => self.tree.namespaces().copied().collect(),
        };
        let mut gone = 0;
        for namespace in &namespaces {
            for block in self.tree.remove_namespace(namespace).blocks {
                self.index.remove(BlockId(block));
                self.pool.release(BlockId(block))?;
                gone += 1;
            }
        }
        Ok(gone)
    }
}
