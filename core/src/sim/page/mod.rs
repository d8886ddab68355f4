//! Page mode: independent pages over N tiers, as kv-hierarchy-lab models them.
//!
//! The first tier is the fast one: an access hits if its page is there, and misses otherwise. A missed page is promoted to the
//! first tier from wherever it is; one that is nowhere comes from the last tier, where it is put free of charge. Room is made by
//! demoting victims one tier down, which may demote others in turn; what leaves the last tier is dropped. A move costs the
//! source's read latency, the target's write latency, its bytes over the lesser bandwidth, and the decode penalty of the page's
//! scheme; a hit costs the first tier's read latency and the penalty.
//!
//! [`Engine::Exact`] is the default: a page is in one tier at a time. [`Engine::Compat`] reproduces the published results of
//! kv-hierarchy-lab to the last digit, its double residency included. See [`Simulation`] for where they part.

mod as_eviction;
mod engine;
mod key;
mod metrics;
mod overlap;
mod per_tier;
pub mod policy;
mod residency;
mod scheme;
#[cfg(test)]
mod tests;
mod tier;
mod tournament;
mod workload;

pub use as_eviction::PageScored;
pub use engine::{Engine, Hierarchy, Simulation, simulate};
pub use metrics::{Outcome, Overlapped};
pub use overlap::Overlap;
pub use per_tier::PerTier;
pub use policy::{Context, Departure, PagePolicy};
pub use residency::Residency;
pub use scheme::{SCHEMES, Scheme};
pub use tier::{TIER_PRESETS, TierSpec, tier_preset};
pub use workload::{Access, Page, PageId, TierIndex, Workload};
