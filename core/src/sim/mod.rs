//! The policy lab: traces, replayed on the code that runs live or on its models.
//!
//! Everything here is a simulation: it moves no payload. Hits, bytes and evictions are counted exactly; milliseconds come from the
//! model that a run is configured with. [`prefix`] replays requests on the live tree, [`page`] independent pages over any number
//! of tiers; [`capture`] records what a live store does, so that it can be replayed.

pub mod capture;
pub mod page;
pub mod prefix;
pub mod trace;
