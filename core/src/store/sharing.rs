//! Tickets that want the same bytes of L3 or L4 at the same time: one worker reads them, and the others get a copy.
//!
//! What a ticket wants is listed from its order to its end. Those whose workers come to a part while it is read join, and those
//! that have not come to it when it has arrived are served with them. None of them waits for anything but that read: what is
//! cancelled stays a part of it until it ends, and if it fails those that joined read for themselves.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Weak};

use foldhash::fast::RandomState;

use crate::key::BlockKey;
use crate::memory::Piece;
use crate::sync::Mutex;

use super::plan::Step;
use super::read::ReadRequest;
use super::transfer::Transfer;
use crate::tier::TierId;

/// What tells a stored run from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    /// Where its record lies in L3.
    Disk { medium: u64, start: u64 },
    /// Its last block, which names all before it, how many blocks it has, and its payload bytes.
    Server {
        last: BlockKey,
        blocks: usize,
        bytes: u64,
    },
}

/// Slices of a run in L3 or L4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Wanted {
    place: Place,
    slices: (usize, usize),
}

impl Wanted {
    /// What others may read, too; none where places say nothing.
    pub(super) fn of(step: &Step, slices: &Range<usize>) -> Option<Self> {
        let header = step.run.header();
        let place = match step.tier {
            TierId::L1 | TierId::L2 => return None,
            TierId::L3 => step.run.span().map(|span| Place::Disk {
                medium: span.medium,
                start: span.start,
            })?,
            TierId::L4 => Place::Server {
                last: *header.keys.last()?,
                blocks: header.keys.len(),
                bytes: header.payload_bytes(),
            },
        };
        Some(Self {
            place,
            slices: (slices.start, slices.end),
        })
    }
}

/// A part of a transfer.
pub(super) type Seat = (Arc<Transfer>, usize);

/// A read under way.
struct Reading {
    reader: Seat,
    request: Arc<ReadRequest>,
    followers: Vec<Seat>,
}

#[derive(Default)]
struct Entry {
    tickets: Vec<(Weak<Transfer>, usize)>,
    reading: Option<Reading>,
}

impl Entry {
    /// Makes a part the one that is read, or lets it wait for the one that is.
    fn seat(&mut self, transfer: &Arc<Transfer>, part: usize) -> bool {
        let (request, slices) = transfer.request(part);
        let seat = (Arc::clone(transfer), part);
        let Some(reading) = &mut self.reading else {
            self.reading = Some(Reading {
                reader: seat,
                request,
                followers: Vec::new(),
            });
            return true;
        };
        // One that wants more than the other keeps reads it for itself.
        let covered = covers(&reading.request, &request, &slices);
        if covered {
            reading.followers.push(seat);
        }
        !covered
    }
}

/// What tickets want of L3 and L4 and have not got.
#[derive(Default)]
pub(super) struct Sharing {
    entries: Mutex<HashMap<Wanted, Entry, RandomState>>,
}

impl Sharing {
    /// Lists what a transfer wants; to be undone by [`Self::forget`].
    pub(super) fn list(&self, transfer: &Arc<Transfer>) {
        let mut entries = self.entries.lock();
        for (part, wanted) in transfer.wanted() {
            let entry = entries.entry(wanted).or_default();
            entry.tickets.push((Arc::downgrade(transfer), part));
        }
    }

    /// The transfer wants nothing more.
    pub(super) fn forget(&self, transfer: &Arc<Transfer>) {
        let mut entries = self.entries.lock();
        for (_, wanted) in transfer.wanted() {
            if let Some(entry) = entries.get_mut(&wanted) {
                entry
                    .tickets
                    .retain(|(ticket, _)| ticket.as_ptr() != Arc::as_ptr(transfer));
                if entry.tickets.is_empty() && entry.reading.is_none() {
                    entries.remove(&wanted);
                }
            }
        }
    }

    /// Begins a part, for a worker that came to it. Whether the worker shall read it: not if it is begun already or not wanted any
    /// more, and not if somebody reads it just now, who then ends it, too.
    pub(super) fn begin(&self, transfer: &Arc<Transfer>, part: usize) -> bool {
        let Some(wanted) = transfer.wanted_of(part) else {
            return transfer.begin(part);
        };
        // In one step, so that a read that ends meanwhile serves the part before or sees it join.
        let mut entries = self.entries.lock();
        transfer.begin(part) && entries.entry(wanted).or_default().seat(transfer, part)
    }

    /// As [`Self::begin`], for a part that was begun.
    pub(super) fn retry(&self, transfer: &Arc<Transfer>, part: usize) -> bool {
        let mut entries = self.entries.lock();
        let wanted = transfer.wanted_of(part);
        wanted.is_none_or(|wanted| entries.entry(wanted).or_default().seat(transfer, part))
    }

    /// The read is over: those that wait for it, and if it went well those that have not begun to.
    pub(super) fn end(&self, transfer: &Arc<Transfer>, part: usize, arrived: bool) -> Vec<Seat> {
        let Some(wanted) = transfer.wanted_of(part) else {
            return Vec::new();
        };
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get_mut(&wanted) else {
            return Vec::new();
        };
        let own = entry.reading.take_if(|reading| {
            Arc::ptr_eq(&reading.reader.0, transfer) && reading.reader.1 == part
        });
        let mut seats = Vec::new();
        if let Some(Reading {
            request, followers, ..
        }) = own
        {
            seats = followers;
            let tickets = entry.tickets.iter().filter(|_| arrived);
            seats.extend(tickets.filter_map(|(ticket, part)| {
                let ticket = ticket.upgrade()?;
                // A ticket lets go of its requests after it was forgotten here.
                let (other, slices) = ticket.request(*part);
                let fits = covers(&request, &other, &slices) && ticket.begin(*part);
                fits.then_some((ticket, *part))
            }));
        }
        if entry.tickets.is_empty() && entry.reading.is_none() {
            entries.remove(&wanted);
        }
        seats
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.entries.lock().is_empty()
    }
}

/// Whether one request keeps all that another one of the same run keeps.
fn covers(have: &ReadRequest, want: &ReadRequest, slices: &Range<usize>) -> bool {
    slices.clone().all(|slice| {
        let (have, want) = (&have.target.slices[slice], &want.target.slices[slice]);
        keeps(have, want)
    })
}

fn keeps(have: &[Piece], want: &[Piece]) -> bool {
    let mut have = have.iter();
    let (mut at, mut end, mut kept) = (0, 0, true);
    for piece in want {
        let until = at + piece.len;
        while at < until {
            if at == end {
                let Some(next) = have.next() else {
                    return false;
                };
                end += next.len;
                kept = !next.spare;
            }
            if !piece.spare && !kept {
                return false;
            }
            at = until.min(end);
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::keeps;
    use crate::memory::Piece;

    fn pieces(bytes: &[bool]) -> Vec<Piece> {
        let runs = bytes.chunk_by(|a, b| a == b);
        let piece = |run: &[bool]| Piece {
            spare: !run[0],
            offset: 7,
            len: run.len(),
        };
        runs.map(piece).collect()
    }

    proptest! {
        #[test]
        fn what_is_kept_covers_what_is_wanted(bytes in prop::collection::vec((any::<bool>(), any::<bool>()), 0..12)) {
            let (have, want): (Vec<_>, Vec<_>) = bytes.iter().copied().unzip();
            let expected = bytes.iter().all(|(have, want)| *have || !want);
            prop_assert_eq!(keeps(&pieces(&have), &pieces(&want)), expected);
            prop_assert!(keeps(&pieces(&vec![true; have.len()]), &pieces(&want)));
        }
    }
}
