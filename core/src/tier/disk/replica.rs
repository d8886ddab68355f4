//! The directory of L3 driven by a capture: runs that have a length and no bytes.

use std::collections::HashMap;
use std::sync::Arc;

use super::directory::{Directory, Gone};
use super::files::{Files, SystemFiles};
use super::index::Row;
use super::run::{Place, Run};
use super::segment::{Extent, Segment};
use super::tenants::Tenants;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::memory::PAGE;
use crate::policy::EvictionPolicy;
use crate::sim::capture::{L3Event, Recorder};

/// A directory of L3 without an L3.
#[derive(Debug)]
pub(crate) struct Replica {
    directory: Directory,
    /// Runs that are listed or held, by serial.
    runs: HashMap<u64, Arc<Run>>,
    /// Where they all lie: nothing looks there.
    segment: Arc<Segment>,
}

impl Replica {
    /// An empty directory. `quota` is what the runs of a tenant may take unless more is said, and `policy_name` chooses among them.
    ///
    /// # Errors
    /// [`Error::Config`] for an unknown policy, [`Error::Io`] if the system has no null device.
    pub(crate) fn new(
        policy: Box<dyn EvictionPolicy>,
        policy_name: &str,
        quota: Option<u64>,
        recorder: Recorder,
        clock: Clock,
    ) -> Result<Self> {
        let files: Arc<dyn Files> = Arc::new(SystemFiles);
        let segment = Segment::nowhere(files)
            .map_err(|error| Error::io("opening the null device for a replay", error))?;
        let tenants = Tenants::new(policy_name, quota, Some(recorder), None)?;
        Ok(Self {
            directory: Directory::new(policy, tenants, clock, None),
            runs: HashMap::new(),
            segment: Arc::new(segment),
        })
    }

    /// Whatever it was asked.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for what cannot have been.
    pub(crate) fn apply(&mut self, event: L3Event) -> Result<()> {
        let directory = &mut self.directory;
        let mut gone = Vec::new();
        match event {
            L3Event::Open { .. } => return Err(Error::invalid("the capture opens L3 twice")),
            L3Event::Insert {
                run,
                tenant,
                bytes,
                serial,
                last_use,
                hits,
            } => {
                directory.resume_clock(serial.max(last_use));
                let row = Row {
                    serial,
                    last_use,
                    hits,
                    segment: 0,
                    offset: 0,
                    header: run.header(tenant.0)?,
                    header_bytes: PAGE as u32,
                    created: 0,
                };
                let place = Place {
                    segment: Arc::clone(&self.segment),
                    extent: Extent {
                        offset: 0,
                        len: bytes,
                    },
                };
                let run = directory.insert(row, place);
                self.runs.insert(serial, run);
            }
            L3Event::Touch { slot, tick } => {
                directory.resume_clock(tick.saturating_sub(1));
                directory.touch(slot);
            }
            L3Event::Pin { slot } => drop(directory.pin(slot)),
            L3Event::Unpin { serial } => {
                let unknown = || {
                    Error::invalid(format!(
                        "the capture speaks of run {serial} of L3, which is not there"
                    ))
                };
                let run = self.runs.get(&serial).ok_or_else(unknown)?;
                if directory.unpin(run) {
                    self.runs.remove(&serial);
                }
            }
            L3Event::Evict { bytes } => gone = directory.evict(bytes),
            L3Event::Drop { slot } => gone.extend(directory.remove(slot)),
            L3Event::Trim { tenant } => gone = directory.trim(tenant.0).0,
            L3Event::Begin { tenant, bytes } => directory.tenants.begin(tenant.0, bytes),
            L3Event::End { tenant, bytes } => directory.tenants.end(tenant.0, bytes),
            L3Event::SetQuota { tenant, quota } => directory.set_quota(tenant.0, quota),
        }
        for Gone { run, pinned, .. } in gone {
            if !pinned {
                self.runs.remove(&run.serial);
            }
        }
        Ok(())
    }

    /// Checks every count against what it counts.
    ///
    /// # Errors
    /// A description of the first thing that is wrong.
    pub(crate) fn validate(&self) -> std::result::Result<(), String> {
        self.directory.validate()
    }
}
