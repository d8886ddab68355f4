//! The memory of L2: one region cut into pages, and the records that are lists of them.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::sync::{Condvar, Mutex};

use crate::error::{Error, Result};
use crate::memory::{Piece, Region, page_align};
use crate::run::{RunHeader, RunSource};
use crate::sim::capture::{L2Event, Tap};

/// The unit in which L2 gives out memory, in bytes.
pub const ARENA_PAGE: usize = 64 << 10;

#[derive(Debug)]
struct Free {
    /// Pages that were given back: a stack, taken from before what was never used.
    returned: Vec<u32>,
    /// Pages that nobody has had, taken from below, so that records tend to be contiguous.
    fresh: Range<u32>,
    /// Pages of records that left the directory but are still being read or written out.
    draining: usize,
    /// The number of the next record.
    next: u64,
}

impl Free {
    fn pages(&self) -> usize {
        self.returned.len() + self.fresh.len()
    }

    /// Takes so many pages; none if too few are free.
    fn take(&mut self, wanted: usize) -> Option<Box<[u32]>> {
        if wanted > self.pages() {
            return None;
        }
        let rest = self.returned.len().saturating_sub(wanted);
        let mut pages = self.returned.split_off(rest);
        pages.reverse();
        let lacking = wanted - pages.len();
        pages.extend(self.fresh.by_ref().take(lacking));
        Some(pages.into_boxed_slice())
    }
}

/// A fixed number of pages over one region, committed by the system as they are first touched.
pub(super) struct Arena {
    region: Arc<Region>,
    /// False for an arena that is only counted: its records have no bytes.
    has_payload: bool,
    pages: usize,
    free: Mutex<Free>,
    freed: Condvar,
    tap: Option<Tap>,
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arena({} pages)", self.pages)
    }
}

impl Arena {
    /// An arena of `bytes`, rounded down to whole pages.
    pub(super) fn new(bytes: u64, tap: Option<Tap>) -> Result<Self> {
        let pages = bytes / ARENA_PAGE as u64;
        let (true, Ok(count)) = (pages > 0, u32::try_from(pages)) else {
            return Err(Error::Config {
                name: "l2",
                value: bytes.to_string(),
                remedy: format!(
                    "use 0 for no L2, or from {ARENA_PAGE} bytes (one page) to 128 TiB"
                ),
            });
        };
        let region = Region::new(count as usize * ARENA_PAGE)?;
        Ok(Self::over(region, true, count, tap))
    }

    /// An arena of so many pages, of which none has memory.
    pub(super) fn payload_free(pages: u32) -> Result<Self> {
        Ok(Self::over(Region::new(1)?, false, pages, None))
    }

    fn over(region: Region, has_payload: bool, pages: u32, tap: Option<Tap>) -> Self {
        Self {
            region: Arc::new(region),
            has_payload,
            pages: pages as usize,
            free: Mutex::new(Free {
                returned: Vec::new(),
                fresh: 0..pages,
                draining: 0,
                next: 0,
            }),
            freed: Condvar::new(),
            tap,
        }
    }

    pub(super) fn has_payload(&self) -> bool {
        self.has_payload
    }

    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    /// Free pages, and pages that become free without anything being evicted.
    pub(super) fn available(&self) -> (usize, usize) {
        let free = self.free.lock();
        (free.pages(), free.draining)
    }

    /// As [`Self::available`], for who wants so many pages and is going to evict for them.
    pub(super) fn available_for(&self, pages: usize) -> (usize, usize) {
        let free = self.free.lock();
        if let Some(tap) = &self.tap {
            let pages = pages as u64;
            tap.l2(L2Event::MakeRoom { pages });
        }
        (free.pages(), free.draining)
    }

    /// Waits until `pages` are free or `deadline` has passed or nothing is draining any more.
    pub(super) fn wait_free(&self, pages: usize, deadline: Instant) {
        let mut free = self.free.lock();
        while free.pages() < pages && free.draining > 0 {
            if self.freed.wait_until(&mut free, deadline).timed_out() {
                return;
            }
        }
    }

    /// Takes the pages for a run; none if too few are free.
    pub(super) fn take(self: &Arc<Self>, header: &RunHeader) -> Option<Record> {
        let wanted = pages_of(header);
        let (pages, number) = {
            let mut free = self.free.lock();
            let pages = free.take(wanted)?;
            let number = free.next;
            free.next += 1;
            if let Some(tap) = &self.tap {
                let run = tap.run(header);
                tap.l2(L2Event::Take { run });
            }
            (pages, number)
        };
        let mut end = 0;
        let starts = header
            .slices
            .iter()
            .map(|&len| {
                let start = end;
                end += page_align(len as usize);
                start
            })
            .collect();
        Some(Record {
            arena: Arc::clone(self),
            header: header.clone(),
            number,
            pages,
            starts,
            draining: AtomicBool::new(false),
        })
    }

    /// Checks that every page is free or in one of `live` records, none twice.
    pub(super) fn validate<'a>(
        &self,
        live: impl Iterator<Item = &'a Record>,
    ) -> Result<(), String> {
        let mut seen = HashSet::new();
        let free = self.free.lock();
        let listed = free
            .returned
            .iter()
            .chain(live.flat_map(|record| &record.pages));
        for &page in listed {
            if page >= free.fresh.start || !seen.insert(page) {
                return Err(format!("page {page} is held twice or was never given out"));
            }
        }
        Ok(())
    }
}

/// Pages that a run takes. Slices start on direct-I/O borders, so that a disk can read straight into them.
pub(super) fn pages_of(header: &RunHeader) -> usize {
    header
        .slices
        .iter()
        .map(|&len| page_align(len as usize))
        .sum::<usize>()
        .div_ceil(ARENA_PAGE)
}

/// A run's payload in the arena; its pages are free again when the record is dropped.
#[derive(Debug)]
pub(super) struct Record {
    arena: Arc<Arena>,
    header: RunHeader,
    number: u64,
    pages: Box<[u32]>,
    /// Where each slice starts, in bytes from the start of the record.
    starts: Box<[usize]>,
    draining: AtomicBool,
}

impl Record {
    pub(super) fn header(&self) -> &RunHeader {
        &self.header
    }

    /// How many records had memory before it.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn pages(&self) -> usize {
        self.pages.len()
    }

    pub(super) fn region(&self) -> &Arc<Region> {
        &self.arena.region
    }

    /// The directory no longer lists the record, so its pages are on their way back.
    pub(super) fn mark_draining(&self) {
        let mut free = self.arena.free.lock();
        if !self.draining.swap(true, Ordering::Relaxed) {
            free.draining += self.pages.len();
        }
    }

    /// Where slice `index` lies in the arena; neighbouring pages make one piece.
    pub(super) fn pieces(&self, index: usize) -> Vec<Piece> {
        if !self.arena.has_payload {
            return Vec::new();
        }
        let mut at = self.starts[index];
        let end = at + self.header.slices[index] as usize;
        let mut pieces: Vec<Piece> = Vec::new();
        while at < end {
            let inner = at % ARENA_PAGE;
            let len = (ARENA_PAGE - inner).min(end - at);
            let offset = self.pages[at / ARENA_PAGE] as usize * ARENA_PAGE + inner;
            match pieces.last_mut() {
                Some(last) if last.offset + last.len == offset => last.len += len,
                _ => pieces.push(Piece {
                    spare: false,
                    offset,
                    len,
                }),
            }
            at += len;
        }
        pieces
    }

    /// Pieces of all slices.
    pub(super) fn all_pieces(&self) -> Vec<Vec<Piece>> {
        (0..self.starts.len())
            .map(|index| self.pieces(index))
            .collect()
    }

    /// The record as a source that keeps it alive.
    pub(super) fn source(self: &Arc<Self>) -> RunSource {
        RunSource {
            region: Arc::clone(self.region()),
            lease: Some(Arc::clone(self) as _),
            slices: self.all_pieces(),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        {
            let mut free = self.arena.free.lock();
            if let Some(tap) = &self.arena.tap {
                tap.l2(L2Event::Free { run: self.number });
            }
            free.returned.extend(self.pages.iter().rev());
            if *self.draining.get_mut() {
                free.draining -= self.pages.len();
            }
        }
        self.arena.freed.notify_all();
    }
}
