//! What a shared tier has done, and how its servers are.

/// What a [`SharedTier`](crate::tier::SharedTier) has done since the store was opened. Times in microseconds, sizes in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemoteStats {
    /// Blocks that lookups found.
    pub found_blocks: u64,
    /// Blocks that they did not find.
    pub missed_blocks: u64,
    /// Runs that were written.
    pub writes: u64,
    /// Payload bytes of them.
    pub write_bytes: u64,
    /// Time spent writing.
    pub write_micros: u64,
}
