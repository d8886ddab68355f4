//! L4: blocks on servers that several machines share.

mod stats;

pub use stats::RemoteStats;
