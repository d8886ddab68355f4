//! L2 driven by a capture: the same directory and the same pages, of which none is ever touched.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::MemoryTier;
use super::arena::Record;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::key::BlockKey;
use crate::policy::{EvictionPolicy, Slot};
use crate::sim::capture::{L2Event, Name};

/// An L2 without payload.
#[derive(Debug)]
pub(crate) struct Replica {
    tier: MemoryTier,
    /// Runs that have memory, by number, and their place in the directory, if they are or were listed.
    runs: HashMap<u64, (Arc<Record>, Option<Slot>)>,
    taken: u64,
}

fn keys(names: &[Name]) -> Vec<BlockKey> {
    names.iter().map(|name| name.key()).collect()
}

fn unknown(run: u64) -> Error {
    Error::invalid(format!(
        "the capture speaks of run {run} of L2, which has no memory"
    ))
}

impl Replica {
    /// An L2 of so many bytes.
    ///
    /// # Errors
    /// As [`MemoryTier::with_clock`].
    pub(crate) fn new(bytes: u64, policy: Box<dyn EvictionPolicy>, clock: Clock) -> Result<Self> {
        Ok(Self {
            tier: MemoryTier::with_limits(bytes, policy, Duration::ZERO, clock, None)?,
            runs: HashMap::new(),
            taken: 0,
        })
    }

    fn record(&self, run: u64) -> Result<Arc<Record>> {
        let found = self.runs.get(&run).ok_or_else(|| unknown(run))?;
        Ok(Arc::clone(&found.0))
    }

    /// Whatever L2 was asked.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for what cannot have been.
    pub(crate) fn apply(&mut self, event: L2Event) -> Result<()> {
        let shared = &self.tier.shared;
        match event {
            L2Event::Offer { keys: names } => {
                let mut directory = shared.directory.lock();
                let (keys, now) = (keys(&names), directory.time());
                directory.drop_expired(&keys, now);
                directory.renew_if_all_present(&keys, now);
            }
            L2Event::MakeRoom { pages } => {
                // A refusal was one then, too; who waits for the pages of victims is told when they are free.
                drop(self.tier.evict_for(pages as usize));
            }
            L2Event::Take { run } => {
                let header = run.header(0)?;
                let record = shared.arena.take(&header).ok_or_else(|| {
                    Error::invalid("the capture has a run in L2 for which there is no memory")
                })?;
                self.runs.insert(self.taken, (Arc::new(record), None));
                self.taken += 1;
            }
            L2Event::List { run } => {
                let record = self.record(run)?;
                let slot = {
                    let mut directory = shared.directory.lock();
                    let now = directory.time();
                    directory.drop_expired(&record.header().keys, now);
                    directory.insert(&record)
                };
                self.runs.insert(run, (record, slot));
            }
            L2Event::Free { run } => {
                self.runs.remove(&run);
            }
            L2Event::Find { key } => {
                drop(shared.directory.lock().pin(&key.key()));
            }
            L2Event::Unpin { run } => {
                let (record, slot) = self.runs.get(&run).ok_or_else(|| unknown(run))?;
                if let Some(slot) = slot {
                    shared.directory.lock().unpin(*slot, record);
                }
            }
            L2Event::EvictOne {} => drop(self.tier.evict_one()),
            L2Event::Remove { keys: names } => {
                shared.directory.lock().remove(&keys(&names));
            }
            L2Event::RemoveCovered { keys: names } => {
                self.tier.remove_covered(&keys(&names));
            }
            L2Event::Clear { namespace } => {
                self.tier.clear(namespace.map(Name::key).as_ref());
            }
        }
        Ok(())
    }

    /// Checks rows, runs, child counts, candidates and pages.
    ///
    /// # Errors
    /// A description of the first thing that is wrong.
    pub(crate) fn validate(&self) -> std::result::Result<(), String> {
        self.tier.validate()
    }
}
