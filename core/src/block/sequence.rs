use std::fmt;
use std::ops::Range;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{BlockId, BlockPool};
use crate::error::{Error, Result};

/// A sequence of a [`SequenceTable`]; never given out twice by the same table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What an append did to the block table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// Blocks that were added at the end of the table.
    pub added: usize,
    /// The partial last block was shared: the block that was there, and the copy that took its place.
    pub copied: Option<(BlockId, BlockId)>,
}

#[derive(Debug, Default)]
struct Sequence {
    blocks: Vec<BlockId>,
    tokens: usize,
}

/// Sequences as tables of blocks of one pool, each block of `block_tokens` tokens; only the last one may be partial.
///
/// Every call takes the pool that the table was made for. A sequence holds one reference to each of its blocks; others (a radix tree)
/// may hold more. Whatever fails leaves table and pool as they were.
#[derive(Debug)]
pub struct SequenceTable {
    block_tokens: usize,
    /// Bytes of one token's row in a block.
    token_bytes: usize,
    sequences: HashMap<u64, Sequence, FixedState>,
    next: u64,
    tokens: u64,
}

impl SequenceTable {
    /// An empty table over `pool` with blocks of `block_tokens` tokens.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `block_tokens` is 0 or above `u32::MAX`, or the pool's block size is no multiple of it.
    pub fn new(pool: &BlockPool, block_tokens: usize) -> Result<Self> {
        if block_tokens == 0 || u32::try_from(block_tokens).is_err() {
            return Err(Error::invalid(format!(
                "blocks of {block_tokens} tokens cannot be made; use 1 to {}, 16 as a rule",
                u32::MAX
            )));
        }
        if !pool.block_bytes().is_multiple_of(block_tokens) {
            return Err(Error::invalid(format!(
                "blocks of {} bytes do not divide into {block_tokens} tokens; use a multiple of {block_tokens} bytes",
                pool.block_bytes()
            )));
        }
        Ok(Self {
            block_tokens,
            token_bytes: pool.block_bytes() / block_tokens,
            sequences: HashMap::default(),
            next: 0,
            tokens: 0,
        })
    }

    /// A new sequence without tokens. O(1).
    pub fn allocate(&mut self) -> SequenceId {
        self.add(Sequence::default())
    }

    /// A new sequence over `tokens` tokens in blocks that exist already (a matched path), each of which gains a reference. O(blocks).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `tokens` tokens do not take that many blocks, [`Error::UnknownBlock`] for a free block.
    pub fn from_blocks(
        &mut self,
        pool: &mut BlockPool,
        blocks: &[BlockId],
        tokens: usize,
    ) -> Result<SequenceId> {
        if tokens.div_ceil(self.block_tokens) != blocks.len() {
            return Err(Error::invalid(format!(
                "{tokens} tokens take {} blocks of {}, {} were given",
                tokens.div_ceil(self.block_tokens),
                self.block_tokens,
                blocks.len()
            )));
        }
        pool.retain_all(blocks)?;
        for (index, block) in blocks.iter().enumerate() {
            let needed = (tokens - index * self.block_tokens).min(self.block_tokens) as u32;
            if pool.filled_of(*block) < needed {
                pool.set_filled(*block, needed)?;
            }
        }
        Ok(self.add(Sequence {
            blocks: blocks.to_vec(),
            tokens,
        }))
    }

    /// A new sequence that shares every block of `id`. O(blocks), no bytes copied.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`].
    pub fn fork(&mut self, pool: &mut BlockPool, id: SequenceId) -> Result<SequenceId> {
        let parent = self.get(id)?;
        pool.retain_all(&parent.blocks)?;
        let child = Sequence {
            blocks: parent.blocks.clone(),
            tokens: parent.tokens,
        };
        Ok(self.add(child))
    }

    /// Ends a sequence and gives up its references; returns how many blocks became free. O(blocks).
    ///
    /// # Errors
    /// [`Error::UnknownSequence`]. [`Error::UnknownBlock`] if somebody else gave up this sequence's reference to a block; the sequence
    /// is gone then all the same, with its other references.
    pub fn free(&mut self, pool: &mut BlockPool, id: SequenceId) -> Result<usize> {
        let sequence = self
            .sequences
            .remove(&id.0)
            .ok_or(Error::UnknownSequence(id.0))?;
        self.tokens -= sequence.tokens as u64;
        release_all(pool, &sequence.blocks)
    }

    /// Makes room for `tokens` more tokens; their bytes are unspecified until written. A partial last block that is shared is copied
    /// first. O(new blocks), and at most one block copied.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::OutOfBlocks`] for what it takes, copy included.
    pub fn append(
        &mut self,
        pool: &mut BlockPool,
        id: SequenceId,
        tokens: usize,
    ) -> Result<Appended> {
        let block_tokens = self.block_tokens;
        let sequence = get_mut(&mut self.sequences, id)?;
        if tokens == 0 {
            return Ok(Appended::default());
        }
        let held = sequence.tokens.checked_add(tokens).ok_or_else(|| {
            Error::invalid(format!("{tokens} more tokens than a sequence can count"))
        })?;
        let added = held.div_ceil(block_tokens) - sequence.blocks.len();
        let partial = sequence
            .blocks
            .last_mut()
            .filter(|_| !sequence.tokens.is_multiple_of(block_tokens));
        let copy = partial
            .as_ref()
            .is_some_and(|block| pool.ref_count(**block) > 1);
        pool.require(added.saturating_add(usize::from(copy)))?;

        let mut copied = None;
        if let Some(block) = partial {
            let before = *block;
            *block = pool.make_writable(before)?;
            copied = copy.then_some((before, *block));
        }
        pool.allocate_many(added, &mut sequence.blocks)?;
        let first = sequence.tokens / block_tokens;
        sequence.tokens = held;
        self.tokens += tokens as u64;
        for index in first..sequence.blocks.len() {
            let filled = (held - index * block_tokens).min(block_tokens);
            pool.set_filled(sequence.blocks[index], filled as u32)?;
        }
        Ok(Appended { added, copied })
    }

    /// Drops all but the first `tokens` tokens; returns how many blocks became free. O(blocks given up).
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::InvalidArgument`] if the sequence is shorter than that.
    pub fn truncate(
        &mut self,
        pool: &mut BlockPool,
        id: SequenceId,
        tokens: usize,
    ) -> Result<usize> {
        let sequence = get_mut(&mut self.sequences, id)?;
        if tokens > sequence.tokens {
            return Err(Error::invalid(format!(
                "sequence {id} has {} tokens and cannot be cut to {tokens}; append instead",
                sequence.tokens
            )));
        }
        self.tokens -= (sequence.tokens - tokens) as u64;
        sequence.tokens = tokens;
        let given_up = sequence
            .blocks
            .split_off(tokens.div_ceil(self.block_tokens));
        // Slots of a shared block stay filled: another holder may use them.
        if let Some(last) = sequence.blocks.last()
            && pool.ref_count(*last) == 1
        {
            let filled = tokens - (sequence.blocks.len() - 1) * self.block_tokens;
            pool.set_filled(*last, filled as u32)?;
        }
        release_all(pool, &given_up)
    }

    /// Writes whole tokens at token `position`, for blocks whose bytes are rows of one token each. Shared blocks in the way are copied
    /// first; returns how many. O(bytes).
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::InvalidArgument`] if `bytes` is no whole number of tokens or reaches past the sequence's
    /// end, [`Error::OutOfBlocks`] for the copies.
    pub fn write(
        &mut self,
        pool: &mut BlockPool,
        id: SequenceId,
        position: usize,
        bytes: &[u8],
    ) -> Result<usize> {
        let tokens = self.whole_tokens(bytes.len())?;
        let rows = self.rows();
        let sequence = get_mut(&mut self.sequences, id)?;
        let range = sequence.range(id, position, tokens)?;
        let touched = rows.blocks(&range);
        let shared = sequence.blocks[touched.clone()]
            .iter()
            .filter(|block| pool.ref_count(**block) > 1)
            .count();
        pool.require(shared)?;
        let copies = pool.copies();
        for block in &mut sequence.blocks[touched] {
            *block = pool.make_writable(*block)?;
        }
        rows.each(&range, |index, inside, part| {
            let offset = pool.offset(sequence.blocks[index]) + inside;
            pool.region().write(offset, &bytes[part]);
        });
        Ok((pool.copies() - copies) as usize)
    }

    /// Reads whole tokens from token `position` on into `out`, for blocks whose bytes are rows of one token each. O(bytes).
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::InvalidArgument`] if the range reaches past the sequence's end or `out` has not exactly
    /// `tokens` tokens.
    pub fn read(
        &self,
        pool: &BlockPool,
        id: SequenceId,
        position: usize,
        tokens: usize,
        out: &mut [u8],
    ) -> Result<()> {
        let sequence = self.get(id)?;
        let range = sequence.range(id, position, tokens)?;
        if tokens * self.token_bytes != out.len() {
            return Err(Error::invalid(format!(
                "{tokens} tokens of {} bytes do not fit {} bytes exactly",
                self.token_bytes,
                out.len()
            )));
        }
        self.rows().each(&range, |index, inside, part| {
            let offset = pool.offset(sequence.blocks[index]) + inside;
            pool.region().read(offset, &mut out[part]);
        });
        Ok(())
    }

    /// Copies block `index` of a sequence if it is shared, so that its holder may write to it; returns the block that is in the table
    /// now. O(1), or one block copied.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::InvalidArgument`] if the table has no such index, [`Error::OutOfBlocks`].
    pub fn make_writable(
        &mut self,
        pool: &mut BlockPool,
        id: SequenceId,
        index: usize,
    ) -> Result<BlockId> {
        let sequence = get_mut(&mut self.sequences, id)?;
        let blocks = sequence.blocks.len();
        let block = sequence.blocks.get_mut(index).ok_or_else(|| {
            Error::invalid(format!(
                "sequence {id} has {blocks} blocks and none at {index}"
            ))
        })?;
        *block = pool.make_writable(*block)?;
        Ok(*block)
    }

    /// The block table of a sequence, in token order. O(1).
    ///
    /// # Errors
    /// [`Error::UnknownSequence`].
    pub fn blocks(&self, id: SequenceId) -> Result<&[BlockId]> {
        Ok(&self.get(id)?.blocks)
    }

    /// Tokens of a sequence. O(1).
    ///
    /// # Errors
    /// [`Error::UnknownSequence`].
    pub fn tokens(&self, id: SequenceId) -> Result<usize> {
        Ok(self.get(id)?.tokens)
    }

    /// Tokens of all sequences, shared ones counted for each. O(1).
    pub fn total_tokens(&self) -> u64 {
        self.tokens
    }

    /// Live sequences. O(1).
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether there are none. O(1).
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Tokens in a block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Bytes of one token in a block.
    pub fn token_bytes(&self) -> usize {
        self.token_bytes
    }

    /// Checks every table, and that each block has as many references as sequences and `external` holders (a radix tree) account for.
    /// O(blocks ever used + blocks of all sequences).
    ///
    /// # Errors
    /// A description of the first thing that is wrong.
    pub fn validate(
        &self,
        pool: &BlockPool,
        external: impl Fn(BlockId) -> u32,
    ) -> Result<(), String> {
        pool.validate()?;
        let mut references = vec![0_u32; pool.ever_used()];
        let mut tokens = 0;
        for (id, sequence) in &self.sequences {
            if sequence.blocks.len() != sequence.tokens.div_ceil(self.block_tokens) {
                return Err(format!(
                    "sequence {id} has {} tokens in {} blocks of {}",
                    sequence.tokens,
                    sequence.blocks.len(),
                    self.block_tokens
                ));
            }
            tokens += sequence.tokens as u64;
            for (index, block) in sequence.blocks.iter().enumerate() {
                let needed = (sequence.tokens - index * self.block_tokens).min(self.block_tokens);
                let filled = pool.filled_of(*block) as usize;
                if filled < needed || filled > self.block_tokens {
                    return Err(format!(
                        "block {block} counts {filled} slots filled, sequence {id} uses {needed}"
                    ));
                }
                match references.get_mut(block.0 as usize) {
                    Some(count) => *count += 1,
                    None => return Err(format!("sequence {id} holds unknown block {block}")),
                }
            }
        }
        if tokens != self.tokens {
            return Err(format!(
                "sequences hold {tokens} tokens, the counter says {}",
                self.tokens
            ));
        }
        for (index, held) in references.iter().enumerate() {
            let id = BlockId(index as u32);
            let expected = held + external(id);
            if pool.ref_count(id) != expected {
                return Err(format!(
                    "block {id} counts {} references, {expected} are accounted for",
                    pool.ref_count(id)
                ));
            }
        }
        Ok(())
    }

    fn add(&mut self, sequence: Sequence) -> SequenceId {
        let id = self.next;
        self.next += 1;
        self.tokens += sequence.tokens as u64;
        self.sequences.insert(id, sequence);
        SequenceId(id)
    }

    fn get(&self, id: SequenceId) -> Result<&Sequence> {
        self.sequences
            .get(&id.0)
            .ok_or(Error::UnknownSequence(id.0))
    }

    fn rows(&self) -> Rows {
        Rows {
            block_tokens: self.block_tokens,
            token_bytes: self.token_bytes,
        }
    }

    fn whole_tokens(&self, bytes: usize) -> Result<usize> {
        if bytes == 0 {
            return Ok(0);
        }
        match bytes.checked_rem(self.token_bytes) {
            Some(0) => Ok(bytes / self.token_bytes),
            _ => Err(Error::invalid(format!(
                "{bytes} bytes are no whole number of tokens of {} bytes",
                self.token_bytes
            ))),
        }
    }
}

impl Sequence {
    fn range(&self, id: SequenceId, position: usize, tokens: usize) -> Result<Range<usize>> {
        position
            .checked_add(tokens)
            .filter(|end| *end <= self.tokens)
            .map(|end| position..end)
            .ok_or_else(|| {
                Error::invalid(format!(
                    "tokens {position}+{tokens} are not all inside sequence {id} of {} tokens; append first",
                    self.tokens
                ))
            })
    }
}

/// How token ranges fall onto blocks of token rows.
#[derive(Clone, Copy)]
struct Rows {
    block_tokens: usize,
    token_bytes: usize,
}

impl Rows {
    fn blocks(self, tokens: &Range<usize>) -> Range<usize> {
        if tokens.is_empty() {
            return 0..0;
        }
        tokens.start / self.block_tokens..tokens.end.div_ceil(self.block_tokens)
    }

    /// Calls `part` with (block index, byte offset in the block, byte range of the caller's buffer) for each block in turn.
    fn each(self, tokens: &Range<usize>, mut part: impl FnMut(usize, usize, Range<usize>)) {
        for index in self.blocks(tokens) {
            let first = index * self.block_tokens;
            let start = tokens.start.max(first);
            let end = tokens.end.min(first + self.block_tokens);
            part(
                index,
                (start - first) * self.token_bytes,
                (start - tokens.start) * self.token_bytes..(end - tokens.start) * self.token_bytes,
            );
        }
    }
}

fn get_mut(
    sequences: &mut HashMap<u64, Sequence, FixedState>,
    id: SequenceId,
) -> Result<&mut Sequence> {
    sequences.get_mut(&id.0).ok_or(Error::UnknownSequence(id.0))
}

/// Releases every block, the last first, so that the first is the next to be given out; returns how many became free.
fn release_all(pool: &mut BlockPool, blocks: &[BlockId]) -> Result<usize> {
    let mut freed = Ok(0);
    for block in blocks.iter().rev() {
        match pool.release(*block) {
            Ok(last) => freed = freed.map(|count| count + usize::from(last)),
            Err(error) => freed = Err(error),
        }
    }
    freed
}
