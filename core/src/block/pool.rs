use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::memory::Region;

/// A block of a [`BlockPool`]: a dense index from 0, given again after the block was freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u32);

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// 0 for a free block.
    references: u32,
    /// Token slots in use, as its holders say; 0 for a free block.
    filled: u32,
}

/// A fixed number of equally large blocks over one page-aligned region, shared by counting references.
///
/// A block is opaque bytes; the pool never reads them but to copy a block on write. Freed blocks are given out again last in, first
/// out, before memory that was never touched, so that writes land on warm pages. Metadata is 12 bytes for each block ever used.
#[derive(Debug)]
pub struct BlockPool {
    region: Arc<Region>,
    blocks: u32,
    block_bytes: usize,
    /// One for each block ever given out; the others are free and untouched.
    slots: Vec<Slot>,
    /// Blocks that were given back; the last one goes first.
    returned: Vec<BlockId>,
    shared: usize,
    references: u64,
    filled: u64,
    copies: u64,
}

impl BlockPool {
    /// A pool of `blocks` blocks of `block_bytes` bytes each; 0 bytes make a pool that only counts. Memory is reserved here and
    /// committed page by page when it is first written.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for no blocks, more than `u32::MAX` of them, or more bytes than can be addressed;
    /// [`Error::Io`] if the system refuses the memory.
    pub fn new(blocks: usize, block_bytes: usize) -> Result<Self> {
        let count = u32::try_from(blocks)
            .ok()
            .filter(|count| *count > 0)
            .ok_or_else(|| {
                Error::invalid(format!(
                    "a pool of {blocks} blocks cannot be made; use 1 to {} blocks",
                    u32::MAX
                ))
            })?;
        let bytes = blocks.checked_mul(block_bytes).ok_or_else(|| {
            Error::invalid(format!(
                "{blocks} blocks of {block_bytes} bytes are more than can be addressed; use fewer or smaller blocks"
            ))
        })?;
        Ok(Self {
            region: Arc::new(Region::new(bytes.max(1))?),
            blocks: count,
            block_bytes,
            slots: Vec::new(),
            returned: Vec::new(),
            shared: 0,
            references: 0,
            filled: 0,
            copies: 0,
        })
    }

    /// A free block with one reference, its bytes unspecified. O(1).
    ///
    /// # Errors
    /// [`Error::OutOfBlocks`] if none is free.
    pub fn allocate(&mut self) -> Result<BlockId> {
        let id = match self.returned.pop() {
            Some(id) => {
                self.slots[id.0 as usize].references = 1;
                id
            }
            None if self.slots.len() < self.blocks as usize => {
                let id = BlockId(self.slots.len() as u32);
                self.slots.push(Slot {
                    references: 1,
                    filled: 0,
                });
                id
            }
            None => {
                return Err(Error::OutOfBlocks {
                    requested: 1,
                    free: 0,
                });
            }
        };
        self.references += 1;
        Ok(id)
    }

    /// Appends `count` new blocks to `out`: all or none. O(count).
    ///
    /// # Errors
    /// [`Error::OutOfBlocks`] if fewer are free; nothing changes then.
    pub fn allocate_many(&mut self, count: usize, out: &mut Vec<BlockId>) -> Result<()> {
        self.require(count)?;
        out.reserve(count);
        for _ in 0..count {
            out.push(self.allocate()?);
        }
        Ok(())
    }

    /// Checks that `count` blocks are free. O(1).
    ///
    /// # Errors
    /// [`Error::OutOfBlocks`] if fewer are.
    pub fn require(&self, count: usize) -> Result<()> {
        let free = self.free();
        if count > free {
            return Err(Error::OutOfBlocks {
                requested: count,
                free,
            });
        }
        Ok(())
    }

    /// One more reference to a block. O(1).
    ///
    /// # Errors
    /// [`Error::UnknownBlock`] if the block is free or not of this pool, [`Error::InvalidArgument`] at `u32::MAX` references.
    pub fn retain(&mut self, id: BlockId) -> Result<()> {
        let slot = live(&mut self.slots, id)?;
        if slot.references == u32::MAX {
            return Err(Error::invalid(format!(
                "block {id} has {} references, the most that are counted; free some of its sequences",
                u32::MAX
            )));
        }
        slot.references += 1;
        if slot.references == 2 {
            self.shared += 1;
        }
        self.references += 1;
        Ok(())
    }

    /// One more reference to each block: all or none. O(blocks).
    ///
    /// # Errors
    /// Those of [`retain`](Self::retain); nothing changes then.
    pub fn retain_all(&mut self, ids: &[BlockId]) -> Result<()> {
        for (index, id) in ids.iter().enumerate() {
            if let Err(error) = self.retain(*id) {
                for undone in &ids[..index] {
                    self.release(*undone)?;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// One reference less; true if that was the last and the block is free now. O(1).
    ///
    /// # Errors
    /// [`Error::UnknownBlock`] if the block is free already or not of this pool; nothing changes then.
    pub fn release(&mut self, id: BlockId) -> Result<bool> {
        let slot = live(&mut self.slots, id)?;
        slot.references -= 1;
        self.references -= 1;
        match slot.references {
            0 => {
                self.filled -= u64::from(slot.filled);
                slot.filled = 0;
                self.returned.push(id);
                Ok(true)
            }
            left => {
                if left == 1 {
                    self.shared -= 1;
                }
                Ok(false)
            }
        }
    }

    /// The block to write to in place of `id`: `id` itself if the caller's reference is the only one, else a copy of its bytes that
    /// takes over the caller's reference. O(1), or one `memcpy` of a block.
    ///
    /// # Errors
    /// [`Error::UnknownBlock`], or [`Error::OutOfBlocks`] if a copy is needed and no block is free; nothing changes then.
    pub fn make_writable(&mut self, id: BlockId) -> Result<BlockId> {
        let Slot { references, filled } = *live(&mut self.slots, id)?;
        if references == 1 {
            return Ok(id);
        }
        let copy = self.allocate()?;
        self.region.copy_from(
            self.offset(copy),
            &self.region,
            self.offset(id),
            self.block_bytes,
        );
        self.release(id)?;
        self.set_filled(copy, filled)?;
        self.copies += 1;
        Ok(copy)
    }

    /// Says how many token slots of a block are in use, for [`filled`](Self::filled). O(1).
    ///
    /// # Errors
    /// [`Error::UnknownBlock`] if the block is free or not of this pool.
    pub fn set_filled(&mut self, id: BlockId, tokens: u32) -> Result<()> {
        let slot = live(&mut self.slots, id)?;
        self.filled = self.filled - u64::from(slot.filled) + u64::from(tokens);
        slot.filled = tokens;
        Ok(())
    }

    /// Token slots of one block in use; 0 for a free one. O(1).
    pub fn filled_of(&self, id: BlockId) -> u32 {
        self.slots.get(id.0 as usize).map_or(0, |slot| slot.filled)
    }

    /// References to a block; 0 if it is free or not of this pool. O(1).
    pub fn ref_count(&self, id: BlockId) -> u32 {
        self.slots
            .get(id.0 as usize)
            .map_or(0, |slot| slot.references)
    }

    /// Blocks in all.
    pub fn blocks(&self) -> usize {
        self.blocks as usize
    }

    /// Blocks that were given out at least once: those of the lowest ids.
    pub(super) fn ever_used(&self) -> usize {
        self.slots.len()
    }

    /// Bytes of one block.
    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Blocks that nobody references. O(1).
    pub fn free(&self) -> usize {
        self.blocks as usize - self.slots.len() + self.returned.len()
    }

    /// Blocks with at least one reference. O(1).
    pub fn used(&self) -> usize {
        self.slots.len() - self.returned.len()
    }

    /// Blocks with more than one reference. O(1).
    pub fn shared(&self) -> usize {
        self.shared
    }

    /// References to all blocks. O(1).
    pub fn references(&self) -> u64 {
        self.references
    }

    /// Token slots in use over all blocks, a shared block counted once. O(1).
    pub fn filled(&self) -> u64 {
        self.filled
    }

    /// Blocks copied on write so far.
    pub fn copies(&self) -> u64 {
        self.copies
    }

    /// Where a block starts in the region, in bytes. A pure function of the id, allocated or not.
    pub fn offset(&self, id: BlockId) -> usize {
        id.0 as usize * self.block_bytes
    }

    /// The memory under the blocks.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Checks the counters against the blocks. O(blocks ever used).
    ///
    /// # Errors
    /// A description of the first thing that is wrong.
    pub fn validate(&self) -> Result<(), String> {
        let live = self.slots.iter().filter(|slot| slot.references > 0);
        let counted = (
            live.clone().count(),
            live.clone().filter(|slot| slot.references > 1).count(),
            live.clone().map(|slot| u64::from(slot.references)).sum(),
            live.map(|slot| u64::from(slot.filled)).sum(),
        );
        let kept = (self.used(), self.shared, self.references, self.filled);
        if counted != kept {
            return Err(format!(
                "(used, shared, references, filled) are {counted:?} in the blocks and {kept:?} in the counters"
            ));
        }
        let mut seen = vec![false; self.slots.len()];
        for id in &self.returned {
            match seen.get_mut(id.0 as usize) {
                Some(seen) if !*seen => *seen = true,
                _ => return Err(format!("block {id} is on the free list twice or unknown")),
            }
            let slot = self.slots[id.0 as usize];
            if slot.references != 0 || slot.filled != 0 {
                return Err(format!(
                    "block {id} is on the free list and in use: {slot:?}"
                ));
            }
        }
        Ok(())
    }
}

fn live(slots: &mut [Slot], id: BlockId) -> Result<&mut Slot> {
    match slots.get_mut(id.0 as usize) {
        Some(slot) if slot.references > 0 => Ok(slot),
        _ => Err(Error::UnknownBlock(id.0)),
    }
}
