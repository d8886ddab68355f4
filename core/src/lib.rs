//! The core of kvlab: blocks, the radix tree over them, and the tiers below.
//!
//! Two parts, one on the other: [`cache`] turns token ids into the longest cached prefix, [`store`] turns block keys into bytes.

pub mod block;
pub mod buffer;
pub mod cache;
pub mod clock;
pub mod codec;
pub mod config;
pub mod cost;
pub mod error;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod key;
pub mod layout;
pub mod memory;
#[cfg(all(test, feature = "shuttle"))]
mod models;
pub mod policy;
pub mod radix;
pub mod run;
pub mod sim;
pub mod sizing;
pub mod stack;
pub mod store;
mod sync;
pub mod tier;
pub mod tokens;

pub use error::{Error, Result};
