//! The policy lab: traces, replayed on the code that runs live or on its models.
//!
//! Everything here is a simulation: it moves no payload. Hits, bytes and evictions are counted exactly; milliseconds come from the
//! model that a run is configured with.

pub mod capture;
pub mod page;
