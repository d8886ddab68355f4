//! S3-FIFO.

use super::ghosts::Ghosts;
use super::queue::Queues;
use super::{EntryMeta, EvictionPolicy, Slot};

const SMALL: usize = 0;
const MAIN: usize = 1;
/// The small queue's share of the bytes: one in so many.
const SMALL_SHARE: u64 = 10;
/// Uses are counted up to here.
const MOST_USES: u8 = 3;
/// What was used so often since it came in moves on to the main queue.
const PROMOTE_FROM: u8 = 2;

#[derive(Clone, Copy, Debug)]
struct Own {
    ghost: u64,
    uses: u8,
}

/// Three queues in order of arrival. What is new stands in the small one, a tenth of the bytes (until the first eviction what it has
/// no room for stands in the main one, as in the authors' libCacheSim); at its end it goes on to the main
/// one if it was used at least twice meanwhile, otherwise it goes and its name stands in the ghost queue (as many bytes' worth as
/// the main queue has). What comes back while its name is there starts in the main queue. At the end of the main queue an entry that
/// was used goes round once more for each use, of which 3 count; else it goes (Yang, Zhang, Qiu, Yue, Rashmi, "FIFO queues are all
/// you need for cache eviction", SOSP 2023).
///
/// In a prefix tree the ends of the queues are their oldest candidates: others keep place and uses. A head that is split off
/// an entry takes a copy of both; the tail that a leaf gives up leaves its name as an entry would.
///
/// Costs amortised O(log n) a call (a round of the main queue was paid by a use), some 90 bytes an entry, 24 more as a candidate and
/// 60 a remembered name. Parameters: the shares 1/10 and 9/10, promotion from 2 uses, as in the paper.
#[derive(Debug)]
pub struct S3Fifo {
    small_bytes: u64,
    queues: Queues<Own, 2>,
    /// What left the small queue.
    ghosts: Ghosts<()>,
    ghost_bytes: u64,
    /// Whether a victim was ever asked for.
    full: bool,
}

impl S3Fifo {
    /// For a tier of `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        let small_bytes = capacity / SMALL_SHARE;
        Self {
            small_bytes,
            queues: Queues::default(),
            ghosts: Ghosts::default(),
            ghost_bytes: capacity - capacity.div_ceil(SMALL_SHARE),
            full: false,
        }
    }

    /// Remembers a name. One that alone is too large is not, so that it does not push out all others.
    fn remember(&mut self, name: u64, bytes: u64) {
        self.ghosts.take(name);
        if bytes <= self.ghost_bytes {
            self.ghosts.add(name, bytes, ());
            self.ghosts.shrink(self.ghost_bytes);
        }
    }

    /// Moves an entry to the new end of the main queue.
    fn send_to_main(&mut self, slot: Slot, uses: u8) {
        self.queues.send(slot, MAIN);
        if let Some(own) = self.queues.own(slot) {
            own.uses = uses;
        }
    }
}

impl EvictionPolicy for S3Fifo {
    fn wants_ghosts(&self) -> bool {
        true
    }

    fn insert(&mut self, slot: Slot, ghost: u64, meta: EntryMeta) {
        let overflows = !self.full && self.queues.bytes(SMALL) >= self.small_bytes;
        let queue = if self.ghosts.take(ghost).is_some() || overflows {
            MAIN
        } else {
            SMALL
        };
        self.queues
            .insert(slot, queue, meta.bytes, Own { ghost, uses: 0 });
    }

    fn touch(&mut self, slot: Slot) {
        if let Some(own) = self.queues.own(slot) {
            own.uses = MOST_USES.min(own.uses + 1);
        }
    }

    fn renew(&mut self, _slot: Slot) {}

    fn split(
        &mut self,
        head: Slot,
        head_meta: EntryMeta,
        tail: Slot,
        tail_ghost: u64,
        tail_meta: EntryMeta,
    ) {
        self.queues
            .split(head, head_meta.bytes, tail, tail_meta.bytes);
        if let Some(own) = self.queues.own(tail) {
            own.ghost = tail_ghost;
        }
    }

    fn trim(&mut self, slot: Slot, ghost: u64, meta: EntryMeta) {
        if let Some(entry) = self.queues.get(slot)
            && entry.queue == SMALL
        {
            let cut = entry.bytes.saturating_sub(meta.bytes);
            self.remember(ghost, cut);
        }
        self.queues.resize(slot, meta.bytes);
    }

    fn set_candidate(&mut self, slot: Slot, candidate: bool) {
        self.queues.set_candidate(slot, candidate);
    }

    fn evicted(&mut self, slot: Slot) {
        if let Some(entry) = self.queues.remove(slot)
            && entry.queue == SMALL
        {
            self.remember(entry.own.ghost, entry.bytes);
        }
    }

    fn remove(&mut self, slot: Slot) {
        self.queues.remove(slot);
    }

    fn victim(&mut self) -> Option<Slot> {
        self.full = true;
        loop {
            let small = self.queues.oldest_candidate(SMALL);
            let main = self.queues.oldest_candidate(MAIN);
            let from_small = self.queues.bytes(SMALL) >= self.small_bytes || main.is_none();
            if let Some(slot) = small.filter(|_| from_small) {
                if self.queues.own(slot)?.uses < PROMOTE_FROM {
                    return Some(slot);
                }
                self.send_to_main(slot, 0);
                continue;
            }
            let slot = main?;
            match self.queues.own(slot)?.uses {
                0 => return Some(slot),
                uses => self.send_to_main(slot, uses - 1),
            }
        }
    }

    fn candidates(&self) -> usize {
        self.queues.candidates()
    }

    fn validate(&self) -> Result<(), String> {
        self.queues.validate()?;
        self.ghosts.validate()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::S3Fifo;
    use crate::policy::testing::{CAPACITY, Row, Rules, agree, first, steps};

    /// Queue 0 is the small one, queue 1 the main one.
    #[derive(Default)]
    struct Fifos {
        /// Names and bytes, oldest first.
        ghosts: Vec<(u64, u64)>,
        full: bool,
    }

    fn small_is_full(rows: &[Row]) -> bool {
        let small = rows.iter().filter(|row| row.queue == 0);
        small.map(|row| row.meta.bytes).sum::<u64>() >= CAPACITY / 10
    }

    impl Rules for Fifos {
        fn inserted(&mut self, new: &mut Row, rows: &mut [Row], _now: &mut u64) {
            new.queue = usize::from(!self.full && small_is_full(rows));
            let known = self.ghosts.iter().position(|(name, _)| *name == new.ghost);
            if let Some(index) = known {
                self.ghosts.remove(index);
                new.queue = 1;
            }
        }

        fn touched(&mut self, row: usize, rows: &mut [Row], _now: &mut u64) {
            rows[row].uses = (rows[row].uses + 1).min(3);
        }

        fn evicted(&mut self, gone: &Row, _whole: bool, _rows: &mut [Row], _now: &mut u64) {
            if gone.queue == 0 {
                self.ghosts.retain(|(name, _)| *name != gone.ghost);
                self.ghosts.push((gone.ghost, gone.meta.bytes));
                let bytes =
                    |ghosts: &[(u64, u64)]| ghosts.iter().map(|(_, bytes)| bytes).sum::<u64>();
                while bytes(&self.ghosts) * 10 > CAPACITY * 9 {
                    self.ghosts.remove(0);
                }
            }
        }

        fn victim(&mut self, rows: &mut [Row], now: &mut u64) -> Option<usize> {
            self.full = true;
            loop {
                let full = small_is_full(rows);
                let small = first(rows, |row| (row.queue == 0).then_some(row.stamp));
                let main = first(rows, |row| (row.queue == 1).then_some(row.stamp));
                let (chosen, uses) = match (small, main) {
                    (Some(small), main) if full || main.is_none() => match rows[small].uses {
                        0 | 1 => return Some(small),
                        _ => (small, 0),
                    },
                    (_, main) => match rows[main?].uses {
                        0 => return main,
                        uses => (main?, uses - 1),
                    },
                };
                *now += 1;
                let row = &mut rows[chosen];
                (row.queue, row.stamp, row.uses) = (1, *now, uses);
            }
        }
    }

    proptest! {
        #[test]
        fn it_is_three_queues(steps in steps()) {
            agree(&mut S3Fifo::new(CAPACITY), Fifos::default(), steps)?;
        }
    }
}
