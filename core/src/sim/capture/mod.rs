//! What a live store was asked, written down while it runs: [`Capture`] records, [`replay`] drives the same structures with it again,
//! without payload, [`rerun`] drives L1 with it under another policy or in another size, and [`requests`] makes a trace of it.
//!
//! A capture names blocks by hashes keyed with a secret that is drawn for it and never written: it holds no tokens, no text and no
//! block keys, and two captures cannot be compared.
//!
//! The cost is one append to a buffer in memory a call; a thread of its own writes it. Should the disk fall behind by
//! [`BUFFER_LIMIT`], recording ends there and says so, the store goes on.

mod format;
mod record;
mod recorder;
mod replay;
mod requests;
mod rerun;
mod wire;
mod writer;

pub use replay::{Replayed, replay};
pub use requests::{Request, Requests, requests};
pub use rerun::{Otherwise, Rerun, rerun};
pub use writer::{BUFFER_LIMIT, Capture};

pub(crate) use record::{Claim, L1Event, L2Event, L3Event};
pub(crate) use recorder::{Recorder, Tap, policy};
pub(crate) use wire::Name;
