//! Syncs of one file: threads that wait at once share a call, and a failure is never forgotten.

use std::io;

use parking_lot::{Condvar, Mutex};

/// The syncs of one file, one at a time.
///
/// A failed `fdatasync` may have dropped the bytes it could not write, and says so to one caller only; the next call succeeds
/// as if nothing had happened (Rebello et al., "Can Applications Recover from fsync Failures?", ATC'20). So no two calls
/// overlap, and after one has failed all do.
#[derive(Debug, Default)]
pub(super) struct Syncs {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    started: u64,
    ended: u64,
    running: bool,
    failed: bool,
}

impl Syncs {
    /// Waits for a call that starts after now, or makes it.
    pub(super) fn sync(&self, call: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut state = self.state.lock();
        let wanted = state.started + 1;
        loop {
            if state.failed {
                return Err(io::Error::other(
                    "the system failed to save this file before",
                ));
            }
            if state.ended >= wanted {
                return Ok(());
            }
            if !state.running {
                break;
            }
            self.ended.wait(&mut state);
        }
        state.running = true;
        state.started += 1;
        drop(state);
        let outcome = call();
        let mut state = self.state.lock();
        state.running = false;
        state.ended = state.started;
        state.failed |= outcome.is_err();
        drop(state);
        self.ended.notify_all();
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::Syncs;

    #[test]
    fn calls_never_overlap_and_cover_what_came_before() {
        let syncs = Syncs::default();
        let (running, calls, written, saved) = (
            AtomicBool::new(false),
            AtomicUsize::new(0),
            AtomicUsize::new(0),
            AtomicUsize::new(0),
        );
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let mine = written.fetch_add(1, Ordering::SeqCst) + 1;
                        let call = || {
                            assert!(!running.swap(true, Ordering::SeqCst));
                            calls.fetch_add(1, Ordering::SeqCst);
                            let seen = written.load(Ordering::SeqCst);
                            std::thread::yield_now();
                            saved.fetch_max(seen, Ordering::SeqCst);
                            running.store(false, Ordering::SeqCst);
                            Ok(())
                        };
                        syncs.sync(call).expect("saved");
                        assert!(saved.load(Ordering::SeqCst) >= mine);
                    }
                });
            }
        });
        assert!(calls.into_inner() <= 800);
    }

    #[test]
    fn a_failure_stays() {
        let syncs = Syncs::default();
        assert!(syncs.sync(|| Ok(())).is_ok());
        assert!(syncs.sync(|| Err(io::Error::other("gone"))).is_err());
        assert!(syncs.sync(|| Ok(())).is_err());
    }
}
