//! The model of LHD: hits and evictions by age, and the hit density that follows from them.

/// Ages that are told apart; what is older counts as the last one.
pub(super) const AGES: usize = 1_024;
/// Classes by how long ago the last two uses were, each twice as long as the next.
const CLASSES: usize = 16;
/// How much of the counts is kept from one reconfiguration to the next; the authors' value.
const KEEP: f64 = 0.9;
/// The authors' error tolerance: the age of a typical entry takes up one hundredth of the ages.
const TOLERANCE: f64 = 0.01;

/// The distributions of one class.
#[derive(Clone, Debug)]
struct Class {
    hits: Vec<f64>,
    evictions: Vec<f64>,
    density: Vec<f64>,
}

/// What entries of each class and age were worth.
#[derive(Debug)]
pub(super) struct Density {
    classes: Vec<Class>,
    /// Uses an age stands for.
    coarse: u64,
}

impl Density {
    /// Before anything is known, density falls with age and rises with class, as in the authors' code.
    pub(super) fn new() -> Self {
        let class = |rank: usize| Class {
            hits: vec![0.0; AGES],
            evictions: vec![0.0; AGES],
            density: (0..AGES)
                .map(|age| (rank + 1) as f64 / (age + 1) as f64)
                .collect(),
        };
        Self {
            classes: (0..CLASSES).map(class).collect(),
            coarse: 1,
        }
    }

    /// The age of what was used so many uses ago.
    pub(super) fn age(&self, uses: u64) -> u32 {
        (uses / self.coarse).min(AGES as u64 - 1) as u32
    }

    /// The class of an entry whose last two uses were hits at these ages, together.
    fn class(ages: u32) -> usize {
        match ages as usize {
            0 => CLASSES - 1,
            ages => ((AGES / ages).max(1).ilog2() as usize).min(CLASSES - 1),
        }
    }

    pub(super) fn hit(&mut self, ages: u32, age: u32) {
        self.classes[Self::class(ages)].hits[age as usize] += 1.0;
    }

    pub(super) fn evicted(&mut self, ages: u32, age: u32) {
        self.classes[Self::class(ages)].evictions[age as usize] += 1.0;
    }

    /// Expected hits for each use that an entry stays.
    pub(super) fn of(&self, ages: u32, age: u32) -> f64 {
        self.classes[Self::class(ages)].density[age as usize]
    }

    /// Fits the ages to the number of entries, if they are off by four times or more; what was counted is lost then.
    pub(super) fn fit(&mut self, entries: usize) {
        let wanted = entries as f64 / (TOLERANCE * AGES as f64);
        let wanted = (wanted as u64).max(1).next_power_of_two();
        if wanted >= 4 * self.coarse || self.coarse >= 4 * wanted {
            *self = Self::new();
            self.coarse = wanted;
        }
    }

    /// Computes the densities from what was counted, and lets the counts fade.
    pub(super) fn learn(&mut self) {
        for class in &mut self.classes {
            class.learn();
        }
    }
}

impl Class {
    fn learn(&mut self) {
        for count in self.hits.iter_mut().chain(&mut self.evictions) {
            *count *= KEEP;
        }
        // From the oldest age on: hits, and events, at this age or later; time until those events.
        let (mut hits, mut events, mut time) = (0.0, 0.0, 0.0);
        for age in (0..AGES).rev() {
            hits += self.hits[age];
            events += self.hits[age] + self.evictions[age];
            time += events;
            self.density[age] = if events > 1e-5 { hits / time } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{AGES, CLASSES, Density, KEEP};

    proptest! {
        /// Against the paper's formula: of entries that reached an age, hits over the time that they went on to stay.
        #[test]
        fn density_is_expected_hits_over_expected_time(
            events in prop::collection::vec((0..40_u32, any::<bool>()), 1..60),
        ) {
            let mut density = Density::new();
            for (age, hit) in &events {
                if *hit { density.hit(AGES as u32, *age) } else { density.evicted(AGES as u32, *age) }
            }
            density.learn();
            for age in 0..50_u32 {
                let later = events.iter().filter(|(at, _)| *at >= age);
                let hits = later.clone().filter(|(_, hit)| *hit).count() as f64 * KEEP;
                let time: f64 = later.map(|(at, _)| f64::from(at - age + 1) * KEEP).sum();
                let expected = if time > 0.0 { hits / time } else { 0.0 };
                prop_assert!((density.of(AGES as u32, age) - expected).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn a_class_is_twice_as_old_as_the_next() {
        assert_eq!(Density::class(AGES as u32 - 1), 0);
        assert_eq!(Density::class(AGES as u32 / 2), 1);
        assert_eq!(Density::class(AGES as u32 / 2 - 1), 1);
        assert_eq!(Density::class(AGES as u32 / 4), 2);
        assert_eq!(Density::class(1), 10);
        assert_eq!(Density::class(0), CLASSES - 1);
    }

    #[test]
    fn ages_are_fitted_to_the_number_of_entries() {
        let mut density = Density::new();
        density.fit(10_240);
        assert_eq!((density.age(1_023), density.age(1_024)), (0, 1));
        density.fit(3_000);
        assert_eq!(density.age(1_024), 1, "near enough");
        assert_eq!(density.age(u64::MAX), AGES as u32 - 1);
    }
}
