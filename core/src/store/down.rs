//! The way down: from above into L2, and from there, or at once, into the queue for L3.

use std::sync::Arc;
use std::time::Instant;

use super::core::Core;
use super::moves::Born;
use crate::error::Result;
use crate::key::BlockKey;
use crate::run::{RunHeader, RunSource};
use crate::tier::memory::{MemoryTier, Reservation, VictimRun};
use crate::tier::{PinnedRun, Put, Refusal};

/// The most ancestors that go to L3 with a victim; longer chains are cut off by L3's refusal.
const MAX_ANCESTORS: usize = 4096;

impl Core {
    pub(super) fn queue_write(&self, mut header: RunHeader, source: RunSource) -> Put {
        header.terms = header.terms.stamped(self.clock.now());
        if self.is_over(&header.terms) {
            return self.counters.refusals.note(Put::Refused(Refusal::Expired));
        }
        if !header.terms.persist && self.l3.is_some() {
            let put = Put::Refused(Refusal::NotPersisted);
            return self.counters.refusals.note(put);
        }
        match &self.writer {
            Some(writer) => writer.enqueue(header, source),
            None => self
                .counters
                .refusals
                .note(Put::Refused(Refusal::Unavailable)),
        }
    }

    /// Into L2, or else into the queue for L3.
    pub(super) fn take_in(&self, mut header: RunHeader, source: RunSource) -> Result<Put> {
        header.terms = header.terms.stamped(self.clock.now());
        if self.is_over(&header.terms) {
            let put = Put::Refused(Refusal::Expired);
            return Ok(self.counters.refusals.note(put));
        }
        let born = self.moves.born();
        match self.take_into_l2(&header, &source)? {
            Put::Refused(_) if self.writer.is_some() => {
                Ok(self.send_down(header, source, born, None))
            }
            Put::Refused(reason) if self.l2.is_none() => {
                Ok(self.counters.refusals.note(Put::Refused(reason)))
            }
            put => Ok(put),
        }
    }

    /// Copies a run into L2; what L2 evicts for it goes to L3 if L3 lacks it.
    pub(super) fn take_into_l2(&self, header: &RunHeader, source: &RunSource) -> Result<Put> {
        let Some(l2) = &self.l2 else {
            return Ok(Put::Refused(Refusal::Unavailable));
        };
        let (born, start) = (self.moves.born(), Instant::now());
        let mut demote = |victim| self.demote_victim(victim, born, None);
        let put = l2.put_evicting(header, source, &mut demote)?;
        if put == Put::Stored {
            self.counters
                .l2
                .wrote(header.payload_bytes(), start.elapsed());
        }
        Ok(self.counters.refusals.note(put))
    }

    /// Room in L2 for a run that a caller is about to fill.
    pub(super) fn reserve(
        &self,
        l2: &MemoryTier,
        header: &RunHeader,
    ) -> Result<Reservation, Refusal> {
        let born = self.moves.born();
        l2.reserve(header, &mut |victim| self.demote_victim(victim, born, None))
    }

    /// Sends a run that L2 evicted on to L3, if L3 lacks it.
    fn demote_victim(&self, victim: VictimRun, born: Born, room_by: Option<Instant>) {
        self.counters.l2.evictions.add(1);
        let header = victim.header().clone();
        let keys = header.keys.clone();
        let put = match &self.writer {
            Some(_) => self.send_down(header, victim.into_source(), born, room_by),
            None => Put::Refused(Refusal::Unavailable),
        };
        if matches!(put, Put::Refused(_)) {
            self.counters.dropped_victims.add(1);
            let lost = keys.iter().filter(|key| !self.reaches_l3(key)).count();
            self.counters.dropped_victim_blocks.add(lost as u64);
        }
    }

    /// Queues a run for L3 that the tiers above give up. L3 takes no run without its parent, and leaves are given up first, so
    /// what is missing above the run goes along, root first; it stays where it is, in L2 or above.
    pub(super) fn send_down(
        &self,
        header: RunHeader,
        source: RunSource,
        born: Born,
        room_by: Option<Instant>,
    ) -> Put {
        if header.keys.iter().all(|key| self.reaches_l3(key)) {
            return Put::Present;
        }
        if self
            .uses
            .as_ref()
            .is_some_and(|uses| !header.keys.iter().all(|key| uses.enough(key)))
        {
            return self
                .counters
                .refusals
                .note(Put::Refused(Refusal::TooFewUses));
        }
        let mut runs = self.missing_before(&header);
        runs.push((header, source));
        self.queue_in_order(runs, born, room_by)
    }

    /// Queues the runs of one chain, up to the first refusal; gives back what became of the last.
    fn queue_in_order(
        &self,
        runs: Vec<(RunHeader, RunSource)>,
        born: Born,
        room_by: Option<Instant>,
    ) -> Put {
        let mut last = Put::Present;
        for (header, source) in runs {
            last = self.arrive(born, header, source, room_by);
            if matches!(last, Put::Refused(_)) {
                break;
            }
        }
        last
    }

    /// What L3 lacks of a run's chain before it, as far as L2 and what lies above hold it; the first run comes first.
    fn missing_before(&self, header: &RunHeader) -> Vec<(RunHeader, RunSource)> {
        let mut runs = Vec::new();
        let mut parent = header.parent;
        while parent != header.namespace && !self.reaches_l3(&parent) && runs.len() < MAX_ANCESTORS
        {
            // It may be on its way down from one place to the next: what was missed once is met at the second look.
            let found = self
                .ending_with(&parent)
                .or_else(|| self.ending_with(&parent));
            let Some((first, _)) = found.as_ref().and_then(|found| found.first()) else {
                break;
            };
            parent = first.parent;
            runs.extend(found.into_iter().flatten().rev());
        }
        runs.reverse();
        runs
    }

    /// The run that holds a block, or, from above, the runs up to it; wherever they are, but for L3.
    fn ending_with(&self, key: &BlockKey) -> Option<Vec<(RunHeader, RunSource)>> {
        let l2 = self.l2.as_ref();
        l2.and_then(|l2| l2.find_run(key))
            .map(|(run, _)| (run.header().clone(), run.source()))
            // Another thread evicted it a moment ago.
            .or_else(|| l2.and_then(|l2| l2.find_leaving(key)))
            .map(|run| vec![run])
            .or_else(|| self.above.lend(key, &|key| self.reaches_l3(key)))
    }

    fn arrive(
        &self,
        born: Born,
        header: RunHeader,
        source: RunSource,
        room_by: Option<Instant>,
    ) -> Put {
        let settle = |header, source| {
            self.moves.settle(born, |fresh| {
                if fresh {
                    self.queue_write(header, source)
                } else {
                    Put::Refused(Refusal::Unavailable)
                }
            })
        };
        let (Some(deadline), Some(writer)) = (room_by, &self.writer) else {
            return settle(header, source);
        };
        // Waiting for room comes first, nothing waits under the lock of the moves; others may be quicker then.
        while writer.wait_room(&header, deadline) {
            let put = settle(header.clone(), source.clone());
            if put != Put::Refused(Refusal::QueueFull) {
                return put;
            }
        }
        settle(header, source)
    }

    /// At the end, with write-back: sends down all that L3 lacks, what is pinned and what lies above included.
    pub(super) fn write_back(&self, deadline: Instant) {
        // L2 first, from its oldest run on: what is written last is given up last.
        self.evict_l2(deadline);
        let born = self.moves.born();
        let pinned = self.l2.as_ref().map_or_else(Vec::new, MemoryTier::runs);
        for (header, source) in pinned {
            self.send_down(header, source, born, Some(deadline));
        }
        self.write_back_above(deadline);
    }

    /// Sends down what lies above as far as L3 lacks it; it stays there, too.
    pub(super) fn write_back_above(&self, deadline: Instant) {
        let born = self.moves.born();
        for upper in self.above.all() {
            for end in upper.ends() {
                let runs = Arc::clone(&upper).lend(&end, &|key| self.reaches_l3(key));
                self.queue_in_order(runs, born, Some(deadline));
            }
        }
    }

    /// Empties L2 as far as it is not pinned.
    pub(super) fn evict_l2(&self, deadline: Instant) -> usize {
        let Some(l2) = &self.l2 else { return 0 };
        let mut evicted = 0;
        let born = self.moves.born();
        while let Some(victim) = l2.evict_one() {
            self.demote_victim(victim, born, Some(deadline));
            evicted += 1;
        }
        evicted
    }
}
