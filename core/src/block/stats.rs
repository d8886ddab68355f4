use super::{BlockPool, SequenceTable};

/// What a pool and its sequences hold. Taken in O(1) from counters kept along the way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PoolStats {
    /// Blocks in all.
    pub blocks: usize,
    /// Tokens in a block.
    pub block_tokens: usize,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// Blocks with at least one reference.
    pub used: usize,
    /// Blocks with none.
    pub free: usize,
    /// Blocks with more than one reference.
    pub shared: usize,
    /// Blocks that would be needed on top if nothing were shared: references beyond the first of each block. Where a radix tree holds
    /// blocks too, its references are among them.
    pub saved: u64,
    /// Live sequences.
    pub sequences: usize,
    /// Tokens of all sequences, shared ones counted for each.
    pub tokens: u64,
    /// Token slots in use, a shared block counted once. A slot of a shared block that one holder cut off counts until the block is
    /// free or its only holder appends.
    pub filled: u64,
    /// `filled` over the token slots of used blocks, 0 to 1; 0 if none is used.
    pub utilisation: f64,
    /// Bytes of the slots of used blocks that hold no token.
    pub wasted_bytes: u64,
    /// Blocks copied on write so far.
    pub copies: u64,
}

impl PoolStats {
    /// The state of `pool` and of `sequences` over it.
    pub fn of(pool: &BlockPool, sequences: &SequenceTable) -> Self {
        let slots = pool.used() as u64 * sequences.block_tokens() as u64;
        let filled = pool.filled();
        Self {
            blocks: pool.blocks(),
            block_tokens: sequences.block_tokens(),
            block_bytes: pool.block_bytes(),
            used: pool.used(),
            free: pool.free(),
            shared: pool.shared(),
            saved: pool.references() - pool.used() as u64,
            sequences: sequences.len(),
            tokens: sequences.total_tokens(),
            filled,
            utilisation: if slots == 0 {
                0.0
            } else {
                filled as f64 / slots as f64
            },
            wasted_bytes: slots.saturating_sub(filled) * sequences.token_bytes() as u64,
            copies: pool.copies(),
        }
    }
}
