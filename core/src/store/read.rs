//! Read tickets: many runs into their targets, layer by layer, in small jobs that any worker may take.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sync::Mutex;

use super::core::Core;
use super::plan::Step;
use super::sharing::Sharing;
use super::transfer::{Steps, Transfer};
use crate::cost::CostBook;
use crate::error::Result;
use crate::run::RunTarget;
use crate::tier::{ReadFailure, TierId};

/// A step of a plan and where its run goes.
#[derive(Debug)]
pub struct ReadRequest {
    /// What to read.
    pub step: Step,
    /// Where to; it must match the run's header.
    pub target: RunTarget,
}

impl ReadRequest {
    /// Payload bytes of some of its slices.
    pub(super) fn bytes(&self, slices: &Range<usize>) -> u64 {
        let lengths = &self.step.run.header().slices[slices.clone()];
        lengths.iter().map(|&len| u64::from(len)).sum()
    }
}

/// Why a slice did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadFailed {
    /// A run's bytes could not be used.
    #[error("the bytes of a run could not be used: {0:?}")]
    Failed(ReadFailure),
    /// The ticket was cancelled, or the store closed.
    #[error("the read was cancelled")]
    Cancelled,
    /// The slice was not there in time; the read goes on.
    #[error("the slice did not arrive in time")]
    Timeout,
}

/// What one tier gave to a read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierRead {
    /// Blocks wanted of it, in steps that arrived.
    pub blocks: usize,
    /// Payload bytes read, whole runs.
    pub bytes: u64,
    /// Microseconds between the start of its first job and the end of its last.
    pub micros: u64,
}

/// How a read ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadOutcome {
    /// Leading steps that arrived whole and verified; what later ones wrote is unspecified.
    pub steps_ok: usize,
    /// From host memory.
    pub l2: TierRead,
    /// From disk.
    pub l3: TierRead,
    /// From the servers of a shared tier.
    pub l4: TierRead,
    /// When the last byte that did arrive was verified; none if none did.
    pub end: Option<Instant>,
    /// What stopped it, if not all steps arrived.
    pub failure: Option<ReadFailed>,
}

/// A read under way. Dropping it gives up what has not begun and waits for what has, so that the targets are written to
/// no more.
pub struct ReadTicket {
    pub(super) transfer: Arc<Transfer>,
    sharing: Arc<Sharing>,
    /// Learns how long it took, once.
    costs: Mutex<Option<Arc<CostBook>>>,
}

impl Core {
    /// Has the workers read runs into their targets.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] for a target that does not match its run.
    pub(super) fn submit(&self, requests: Vec<ReadRequest>, steps: Steps) -> Result<ReadTicket> {
        self.claim_steps(requests.iter().map(|request| &request.step));
        let transfer = Arc::new(Transfer::new(requests, steps)?);
        self.sharing.list(&transfer);
        self.scheduler.read(&transfer);
        Ok(ReadTicket {
            transfer,
            sharing: Arc::clone(&self.sharing),
            costs: Mutex::new(Some(Arc::clone(&self.costs))),
        })
    }
}

impl ReadTicket {
    /// Waits until slice `index` (a layer) of all runs has arrived and was verified.
    ///
    /// # Errors
    /// [`ReadFailed`]: any failure of the ticket ends the wait, even in other slices. A slice that no run has is there.
    pub fn wait_slice(&self, index: usize, timeout: Duration) -> Result<(), ReadFailed> {
        let deadline = Instant::now() + timeout;
        let mut progress = self.transfer.progress();
        loop {
            if progress.waiting.get(index).is_none_or(|steps| *steps == 0) {
                return Ok(());
            }
            if let Some(failed) = progress.failure() {
                return Err(failed);
            }
            let changed = &self.transfer.changed;
            if changed.wait_until(&mut progress, deadline).timed_out() {
                return Err(ReadFailed::Timeout);
            }
        }
    }

    /// Whether nothing is under way any more; [`ReadTicket::wait`] then does not wait.
    pub fn is_over(&self) -> bool {
        self.transfer.is_over(&self.transfer.progress())
    }

    /// Waits until nothing is under way any more.
    pub fn wait(&self) -> ReadOutcome {
        let progress = self.transfer.wait_over();
        let missing = &progress.missing;
        let steps_ok = missing.iter().take_while(|slices| **slices == 0).count();
        let mut outcome = ReadOutcome {
            steps_ok,
            ..ReadOutcome::default()
        };
        if steps_ok < missing.len() {
            outcome.failure = progress.failure();
        }
        outcome.end = progress.spans.iter().flatten().map(|span| span.1).max();
        let tiers = [&mut outcome.l2, &mut outcome.l3, &mut outcome.l4];
        for (index, tier) in tiers.into_iter().enumerate() {
            if let Some((start, end, bytes)) = progress.spans[index] {
                tier.bytes = bytes;
                tier.micros = (end - start).as_micros() as u64;
            }
        }
        drop(progress);
        for (tier, blocks) in &self.transfer.steps[..steps_ok] {
            match tier {
                TierId::L4 => outcome.l4.blocks += blocks,
                TierId::L3 => outcome.l3.blocks += blocks,
                TierId::L1 | TierId::L2 => outcome.l2.blocks += blocks,
            }
        }
        // A read that was cut short says nothing of what a whole one takes.
        if outcome.failure.is_none()
            && let Some(costs) = self.costs.lock().take()
        {
            let seen =
                |tier, read: TierRead| (tier, read.bytes, Duration::from_micros(read.micros));
            costs.note_read(&[
                seen(TierId::L2, outcome.l2),
                seen(TierId::L3, outcome.l3),
                seen(TierId::L4, outcome.l4),
            ]);
        }
        outcome
    }

    /// Waits until nothing is under way any more, and says of each step whether it arrived whole and verified.
    pub(super) fn arrived(&self) -> Vec<bool> {
        self.wait();
        let progress = self.transfer.progress();
        progress.missing.iter().map(|slices| *slices == 0).collect()
    }

    /// Gives up what has not begun; [`ReadTicket::wait`] then ends as soon as the jobs under way do.
    pub fn cancel(&self) {
        self.transfer.cancel();
    }
}

impl fmt::Debug for ReadTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let progress = self.transfer.progress();
        write!(
            f,
            "ReadTicket({} of {} jobs taken)",
            progress.next,
            self.transfer.jobs()
        )
    }
}

impl Drop for ReadTicket {
    fn drop(&mut self) {
        self.transfer.cancel();
        drop(self.transfer.wait_over());
        self.sharing.forget(&self.transfer);
        drop(self.transfer.release());
    }
}
