//! Resident sequences: cache buffers that were let go of stay as they are for a while, and a request that goes on from their
//! tokens computes in place, without a copy.
//!
//! A resident is no copy that anything depends on: all it has was committed. It gives the rows that L1 gives, bit for bit, and
//! at the same lengths, so that answers do not depend on it.

use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::{Arc, Weak};

use crate::sync::Mutex;

use super::Shared;
use crate::buffer::CacheBuffer;
use crate::key::BlockKey;

/// What stands in a buffer's first rows.
#[derive(Debug)]
pub(crate) struct Contents {
    namespace: BlockKey,
    tokens: Vec<u32>,
    /// Commits that still read these rows, or may still find that L1 has others.
    commits: usize,
}

impl Contents {
    fn common(&self, tokens: &[u32]) -> usize {
        let same = self.tokens.iter().zip(tokens);
        same.take_while(|(mine, theirs)| mine == theirs).count()
    }
}

/// How many sequences are resident, and what became of those that were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResidentStats {
    /// Sequences that wait for a continuation.
    pub sequences: usize,
    /// Bytes of their buffers.
    pub bytes: u64,
    /// Requests that went on in place, so far.
    pub taken: u64,
    /// Given up because there were more than the limit, so far.
    pub displaced: u64,
    /// Given up because a lease needed their memory, so far.
    pub reclaimed: u64,
    /// Given up by an eviction or clear that was asked for, so far.
    pub evicted: u64,
}

/// What a request asks of a resident.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) namespace: &'a BlockKey,
    /// The tokens that may be reused: all but the last, on the grid.
    pub(super) tokens: &'a [u32],
    pub(super) grid: usize,
    /// Fewer tokens than this are found elsewhere.
    pub(super) least: usize,
    /// Tokens that the buffer must have room for.
    pub(super) capacity: usize,
    /// Whether the resident's rows behind the match may be given up.
    pub(super) cut: bool,
}

#[derive(Debug, Default)]
struct List {
    /// Longest unused first.
    buffers: VecDeque<Arc<CacheBuffer>>,
    limit: usize,
    stats: ResidentStats,
}

/// The residents of one prefix cache.
#[derive(Debug)]
pub(super) struct Residents {
    list: Mutex<List>,
    block_tokens: usize,
}

impl Residents {
    pub(super) fn new(limit: usize, block_tokens: usize) -> Self {
        Self {
            list: Mutex::new(List {
                limit,
                ..List::default()
            }),
            block_tokens,
        }
    }

    /// Keeps a buffer that nobody computes in any more, if it is known what stands in it.
    fn park(&self, buffer: Arc<CacheBuffer>) {
        // Buffers go back to their pool after the lock.
        let mut gone = Vec::new();
        let mut list = self.list.lock();
        let rows = buffer.contents().lock().as_ref().map(|c| c.tokens.len());
        if list.limit == 0 || rows.is_none_or(|rows| rows < self.block_tokens) {
            gone.push(buffer);
        } else {
            list.buffers.push_back(buffer);
        }
        while list.buffers.len() > list.limit {
            gone.extend(list.buffers.pop_front());
            list.stats.displaced += 1;
        }
        drop(list);
        drop(gone);
    }

    /// Takes the resident that has most of the wanted tokens, and says how many. Rows behind those are known no more.
    pub(super) fn take(&self, wanted: &Wanted<'_>) -> Option<(Arc<CacheBuffer>, usize)> {
        let mut list = self.list.lock();
        let candidates = list.buffers.iter().enumerate();
        let hits = candidates.filter_map(|(at, buffer)| Some((self.hit(buffer, wanted)?, at)));
        let (hit, at) = hits.max()?;
        let buffer = list.buffers.remove(at)?;
        list.stats.taken += 1;
        drop(list);
        cut(&buffer, hit);
        Some((buffer, hit))
    }

    fn hit(&self, buffer: &Arc<CacheBuffer>, wanted: &Wanted<'_>) -> Option<usize> {
        let contents = buffer.contents().lock();
        let contents = contents.as_ref()?;
        if contents.namespace != *wanted.namespace
            || contents.commits > 0
            || buffer.layout().capacity() < wanted.capacity
        {
            return None;
        }
        let hit = contents.common(wanted.tokens) / wanted.grid * wanted.grid;
        if hit == 0 || hit < wanted.least {
            return None;
        }
        let whole = contents.tokens.len() / self.block_tokens * self.block_tokens;
        // Writes to disk read whole blocks only: rows behind the last one are free. To give up more rows than are reused
        // would cost whoever goes on from them more than it saves.
        let free =
            hit == whole || (wanted.cut && Arc::strong_count(buffer) == 1 && 2 * hit >= whole);
        free.then_some(hit)
    }

    /// Gives up the one that was unused longest; false if there is none.
    pub(super) fn reclaim(&self) -> bool {
        let mut list = self.list.lock();
        let Some(buffer) = list.buffers.pop_front() else {
            return false;
        };
        list.stats.reclaimed += 1;
        drop(list);
        drop(buffer);
        true
    }

    /// Gives up those of a namespace, or all.
    pub(super) fn evict(&self, namespace: Option<&BlockKey>) {
        let mut list = self.list.lock();
        let (gone, kept) = std::mem::take(&mut list.buffers)
            .into_iter()
            .partition::<Vec<_>, _>(|buffer| {
                let contents = buffer.contents().lock();
                namespace
                    .is_none_or(|wanted| contents.as_ref().is_none_or(|c| c.namespace == *wanted))
            });
        list.buffers = kept.into();
        list.stats.evicted += gone.len() as u64;
        drop(list);
        drop(gone);
    }

    /// Gives up all, and keeps none from now on.
    pub(super) fn close(&self) {
        self.list.lock().limit = 0;
        self.evict(None);
    }

    pub(super) fn stats(&self) -> ResidentStats {
        let list = self.list.lock();
        let bytes = list.buffers.iter().map(|buffer| buffer.region().len());
        ResidentStats {
            sequences: list.buffers.len(),
            bytes: bytes.sum::<usize>() as u64,
            ..list.stats
        }
    }
}

/// A commit of `tokens` reads the buffer's rows, which then stay as they are.
pub(super) fn commit_begins(buffer: &CacheBuffer, namespace: BlockKey, tokens: Vec<u32>) {
    let mut contents = buffer.contents().lock();
    let commits = contents.as_ref().map_or(0, |before| before.commits) + 1;
    *contents = Some(Contents {
        namespace,
        tokens,
        commits,
    });
}

/// A commit of [`commit_begins`] is over.
pub(super) fn commit_ends(buffer: &CacheBuffer) {
    if let Some(contents) = &mut *buffer.contents().lock() {
        contents.commits = contents.commits.saturating_sub(1);
    }
}

/// Only the first `tokens` rows are still known.
pub(super) fn cut(buffer: &CacheBuffer, tokens: usize) {
    if let Some(contents) = &mut *buffer.contents().lock() {
        contents.tokens.truncate(tokens);
    }
}

/// A cache buffer in use. When it is dropped the buffer becomes resident if it is known what stands in it, and goes back to
/// its pool otherwise.
#[derive(Debug)]
pub struct Lease {
    buffer: Arc<CacheBuffer>,
    cache: Weak<Shared>,
}

impl Lease {
    pub(super) fn new(buffer: Arc<CacheBuffer>, cache: &Arc<Shared>) -> Self {
        Self {
            buffer,
            cache: Arc::downgrade(cache),
        }
    }

    /// Says that rows which were committed will be overwritten: the buffer does not become resident for them.
    pub fn forget(&self) {
        cut(&self.buffer, 0);
    }
}

impl Deref for Lease {
    type Target = Arc<CacheBuffer>;

    fn deref(&self) -> &Arc<CacheBuffer> {
        &self.buffer
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(cache) = self.cache.upgrade()
            && cache.store.check_process().is_ok()
        {
            cache.residents.park(Arc::clone(&self.buffer));
        }
    }
}
