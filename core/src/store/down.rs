//! The way down: from above into L2, and from there, or at once, into the queues for L3 and L4.

use std::sync::Arc;
use std::time::Instant;

use super::core::Core;
use super::moves::Born;
use crate::error::Result;
use crate::key::BlockKey;
use crate::run::{RunHeader, RunSource};
use crate::tier::memory::{MemoryTier, Reservation, VictimRun};
use crate::tier::{PinnedRun, Put, Refusal};

/// The most ancestors that go down with a victim; longer chains are cut off by L3's refusal.
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

    /// Queues a run for L4. Its bytes are copied for that, so that a slow server holds up no cache buffer, no block of L1 and no
    /// page of L2. A refusal is counted by L4.
    ///
    /// # Errors
    /// What L4 says of a run that cannot be; [`crate::Error::Io`] if memory cannot be had.
    pub(super) fn share(
        &self,
        mut header: RunHeader,
        source: RunSource,
        born: Born,
    ) -> Result<Put> {
        let Some(l4) = &self.l4 else {
            return Ok(Put::Refused(Refusal::Unavailable));
        };
        header.terms = header.terms.stamped(self.clock.now());
        let put = l4.admits(&header);
        if put != Put::Queued {
            return Ok(put);
        }
        let source = match source.lease {
            Some(_) => source.copied()?,
            None => source,
        };
        self.moves.settle(born, |fresh| {
            if fresh {
                l4.share(header, source)
            } else {
                Ok(Put::Refused(Refusal::Unavailable))
            }
        })
    }

    /// Whether L4 was seen to have a block, or will have it once its queue is written.
    pub(super) fn reaches_l4(&self, key: &BlockKey) -> bool {
        self.l4.as_ref().is_some_and(|l4| l4.knows(key))
    }

    /// Into L2, or else into the queues for L3 and L4.
    pub(super) fn take_in(&self, mut header: RunHeader, source: RunSource) -> Result<Put> {
        header.terms = header.terms.stamped(self.clock.now());
        if self.is_over(&header.terms) {
            let put = Put::Refused(Refusal::Expired);
            return Ok(self.counters.refusals.note(put));
        }
        let born = self.moves.born();
        match self.take_into_l2(&header, &source)? {
            Put::Refused(_) if self.writer.is_some() || self.l4.is_some() => {
                Ok(self.send_down(header, source, born, None))
            }
            Put::Refused(reason) if self.l2.is_none() => {
                Ok(self.counters.refusals.note(Put::Refused(reason)))
            }
            put => Ok(put),
        }
    }

    /// Copies a run into L2; what L2 evicts for it goes to the tiers below that lack it.
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

    /// Sends a run that L2 evicted on to the tiers below that lack it.
    fn demote_victim(&self, victim: VictimRun, born: Born, room_by: Option<Instant>) {
        self.counters.l2.evictions.add(1);
        let header = victim.header().clone();
        let keys = header.keys.clone();
        let put = if self.writer.is_some() || self.l4.is_some() {
            self.send_down(header, victim.into_source(), born, room_by)
        } else {
            Put::Refused(Refusal::Unavailable)
        };
        if matches!(put, Put::Refused(_)) {
            self.counters.dropped_victims.add(1);
            let lost = |key: &&BlockKey| !self.reaches_l3(key) && !self.reaches_l4(key);
            let lost = keys.iter().filter(lost).count();
            self.counters.dropped_victim_blocks.add(lost as u64);
        }
    }

    /// Queues a run that the tiers above give up for the tiers below that lack it. L3 takes no run without its parent, in L4 nobody
    /// could find it, and leaves are given up first; so what is missing above the run goes along, root first; it stays where it is,
    /// in L2 or above. L4 comes second: it holds nothing up. Refused if neither has it then.
    pub(super) fn send_down(
        &self,
        header: RunHeader,
        source: RunSource,
        born: Born,
        room_by: Option<Instant>,
    ) -> Put {
        let lacks_l3 = self.writer.is_some() && !header.keys.iter().all(|key| self.reaches_l3(key));
        let lacks_l4 = self.l4.is_some() && !header.keys.iter().all(|key| self.reaches_l4(key));
        if !lacks_l3 && !lacks_l4 {
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
        let shared = lacks_l4.then(|| (header.clone(), source.clone()));
        let mut put = Put::Present;
        if lacks_l3 {
            let mut runs = self.missing_before(&header, &|key| self.reaches_l3(key));
            runs.push((header, source));
            put = self.queue_in_order(runs, born, room_by);
        }
        if let Some((header, source)) = shared {
            let mut runs = self.missing_before(&header, &|key| self.reaches_l4(key));
            runs.push((header, source));
            let shared = self.share_in_order(runs, born);
            if self.writer.is_none() || matches!(put, Put::Refused(_)) {
                put = shared;
            }
        }
        put
    }

    /// Queues the runs of one chain for L4, up to the first refusal; gives back what became of the last.
    fn share_in_order(&self, runs: Vec<(RunHeader, RunSource)>, born: Born) -> Put {
        let mut last = Put::Present;
        for (header, source) in runs {
            last = self.share(header, source, born).unwrap_or_else(|error| {
                log::warn!("a run was not queued for L4: {error}");
                Put::Refused(Refusal::Unavailable)
            });
            if matches!(last, Put::Refused(_)) {
                break;
            }
        }
        last
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

    /// What a tier that has the `known` blocks lacks of a run's chain before it, as far as L2 and what lies above hold it; the
    /// first run comes first.
    fn missing_before(
        &self,
        header: &RunHeader,
        known: &dyn Fn(&BlockKey) -> bool,
    ) -> Vec<(RunHeader, RunSource)> {
        let mut runs = Vec::new();
        let mut parent = header.parent;
        while parent != header.namespace && !known(&parent) && runs.len() < MAX_ANCESTORS {
            // It may be on its way down from one place to the next: what was missed once is met at the second look.
            let found = self
                .ending_with(&parent, known)
                .or_else(|| self.ending_with(&parent, known));
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
    fn ending_with(
        &self,
        key: &BlockKey,
        known: &dyn Fn(&BlockKey) -> bool,
    ) -> Option<Vec<(RunHeader, RunSource)>> {
        let l2 = self.l2.as_ref();
        l2.and_then(|l2| l2.find_run(key))
            .map(|(run, _)| (run.header().clone(), run.source()))
            // Another thread evicted it a moment ago.
            .or_else(|| l2.and_then(|l2| l2.find_leaving(key)))
            .map(|run| vec![run])
            .or_else(|| self.above.lend(key, known))
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

    /// At the end, with write-back: sends down all that the tiers below lack, what is pinned and what lies above included.
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

    /// Sends down what lies above as far as L3 or L4 lacks it; it stays there, too.
    pub(super) fn write_back_above(&self, deadline: Instant) {
        let born = self.moves.born();
        for upper in self.above.all() {
            for end in upper.ends() {
                if self.writer.is_some() {
                    let runs = Arc::clone(&upper).lend(&end, &|key| self.reaches_l3(key));
                    self.queue_in_order(runs, born, Some(deadline));
                }
                if self.l4.is_some() {
                    let runs = Arc::clone(&upper).lend(&end, &|key| self.reaches_l4(key));
                    self.share_in_order(runs, born);
                }
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
