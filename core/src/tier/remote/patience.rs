//! How long one lookup, and the reads of what it found, may take in all.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

#[derive(Debug)]
struct State {
    /// What was left then.
    left: Duration,
    then: Instant,
    /// How many wait for an answer since.
    waiting: usize,
}

impl State {
    fn pass(&mut self, now: Instant) {
        if self.waiting > 0 {
            let passed = now.saturating_duration_since(self.then);
            self.left = self.left.saturating_sub(passed);
        }
        self.then = now;
    }
}

/// The time that one lookup and its reads have together: a server that is slow at each of many steps costs no more than one that
/// hangs at the first. It passes only while somebody waits for an answer, so that nothing is late because it was asked for late.
#[derive(Debug)]
pub(super) struct Patience(Mutex<State>);

impl Patience {
    pub(super) fn new(time: Duration) -> Self {
        Self(Mutex::new(State {
            left: time,
            then: Instant::now(),
            waiting: 0,
        }))
    }

    /// Begins to wait for an answer whose bytes may take so long by themselves.
    pub(super) fn wait(&self, for_bytes: Duration) -> Waiting<'_> {
        let now = Instant::now();
        let mut state = self.0.lock();
        state.pass(now);
        state.left = state.left.saturating_add(for_bytes);
        state.waiting += 1;
        Waiting {
            patience: self,
            by: now + state.left,
        }
    }
}

/// Somebody waits, until this is dropped.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    patience: &'a Patience,
    /// When the answer has to be there.
    pub(super) by: Instant,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.patience.0.lock();
        state.pass(Instant::now());
        state.waiting -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use super::Patience;

    const STEP: Duration = Duration::from_millis(20);

    #[test]
    fn time_is_shared_by_all_who_wait_and_stands_still_between_them() {
        let patience = Patience::new(10 * STEP);
        let start = Instant::now();
        let (one, other) = (patience.wait(Duration::ZERO), patience.wait(STEP));
        assert!(other.by >= one.by + STEP);
        thread::sleep(STEP);
        drop((one, other));
        let waited = start.elapsed();
        thread::sleep(STEP);
        // Both waited in the same time, and nobody since.
        let (now, third) = (Instant::now(), patience.wait(Duration::ZERO));
        assert!(third.by <= now + 10 * STEP + STEP);
        assert!(third.by + waited >= now + 11 * STEP);
        thread::sleep(12 * STEP);
        drop(third);
        let (now, late) = (Instant::now(), patience.wait(STEP));
        assert!(late.by < now + 2 * STEP);
    }
}
