//! The time of day, for what is to be forgotten after a while.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Unix time that never goes back, whatever the system's clock does: from the latest time that was seen it goes on by itself.
/// Clones are the same clock.
#[derive(Clone, Debug)]
pub struct Clock(Arc<State>);

#[derive(Debug)]
struct State {
    started: Instant,
    /// The time at `started` in unix seconds, as far as is known: only ever corrected upwards.
    base: AtomicU64,
    /// It stands still: it is what was last [seen](Clock::seen).
    stands: bool,
}

impl Default for Clock {
    fn default() -> Self {
        Self(Arc::new(State {
            started: Instant::now(),
            base: AtomicU64::new(0),
            stands: false,
        }))
    }
}

impl Clock {
    /// A clock that is only put forward, by [`seen`](Self::seen).
    pub(crate) fn standing() -> Self {
        Self(Arc::new(State {
            started: Instant::now(),
            base: AtomicU64::new(0),
            stands: true,
        }))
    }

    /// Unix seconds.
    pub fn now(&self) -> u64 {
        if self.0.stands {
            return self.seen(0);
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        self.seen(since.map_or(0, |since| since.as_secs()))
    }

    /// Notes that it was `time` once: it is not earlier now. Gives back what it is.
    pub fn seen(&self, time: u64) -> u64 {
        let elapsed = if self.0.stands {
            0
        } else {
            self.0.started.elapsed().as_secs()
        };
        let base = time.saturating_sub(elapsed);
        base.max(self.0.base.fetch_max(base, Ordering::Relaxed)) + elapsed
    }
}

#[cfg(test)]
mod tests {
    use super::Clock;

    #[test]
    fn it_goes_on_from_the_latest_time_seen() {
        let clock = Clock::default();
        let now = clock.now();
        assert!(now > 1_700_000_000);
        let ahead = now + 1_000_000;
        assert!(clock.seen(ahead) >= ahead);
        assert!(clock.seen(now) >= ahead && clock.now() >= ahead);
        assert!(clock.clone().now() >= ahead && Clock::default().now() < ahead);
    }
}
