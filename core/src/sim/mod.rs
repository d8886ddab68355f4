//! The policy lab: traces replayed through policies on tiers that are simulated.
//!
//! Hits, bytes and evictions are counted exactly; milliseconds come from the model that a run is configured with. [`page`]
//! replays independent pages over any number of tiers.

pub mod page;
