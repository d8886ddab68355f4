//! How long one lookup, and the reads of what it found, may take in all.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::values::time_of;

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
/// hangs at the first. It passes only while somebody waits for an answer, so that nothing is late because it was asked for late,
/// and bytes that came give back what they may take.
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

    /// Begins to wait for an answer.
    pub(super) fn wait(&self) -> Waiting<'_> {
        let now = Instant::now();
        let mut state = self.0.lock();
        state.pass(now);
        state.waiting += 1;
        Waiting {
            patience: self,
            by: now + state.left,
            came: 0,
        }
    }
}

/// Somebody waits, until this is dropped.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    patience: &'a Patience,
    /// When the answer has to be there, if none of its bytes come before.
    pub(super) by: Instant,
    /// Bytes of it that came.
    pub(super) came: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.patience.0.lock();
        state.left = state.left.saturating_add(time_of(self.came));
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
        let (one, other) = (patience.wait(), patience.wait());
        thread::sleep(STEP);
        drop((one, other));
        let waited = start.elapsed();
        thread::sleep(STEP);
        // Both waited in the same time, and nobody since.
        let (now, third) = (Instant::now(), patience.wait());
        assert!(third.by <= now + 10 * STEP);
        assert!(third.by + waited >= now + 10 * STEP);
        thread::sleep(11 * STEP);
        drop(third);
        let late = patience.wait();
        assert!(late.by <= Instant::now());
    }

    #[test]
    fn bytes_that_came_give_back_their_time() {
        let patience = Patience::new(STEP);
        let mut waiting = patience.wait();
        waiting.came = 1_000_000_000;
        thread::sleep(2 * STEP);
        drop(waiting);
        // 20 s for a gigabyte.
        assert!(patience.wait().by > Instant::now() + 100 * STEP);
    }
}
