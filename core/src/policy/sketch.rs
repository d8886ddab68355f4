//! How often names were used lately, approximately.

/// Counters of one name.
const ROWS: usize = 4;
/// The most that a counter counts to.
const MOST: u8 = 15;
/// Uses, in entries, after which all counts are halved.
const SAMPLE: u64 = 10;
const SMALLEST: usize = 256;
/// Odd multipliers, one a row, that spread names over it.
const SPREAD: [u64; ROWS] = [
    0x9e37_79b9_7f4a_7c15,
    0xbf58_476d_1ce4_e5b9,
    0x94d0_49bb_1331_11eb,
    0xd6e8_feb8_6659_fd93,
];

/// A count-min sketch with conservative updates, whose counts halve after ten uses an entry (Einziger, Friedman, Manes, "`TinyLFU`: a
/// highly efficient cache admission policy", ACM Transactions on Storage 13(4), 2017). It grows with the number of entries; counts
/// are kept. 32 bytes an entry or less.
#[derive(Clone, Debug)]
pub(super) struct Sketch {
    /// One row after another, each of a power of two.
    counters: Vec<u8>,
    width: usize,
    used: u64,
}

impl Default for Sketch {
    fn default() -> Self {
        Self {
            counters: vec![0; ROWS * SMALLEST],
            width: SMALLEST,
            used: 0,
        }
    }
}

impl Sketch {
    fn places(&self, name: u64) -> [usize; ROWS] {
        let mask = self.width as u64 - 1;
        std::array::from_fn(|row| {
            let spread = (name ^ (name >> 32)).wrapping_mul(SPREAD[row]);
            row * self.width + ((spread ^ (spread >> 32)) & mask) as usize
        })
    }

    /// Makes room for so many entries. Every counter is copied to the two places that its names may be in now: no count is lost.
    pub(super) fn fit(&mut self, entries: usize) {
        while self.width < 4 * entries {
            let rows = self.counters.chunks_exact(self.width);
            self.counters = rows.flat_map(|row| [row, row].concat()).collect();
            self.width *= 2;
        }
    }

    /// How often a name was used, or more.
    pub(super) fn estimate(&self, name: u64) -> u8 {
        let counts = self.places(name).map(|place| self.counters[place]);
        counts.into_iter().min().unwrap_or(0)
    }

    /// Counts a use; `entries` is the number of entries that the cache holds.
    pub(super) fn count(&mut self, name: u64, entries: usize) {
        self.raise(name, self.estimate(name) + 1);
        self.used += 1;
        if self.used >= SAMPLE * entries.max(SMALLEST) as u64 {
            self.used /= 2;
            for counter in &mut self.counters {
                *counter /= 2;
            }
        }
    }

    /// Sees to it that a name counts as used `times` times at least.
    pub(super) fn raise(&mut self, name: u64, times: u8) {
        for place in self.places(name) {
            let counter = &mut self.counters[place];
            *counter = (*counter).max(times.min(MOST));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::{MOST, Sketch};

    proptest! {
        /// Never less than the true count, however much the sketch has grown meanwhile.
        #[test]
        fn no_use_is_lost(names in prop::collection::vec(0..500_u64, 1..2000), entries in 1..800_usize) {
            let mut sketch = Sketch::default();
            let mut counts: HashMap<u64, u8> = HashMap::new();
            for (at, name) in names.iter().enumerate() {
                sketch.fit(1 + at * entries / names.len());
                sketch.count(*name, entries);
                let count = counts.entry(*name).or_default();
                *count = MOST.min(*count + 1);
            }
            for (name, count) in counts {
                prop_assert!(sketch.estimate(name) >= count);
            }
        }
    }
}
