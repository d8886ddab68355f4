//! Page-aligned working memory for transfers, touched once and reused, of which only so much is in use at a time.
//!
//! Who has taken a region needs nothing but the disk to give it back: a second one is never taken while a first is held. So
//! those that wait always get theirs.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::error::Result;
use crate::memory::Region;

/// Size of a pooled region in bytes; a longer one is made for one use.
pub(super) const BOUNCE_BYTES: usize = 4 << 20;
/// Regions that are kept while nobody uses them.
const IDLE_REGIONS: usize = 8;
/// Regions for those that do not read: writers, and who gives space back.
const OTHERS: usize = 4;
/// Readers that there is room for unless said otherwise.
const READERS: usize = 4;

#[derive(Debug)]
struct State {
    idle: Vec<Arc<Region>>,
    /// Bytes of regions in use.
    used: usize,
    /// The most bytes in use; a region that is longer than that is given out while no other is.
    limit: usize,
    /// The number of the next one to ask, and of the one whose turn it is: no small region overtakes a long one for ever.
    next: u64,
    turn: u64,
    waits: u64,
}

/// A pool of regions of [`BOUNCE_BYTES`].
#[derive(Debug)]
pub(super) struct BouncePool {
    state: Mutex<State>,
    changed: Condvar,
}

impl Default for BouncePool {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                idle: Vec::new(),
                used: 0,
                limit: limit(READERS),
                next: 0,
                turn: 0,
                waits: 0,
            }),
            changed: Condvar::new(),
        }
    }
}

fn limit(readers: usize) -> usize {
    (readers + OTHERS) * BOUNCE_BYTES
}

/// A region in use; it goes back to its pool when dropped.
#[derive(Debug)]
pub(super) struct Bounce<'a> {
    pub(super) region: Arc<Region>,
    taken: Taken<'a>,
}

/// Bytes that count as in use until this is dropped.
#[derive(Debug)]
struct Taken<'a> {
    pool: &'a BouncePool,
    bytes: usize,
}

impl BouncePool {
    /// Makes room for so many threads that read at once.
    pub(super) fn set_readers(&self, readers: usize) {
        self.state.lock().limit = limit(readers);
        self.changed.notify_all();
    }

    /// How often a region had to be waited for.
    pub(super) fn waits(&self) -> u64 {
        self.state.lock().waits
    }

    /// A region of at least `len` bytes, with unspecified content. Waits until others gave theirs back, if too much is in use.
    pub(super) fn take(&self, len: usize) -> Result<Bounce<'_>> {
        let bytes = len.max(BOUNCE_BYTES);
        let mut state = self.state.lock();
        let number = state.next;
        state.next += 1;
        let fits = |state: &State| {
            state.turn == number && (state.used == 0 || state.used + bytes <= state.limit)
        };
        if !fits(&state) {
            state.waits += 1;
            while !fits(&state) {
                self.changed.wait(&mut state);
            }
        }
        state.turn += 1;
        state.used += bytes;
        let pooled = (bytes == BOUNCE_BYTES).then(|| state.idle.pop()).flatten();
        let more = state.turn < state.next;
        drop(state);
        if more {
            self.changed.notify_all();
        }
        let taken = Taken { pool: self, bytes };
        let region = if let Some(region) = pooled {
            region
        } else {
            let region = Region::new(bytes)?;
            region.prefault();
            Arc::new(region)
        };
        Ok(Bounce { region, taken })
    }
}

impl Drop for Bounce<'_> {
    fn drop(&mut self) {
        let mut state = self.taken.pool.state.lock();
        if self.taken.bytes == BOUNCE_BYTES && state.idle.len() < IDLE_REGIONS {
            state.idle.push(Arc::clone(&self.region));
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.pool.state.lock().used -= self.bytes;
        self.pool.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::{BOUNCE_BYTES, BouncePool, limit};

    #[test]
    fn waits_are_counted() {
        let pool = BouncePool::default();
        pool.set_readers(0);
        let take = || pool.take(1).expect("memory");
        let mut taken = (0..limit(0) / BOUNCE_BYTES)
            .map(|_| take())
            .collect::<Vec<_>>();
        assert_eq!(pool.waits(), 0);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| drop(take()));
            while pool.waits() == 0 {
                thread::yield_now();
            }
            assert!(!waiting.is_finished());
            taken.pop();
        });
        assert_eq!(pool.waits(), 1);
    }

    #[test]
    fn no_more_than_the_limit_is_in_use_and_all_who_wait_get_theirs() {
        let pool = BouncePool::default();
        pool.set_readers(0);
        let (used, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for thread in 0..12 {
                let (pool, used, most) = (&pool, &used, &most);
                scope.spawn(move || {
                    for round in 0..20 {
                        // One thread wants more than all of it now and then.
                        let len = match (thread, round % 5) {
                            (0, 0) => limit(0) + 1,
                            (_, rest) => rest * BOUNCE_BYTES / 2 + 1,
                        };
                        let bounce = pool.take(len).expect("memory");
                        assert!(bounce.region.len() >= len);
                        let bytes = bounce.taken.bytes;
                        let now = used.fetch_add(bytes, Ordering::SeqCst) + bytes;
                        if bytes <= limit(0) {
                            most.fetch_max(now, Ordering::SeqCst);
                        } else {
                            assert_eq!(now, bytes, "a long one goes alone");
                        }
                        bounce.region.write(0, &[1]);
                        thread::yield_now();
                        used.fetch_sub(bytes, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(most.into_inner() <= limit(0));
        let state = pool.state.lock();
        assert_eq!((state.used, state.turn), (0, state.next));
        assert!(!state.idle.is_empty());
    }
}
