//! Lists of slice lengths, one for all runs of a model and size.

use std::collections::HashSet;
use std::sync::Arc;

use foldhash::fast::RandomState;

/// Lists of which unused ones are not looked for.
const FEW: usize = 64;

/// The lists that are in use. Those of the runs of a model differ by the number of blocks only, so a store has few.
#[derive(Debug, Default)]
pub(super) struct Shapes {
    known: HashSet<Arc<[u32]>, RandomState>,
    /// How many there were after those that nobody used had been dropped.
    used: usize,
}

impl Shapes {
    /// The list that all share who have these lengths.
    pub(super) fn share(&mut self, slices: &[u32]) -> Arc<[u32]> {
        if let Some(known) = self.known.get(slices) {
            return Arc::clone(known);
        }
        if self.known.len() >= 2 * self.used.max(FEW) {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.used = self.known.len();
        }
        let new = Arc::from(slices);
        self.known.insert(Arc::clone(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::Shapes;

    proptest! {
        #[test]
        fn equal_lists_are_one_and_unused_ones_go(numbers in prop::collection::vec(0..400_u32, 1..2000)) {
            let mut shapes = Shapes::default();
            let mut held = BTreeMap::new();
            for number in numbers {
                let list = [number, 7, number];
                let shared = shapes.share(&list);
                prop_assert_eq!(&*shared, &list);
                // A few stay in use, the others are dropped at once.
                if number < 40 {
                    let first = held.entry(number).or_insert_with(|| Arc::clone(&shared));
                    prop_assert!(Arc::ptr_eq(first, &shared));
                }
                prop_assert!(shapes.known.len() <= 2 * 64);
            }
        }
    }
}
