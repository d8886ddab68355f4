//! A circuit breaker: who does not answer is left alone for a while, so that nobody waits for them again and again.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Failures in a row that open it, unless a single one is enough.
const FAILURES: u32 = 3;
/// The first pause.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Whether a server is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BreakerState {
    /// It is.
    #[default]
    Closed,
    /// It is not, until the pause is over.
    Open,
    /// One probe is under way.
    HalfOpen,
}

impl BreakerState {
    /// `closed`, `open` or `half_open`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

#[derive(Debug)]
struct State {
    now: BreakerState,
    /// In a row.
    failures: u32,
    /// The pause that comes next.
    pause: Duration,
    /// When the pause ends.
    until: Instant,
    opened: u64,
}

/// Closed, open, half open: see [`BreakerState`]. While it is not closed only probes ask.
#[derive(Debug)]
pub(super) struct Breaker(Mutex<State>);

impl Default for Breaker {
    fn default() -> Self {
        Self(Mutex::new(State {
            now: BreakerState::Closed,
            failures: 0,
            pause: FIRST_PAUSE,
            until: Instant::now(),
            opened: 0,
        }))
    }
}

impl Breaker {
    pub(super) fn is_closed(&self) -> bool {
        self.0.lock().now == BreakerState::Closed
    }

    /// Its state, and how often it opened.
    pub(super) fn state(&self) -> (BreakerState, u64) {
        let state = self.0.lock();
        (state.now, state.opened)
    }

    /// When a probe is due, if one ever is.
    pub(super) fn due(&self) -> Option<Instant> {
        let state = self.0.lock();
        (state.now == BreakerState::Open).then_some(state.until)
    }

    /// Whether the caller is to make the probe now; it then has to say how that went.
    pub(super) fn probes(&self, now: Instant) -> bool {
        let mut state = self.0.lock();
        let due = state.now == BreakerState::Open && state.until <= now;
        if due {
            state.now = BreakerState::HalfOpen;
        }
        due
    }

    /// The caller makes a probe, due or not, and then says how that went.
    pub(super) fn probes_now(&self) {
        let mut state = self.0.lock();
        if state.now == BreakerState::Open {
            state.now = BreakerState::HalfOpen;
        }
    }

    /// All went well. Whether that closed it.
    pub(super) fn succeeded(&self) -> bool {
        let mut state = self.0.lock();
        let closed = match state.now {
            BreakerState::Closed => false,
            // Somebody who asked before it opened; what is under way decides.
            BreakerState::Open => return false,
            BreakerState::HalfOpen => true,
        };
        state.now = BreakerState::Closed;
        state.failures = 0;
        state.pause = FIRST_PAUSE;
        closed
    }

    /// It failed; `at_once` if that is reason enough to open. Whether it opened a closed one.
    pub(super) fn failed(&self, at_once: bool) -> bool {
        let mut state = self.0.lock();
        state.failures += 1;
        let was = state.now;
        let opens = match was {
            BreakerState::Closed => at_once || state.failures >= FAILURES,
            BreakerState::HalfOpen => true,
            BreakerState::Open => false,
        };
        if opens {
            state.now = BreakerState::Open;
            state.until = Instant::now() + state.pause;
            state.pause = (state.pause * 2).min(LONGEST_PAUSE);
            state.opened += u64::from(was == BreakerState::Closed);
        }
        opens && was == BreakerState::Closed
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Breaker, BreakerState, FAILURES, FIRST_PAUSE, LONGEST_PAUSE};

    #[test]
    fn it_opens_after_some_failures_in_a_row_or_one_timeout() {
        let breaker = Breaker::default();
        for _ in 1..FAILURES {
            assert!(!breaker.failed(false));
        }
        breaker.succeeded();
        for _ in 1..FAILURES {
            assert!(!breaker.failed(false) && breaker.is_closed());
        }
        assert!(breaker.failed(false) && !breaker.is_closed());
        let breaker = Breaker::default();
        assert!(breaker.failed(true));
        assert!(!breaker.failed(true), "it is open already");
        assert_eq!(breaker.state(), (BreakerState::Open, 1));
    }

    #[test]
    fn one_probe_a_pause_and_pauses_double_up_to_a_bound() {
        let breaker = Breaker::default();
        let mut now = Instant::now();
        breaker.failed(true);
        let mut pause = FIRST_PAUSE;
        for _ in 0..10 {
            let due = breaker.due().expect("a probe is due some time");
            assert!(
                due <= Instant::now() + pause && due + Duration::from_millis(200) >= now + pause
            );
            let early = due.checked_sub(Duration::from_millis(1));
            assert!(!breaker.probes(early.expect("a time")));
            assert!(breaker.probes(due) && !breaker.probes(due), "one probe");
            assert_eq!(breaker.state().0, BreakerState::HalfOpen);
            now = Instant::now();
            assert!(!breaker.failed(true), "it was not closed");
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        let due = breaker.due().expect("open");
        assert!(!breaker.succeeded(), "an answer to who asked long ago");
        assert!(breaker.probes(due) && breaker.succeeded() && breaker.is_closed());
        assert_eq!(breaker.state(), (BreakerState::Closed, 1));
        breaker.failed(true);
        assert!(breaker.due().expect("open") <= Instant::now() + FIRST_PAUSE);
    }
}
