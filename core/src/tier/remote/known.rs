//! Which blocks were seen on the servers lately: a bounded memory that forgets the oldest, and may be wrong.

use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use hashbrown::HashSet;
use parking_lot::Mutex;

use crate::key::BlockKey;

/// Blocks of one generation; the last one and part of the one before are remembered.
const GENERATION: usize = 1 << 16;

type Keys = HashSet<BlockKey, RandomState>;

#[derive(Debug)]
struct State {
    young: Keys,
    old: Keys,
    /// When the young ones began.
    since: Instant,
}

#[derive(Debug)]
pub(super) struct Known {
    state: Mutex<State>,
    /// Nothing is remembered for longer than twice this.
    age: Duration,
}

impl Known {
    /// A memory for values that live as long as `ttl`.
    pub(super) fn new(ttl: Duration) -> Self {
        Self {
            state: Mutex::new(State {
                young: Keys::default(),
                old: Keys::default(),
                since: Instant::now(),
            }),
            age: ttl / 2,
        }
    }

    pub(super) fn has(&self, key: &BlockKey) -> bool {
        let mut state = self.state.lock();
        state.turn(self.age);
        state.young.contains(key) || state.old.contains(key)
    }

    pub(super) fn add<'a>(&self, keys: impl IntoIterator<Item = &'a BlockKey>) {
        let mut state = self.state.lock();
        for key in keys {
            state.turn(self.age);
            state.young.insert(*key);
        }
    }

    pub(super) fn forget<'a>(&self, keys: impl IntoIterator<Item = &'a BlockKey>) {
        let mut state = self.state.lock();
        for key in keys {
            state.young.remove(key);
            state.old.remove(key);
        }
    }

    pub(super) fn clear(&self) {
        let mut state = self.state.lock();
        state.young.clear();
        state.old.clear();
    }
}

impl State {
    /// Begins a new generation if this one is full, or as old as it may get.
    fn turn(&mut self, age: Duration) {
        if self.young.len() >= GENERATION || self.since.elapsed() >= age {
            self.old = std::mem::take(&mut self.young);
            self.since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{GENERATION, Known};
    use crate::key::BlockKey;

    fn key(number: usize) -> BlockKey {
        let mut key = BlockKey::default();
        key.0[..8].copy_from_slice(&(number as u64).to_le_bytes());
        key
    }

    #[test]
    fn what_was_seen_last_is_remembered_within_a_bound() {
        let known = Known::new(Duration::from_secs(1000));
        let all = (0..3 * GENERATION).map(key).collect::<Vec<_>>();
        for keys in all.chunks(1000) {
            known.add(keys);
            assert!(keys.iter().all(|key| known.has(key)));
        }
        let recent = &all[2 * GENERATION..];
        assert!(recent.iter().all(|key| known.has(key)));
        assert!(all.iter().filter(|key| known.has(key)).count() <= 2 * GENERATION);
        known.forget(&recent[..1]);
        assert!(!known.has(&recent[0]) && known.has(&recent[1]));
        known.clear();
        assert!(!all.iter().any(|key| known.has(key)));
    }

    #[test]
    fn nothing_is_remembered_for_longer_than_values_live() {
        let known = Known::new(Duration::ZERO);
        known.add(&[key(1)]);
        assert!(known.has(&key(1)), "it is old by now");
        assert!(!known.has(&key(1)));
    }
}
