//! What a live store was asked, written down while it runs: [`Capture`] records, [`replay`] does it again without payload, and
//! [`requests`] makes a trace of it for other policies and sizes.
//!
//! A capture names blocks by hashes keyed with a secret that is drawn for it and never written: it holds no tokens, no text and no
//! block keys, and two captures cannot be compared. What is recorded is every call that a tier's order of eviction gets (insert,
//! use, lock and unlock as changes of candidacy, the victim asked for, evicted, deleted) and every request's list of blocks.
//!
//! The cost is one append to a buffer in memory a call; a thread of its own writes it. Should the disk fall behind by
//! [`BUFFER_LIMIT`], recording ends there and says so, the store goes on.

mod format;
mod recorder;
mod replay;
mod requests;
mod writer;

pub use replay::{Replayed, replay};
pub use requests::{Request, Requests, requests};
pub use writer::{BUFFER_LIMIT, Capture};

pub(crate) use recorder::policy;
