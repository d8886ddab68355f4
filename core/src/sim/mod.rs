//! The policy lab: traces of requests, replayed on the code that runs live.
//!
//! Everything here is a simulation: it moves no payload, and its times come from a model.

pub mod capture;
pub mod page;
pub mod prefix;
pub mod trace;
