//! Names of pieces that were evicted, for policies that learn from what comes back.

use std::collections::BTreeMap;
use std::fmt;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

#[derive(Clone, Copy, Debug)]
struct Ghost<T> {
    serial: u64,
    weight: u64,
    value: T,
}

/// Names in the order in which they came, with what they weighed and a value. Its owner bounds it by weight; every call costs
/// O(log names).
#[derive(Debug)]
pub(super) struct Ghosts<T> {
    by_name: HashMap<u64, Ghost<T>, FixedState>,
    by_age: BTreeMap<u64, u64>,
    serials: u64,
    weight: u64,
}

impl<T> Default for Ghosts<T> {
    fn default() -> Self {
        Self {
            by_name: HashMap::default(),
            by_age: BTreeMap::new(),
            serials: 0,
            weight: 0,
        }
    }
}

impl<T: Copy + fmt::Debug> Ghosts<T> {
    /// Adds a name as the newest; gives back the value of an older one that is the same.
    pub(super) fn add(&mut self, name: u64, weight: u64, value: T) -> Option<T> {
        let older = self.take(name);
        self.serials += 1;
        let serial = self.serials;
        let ghost = Ghost {
            serial,
            weight,
            value,
        };
        self.by_name.insert(name, ghost);
        self.by_age.insert(serial, name);
        self.weight += weight;
        older
    }

    /// Takes a name out.
    pub(super) fn take(&mut self, name: u64) -> Option<T> {
        let ghost = self.by_name.remove(&name)?;
        self.by_age.remove(&ghost.serial);
        self.weight -= ghost.weight;
        Some(ghost.value)
    }

    /// Takes the oldest name out if all together weigh more than `limit`.
    pub(super) fn take_beyond(&mut self, limit: u64) -> Option<T> {
        if self.weight <= limit {
            return None;
        }
        let (_, name) = self.by_age.first_key_value()?;
        self.take(*name)
    }

    /// Forgets the oldest until all together weigh at most `limit`.
    pub(super) fn shrink(&mut self, limit: u64) {
        while self.take_beyond(limit).is_some() {}
    }

    /// What all together weigh.
    pub(super) fn weight(&self) -> u64 {
        self.weight
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.by_name.values().map(|ghost| &ghost.value)
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        let weight: u64 = self.by_name.values().map(|ghost| ghost.weight).sum();
        let listed = self.by_age.iter().filter(|(serial, name)| {
            let ghost = self.by_name.get(*name);
            ghost.is_some_and(|ghost| ghost.serial == **serial)
        });
        let listed = listed.count();
        if weight != self.weight || listed != self.by_name.len() || listed != self.by_age.len() {
            return Err(format!(
                "{} ghosts of weight {weight}, but {listed} of {} are listed, of weight {}",
                self.by_name.len(),
                self.by_age.len(),
                self.weight
            ));
        }
        Ok(())
    }
}
