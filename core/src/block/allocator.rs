use super::{Appended, BlockId, BlockPool, PoolStats, SequenceId, SequenceTable};
use crate::error::{Error, Result};

/// A block pool and its sequences in one: paged memory for token rows, with fork and copy-on-write.
///
/// Every operation that fails leaves everything as it was. Costs are those of [`SequenceTable`].
#[derive(Debug)]
pub struct PagedAllocator {
    pool: BlockPool,
    sequences: SequenceTable,
    /// References that others hold (a radix tree), by block; blocks from its end on have none.
    held: Vec<u32>,
}

impl PagedAllocator {
    /// `blocks` blocks of `block_tokens` tokens in `block_bytes` bytes; 0 bytes for an allocator that only counts.
    ///
    /// # Errors
    /// Those of [`BlockPool::new`] and [`SequenceTable::new`].
    pub fn new(blocks: usize, block_tokens: usize, block_bytes: usize) -> Result<Self> {
        let pool = BlockPool::new(blocks, block_bytes)?;
        let sequences = SequenceTable::new(&pool, block_tokens)?;
        Ok(Self {
            pool,
            sequences,
            held: Vec::new(),
        })
    }

    /// A new sequence with room for `tokens` tokens.
    ///
    /// # Errors
    /// [`Error::OutOfBlocks`](crate::Error::OutOfBlocks); there is no new sequence then.
    pub fn allocate_sequence(&mut self, tokens: usize) -> Result<SequenceId> {
        self.pool
            .require(tokens.div_ceil(self.sequences.block_tokens()))?;
        let id = self.sequences.allocate();
        self.sequences.append(&mut self.pool, id, tokens)?;
        Ok(id)
    }

    /// Room for `tokens` more tokens; see [`SequenceTable::append`].
    ///
    /// # Errors
    /// [`Error::UnknownSequence`](crate::Error::UnknownSequence), [`Error::OutOfBlocks`](crate::Error::OutOfBlocks).
    pub fn append_tokens(&mut self, id: SequenceId, tokens: usize) -> Result<Appended> {
        self.sequences.append(&mut self.pool, id, tokens)
    }

    /// Ends a sequence; returns how many blocks became free.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`](crate::Error::UnknownSequence).
    pub fn free_sequence(&mut self, id: SequenceId) -> Result<usize> {
        self.sequences.free(&mut self.pool, id)
    }

    /// A new sequence that shares every block of `id` until one of the two writes to it.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`](crate::Error::UnknownSequence).
    pub fn fork(&mut self, id: SequenceId) -> Result<SequenceId> {
        self.sequences.fork(&mut self.pool, id)
    }

    /// Cuts a sequence to its first `tokens` tokens; returns how many blocks became free.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`](crate::Error::UnknownSequence), [`Error::InvalidArgument`](crate::Error::InvalidArgument) if it is shorter.
    pub fn truncate(&mut self, id: SequenceId, tokens: usize) -> Result<usize> {
        self.sequences.truncate(&mut self.pool, id, tokens)
    }

    /// Writes whole tokens at token `position`; returns how many shared blocks were copied for it.
    ///
    /// # Errors
    /// Those of [`SequenceTable::write`].
    pub fn write(&mut self, id: SequenceId, position: usize, bytes: &[u8]) -> Result<usize> {
        self.sequences.write(&mut self.pool, id, position, bytes)
    }

    /// Reads `tokens` tokens from token `position` on.
    ///
    /// # Errors
    /// Those of [`SequenceTable::read`].
    pub fn read(
        &self,
        id: SequenceId,
        position: usize,
        tokens: usize,
        out: &mut [u8],
    ) -> Result<()> {
        self.sequences.read(&self.pool, id, position, tokens, out)
    }

    /// The blocks of a sequence, in token order.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`](crate::Error::UnknownSequence).
    pub fn block_table(&self, id: SequenceId) -> Result<&[BlockId]> {
        self.sequences.blocks(id)
    }

    /// Tokens of a sequence.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`](crate::Error::UnknownSequence).
    pub fn tokens(&self, id: SequenceId) -> Result<usize> {
        self.sequences.tokens(id)
    }

    /// Bytes of one token.
    pub fn token_bytes(&self) -> usize {
        self.sequences.token_bytes()
    }

    /// References to a block; 0 for a free one.
    pub fn ref_count(&self, id: BlockId) -> u32 {
        self.pool.ref_count(id)
    }

    /// Takes a reference to each block for somebody other than a sequence, a radix tree for one. O(blocks).
    ///
    /// # Errors
    /// [`Error::UnknownBlock`] for a free block; no reference is taken then.
    pub fn hold(&mut self, blocks: &[BlockId]) -> Result<()> {
        self.pool.retain_all(blocks)?;
        for block in blocks {
            let index = block.0 as usize;
            if index >= self.held.len() {
                self.held.resize(index + 1, 0);
            }
            self.held[index] += 1;
        }
        Ok(())
    }

    /// Gives a reference of [`hold`](Self::hold) back; true if the block became free.
    ///
    /// # Errors
    /// [`Error::UnknownBlock`] if nobody holds it that way.
    pub fn let_go(&mut self, block: BlockId) -> Result<bool> {
        match self.held.get_mut(block.0 as usize) {
            Some(count) if *count > 0 => *count -= 1,
            _ => return Err(Error::UnknownBlock(block.0)),
        }
        self.pool.release(block)
    }

    /// What is held, in O(1).
    pub fn stats(&self) -> PoolStats {
        PoolStats::of(&self.pool, &self.sequences)
    }

    /// Checks pool and sequences against each other. O(blocks).
    ///
    /// # Errors
    /// A description of the first thing that is wrong.
    pub fn validate(&self) -> std::result::Result<(), String> {
        self.sequences.validate(&self.pool, |block| {
            self.held.get(block.0 as usize).copied().unwrap_or(0)
        })
    }
}
