//! The radix tree over L1 blocks: longest cached prefix, path locks, leaf eviction.
//!
//! A node holds the tokens of one or more consecutive blocks and the ids of the blocks that hold their KV. Nodes begin and end
//! on block borders and split only there; siblings differ in their first block, so one hash table keyed by (parent, first
//! block) finds the way down, and a whole node is compared at the speed of `memcmp`. A partial last block is a leaf of its own.
//!
//! The tree deals in block ids only: it says which blocks it took and which it gives back, the pool is its owner's business.
//! Its metadata stay below [`NODE_BYTES`] a node.

mod arena;
mod claim;
mod divergence;
mod evict;
mod insert;
mod keys;
mod lock;
mod names;
mod tree;
mod validate;

pub use arena::NodeId;
pub use divergence::Divergence;
pub use evict::{Cleared, Evicted};
pub use insert::Inserted;
pub use lock::LockId;
pub use tree::{Match, PartialBlock, PartialMatch, RadixStats, RadixTree};

/// The most bytes that a node costs besides its tokens (4 bytes each) and block ids (4 bytes each): its place in the arena,
/// its entries in the hash table and the eviction policy, and the allocator's overhead for its one allocation. Measured with
/// `lru` on x86-64 Linux: 146.
pub const NODE_BYTES: usize = 192;
