//! L1: the fixed pool of blocks, and the sequences that share them.
//!
//! [`BlockPool`] owns the memory and counts references; [`SequenceTable`] turns sequences into block tables over it, with fork and
//! copy-on-write; [`PagedAllocator`] is both in one. Who writes to which block is settled by the counts: a block with one reference
//! belongs to its holder, a block with more is read-only until its writer has a copy.

mod allocator;
mod pool;
mod sequence;
mod stats;

pub use allocator::PagedAllocator;
pub use pool::{BlockId, BlockPool};
pub use sequence::{Appended, SequenceId, SequenceTable};
pub use stats::PoolStats;
