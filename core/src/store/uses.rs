//! How often blocks were used, for `write_through_selective`.

use crate::sync::Mutex;

use crate::key::{BlockKey, KeyMap};

/// Counts kept in each of two generations: some 3 MiB each when full.
const GENERATION: usize = 1 << 16;

#[derive(Debug, Default)]
struct State {
    young: KeyMap<u32>,
    /// Full once; forgotten when `young` is full, but for those that were used since.
    old: KeyMap<u32>,
}

/// Counts uses of blocks, within bounded memory: what was not used for a long time is forgotten.
#[derive(Debug)]
pub(super) struct Uses {
    /// From how many uses on a block is worth a write.
    wanted: u32,
    state: Mutex<State>,
}

impl Uses {
    pub(super) fn new(wanted: u32) -> Self {
        Self {
            wanted,
            state: Mutex::default(),
        }
    }

    /// Counts one more use of a block; says whether there were enough by now.
    pub(super) fn count(&self, key: &BlockKey) -> bool {
        let mut state = self.state.lock();
        if state.young.len() >= GENERATION && !state.young.contains_key(key) {
            state.old = std::mem::take(&mut state.young);
        }
        let before = state.old.remove(key);
        let uses = state.young.entry(*key).or_insert(before.unwrap_or(0));
        *uses = uses.saturating_add(1);
        *uses >= self.wanted
    }

    /// Whether a block was used often enough.
    pub(super) fn enough(&self, key: &BlockKey) -> bool {
        let state = self.state.lock();
        let uses = state.young.get(key).or_else(|| state.old.get(key));
        uses.is_some_and(|uses| *uses >= self.wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::{GENERATION, Uses};
    use crate::key::BlockKey;

    fn key(number: usize) -> BlockKey {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        BlockKey(bytes)
    }

    #[test]
    fn what_is_used_stays_known_and_what_is_not_is_forgotten() {
        let uses = Uses::new(3);
        assert!(!uses.count(&key(0)));
        assert!(!uses.count(&key(1)));
        for number in 2..5 * GENERATION / 2 {
            uses.count(&key(number));
            if number == GENERATION + 9 {
                assert!(!uses.count(&key(1)));
            }
            let state = uses.state.lock();
            assert!(state.young.len() <= GENERATION && state.old.len() <= GENERATION);
        }
        assert!(!uses.enough(&key(1)));
        assert!(uses.count(&key(1)), "the third use");
        assert!(uses.enough(&key(1)));
        assert!(!uses.count(&key(0)) && !uses.count(&key(0)));
    }
}
