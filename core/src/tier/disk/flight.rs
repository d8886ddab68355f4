//! Puts under way: one at a time for a key, and deletes that overtake them.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::key::BlockKey;

/// The puts that have been admitted and are not done.
#[derive(Debug, Default)]
pub(super) struct Flights {
    next: u64,
    keys: HashMap<BlockKey, u64, RandomState>,
    open: HashMap<u64, Flight, RandomState>,
}

#[derive(Debug)]
struct Flight {
    namespace: BlockKey,
    cancelled: bool,
}

impl Flights {
    /// Whether a put of any of these keys is under way.
    pub(super) fn any_of(&self, keys: &[BlockKey]) -> bool {
        !self.keys.is_empty() && keys.iter().any(|key| self.keys.contains_key(key))
    }

    /// The put of a key that is under way.
    pub(super) fn of(&self, key: &BlockKey) -> Option<u64> {
        self.keys.get(key).copied()
    }

    /// A put begins; none of its keys may be under way.
    pub(super) fn begin(&mut self, namespace: BlockKey, keys: &[BlockKey]) -> u64 {
        self.next += 1;
        let flight = Flight {
            namespace,
            cancelled: false,
        };
        self.open.insert(self.next, flight);
        self.keys.extend(keys.iter().map(|key| (*key, self.next)));
        self.next
    }

    /// A put ends.
    pub(super) fn end(&mut self, id: u64, keys: &[BlockKey]) {
        self.open.remove(&id);
        for key in keys {
            self.keys.remove(key);
        }
    }

    /// Whether a delete overtook the put.
    pub(super) fn is_cancelled(&self, id: u64) -> bool {
        self.open.get(&id).is_none_or(|flight| flight.cancelled)
    }

    /// Cancels the puts of any of these keys; their ids.
    pub(super) fn cancel_keys(&mut self, keys: &[BlockKey]) -> Vec<u64> {
        let mut ids = keys
            .iter()
            .filter_map(|key| self.keys.get(key).copied())
            .collect::<Vec<_>>();
        ids.sort_unstable();
        ids.dedup();
        for id in &ids {
            if let Some(flight) = self.open.get_mut(id) {
                flight.cancelled = true;
            }
        }
        ids
    }

    /// Cancels the puts of a namespace, or all; their ids.
    pub(super) fn cancel_namespace(&mut self, namespace: Option<&BlockKey>) -> Vec<u64> {
        let mut ids = Vec::new();
        for (id, flight) in &mut self.open {
            if namespace.is_none_or(|wanted| flight.namespace == *wanted) {
                flight.cancelled = true;
                ids.push(*id);
            }
        }
        ids
    }

    /// Whether any of these puts is still under way.
    pub(super) fn any_open(&self, ids: &[u64]) -> bool {
        ids.iter().any(|id| self.open.contains_key(id))
    }

    /// Whether nothing is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}
