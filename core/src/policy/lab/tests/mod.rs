//! Flat use: entries of one block, all of them candidates, against plain references written from the papers.

mod known;
mod libcachesim;
mod references;
mod timed;
mod tree;

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::policy::{EntryMeta, Slot};

/// A flat cache: room is made before an entry comes in.
struct Flat {
    policy: Policy,
    capacity: usize,
    slots: HashMap<u64, Slot>,
    names: Vec<u64>,
    vacant: Vec<Slot>,
}

/// What became of an access: whether it hit, and which name had to go.
type Outcome = (bool, Option<u64>);

impl Flat {
    fn new(policy: Policy, capacity: usize) -> Self {
        Self {
            policy,
            capacity,
            slots: HashMap::new(),
            names: Vec::new(),
            vacant: Vec::new(),
        }
    }

    fn access(&mut self, name: u64) -> Outcome {
        let meta = EntryMeta {
            bytes: 1,
            tokens: 1,
            ..EntryMeta::default()
        };
        self.access_as(name, meta)
    }

    fn access_as(&mut self, name: u64, meta: EntryMeta) -> Outcome {
        if let Some(&slot) = self.slots.get(&name) {
            self.policy.touch(slot);
            return (true, None);
        }
        let mut evicted = None;
        if self.slots.len() == self.capacity {
            let slot = self.policy.victim().expect("a full cache has a victim");
            assert_eq!(self.policy.victim(), Some(slot), "asked again");
            self.policy.evicted(slot);
            evicted = Some(self.leave(slot));
        }
        let slot = self.vacant.pop().unwrap_or(self.names.len() as Slot);
        if slot as usize == self.names.len() {
            self.names.push(name);
        }
        self.names[slot as usize] = name;
        self.slots.insert(name, slot);
        self.policy.insert(slot, name, meta);
        self.policy.set_candidate(slot, true);
        (false, evicted)
    }

    fn leave(&mut self, slot: Slot) -> u64 {
        let name = self.names[slot as usize];
        self.slots.remove(&name);
        self.vacant.push(slot);
        name
    }

    fn hits(&mut self, trace: impl IntoIterator<Item = u64>) -> usize {
        let hits = trace.into_iter().filter(|name| self.access(*name).0);
        hits.count()
    }
}

/// A cache as a paper tells it.
trait Reference {
    fn access(&mut self, name: u64) -> Outcome;
}

/// Small names are more frequent; now and then comes a run of names in order.
fn trace() -> impl Strategy<Value = Vec<u64>> {
    let skewed = (0..16_u64, 0..16_u64).prop_map(|(left, right)| vec![left.min(right)]);
    let run = (0..24_u64, 1..16_u64).prop_map(|(start, length)| (start..start + length).collect());
    let pieces = prop_oneof![9 => skewed, 1 => run];
    prop::collection::vec(pieces, 1..250).prop_map(|pieces: Vec<Vec<u64>>| pieces.concat())
}

fn same(
    policy: Policy,
    capacity: usize,
    reference: &mut dyn Reference,
    trace: &[u64],
) -> Result<(), TestCaseError> {
    let mut flat = Flat::new(policy, capacity);
    for (step, &name) in trace.iter().enumerate() {
        let (ours, theirs) = (flat.access(name), reference.access(name));
        prop_assert_eq!(ours, theirs, "step {}, name {}", step, name);
        prop_assert_eq!(flat.policy.validate(), Ok(()));
    }
    Ok(())
}

proptest! {
    #[test]
    fn fifo_is_the_textbooks(capacity in 1..12_usize, trace in trace()) {
        let mut reference = references::Queue::new(capacity, references::End::Front);
        same(fifo(capacity as u64), capacity, &mut reference, &trace)?;
    }

    #[test]
    fn mru_is_the_textbooks(capacity in 1..12_usize, trace in trace()) {
        let mut reference = references::Queue::new(capacity, references::End::Back);
        same(mru(capacity as u64), capacity, &mut reference, &trace)?;
    }

    #[test]
    fn clock_is_a_ring_of_frames(capacity in 1..12_usize, trace in trace()) {
        let mut reference = references::Ring::new(capacity);
        same(clock(capacity as u64), capacity, &mut reference, &trace)?;
    }

    #[test]
    fn lru_k_is_the_papers(capacity in 1..12_usize, trace in trace()) {
        let mut reference = references::Backward::new(capacity);
        same(lru_k(capacity as u64), capacity, &mut reference, &trace)?;
    }

    #[test]
    fn two_q_is_the_papers(capacity in 1..24_usize, trace in trace()) {
        let mut reference = references::TwoQ::new(capacity);
        same(two_q(capacity as u64), capacity, &mut reference, &trace)?;
    }

    #[test]
    fn arc_is_the_papers_a_miss_late(capacity in 1..12_usize, trace in trace()) {
        let mut reference = references::Arc::new(capacity);
        same(arc(capacity as u64), capacity, &mut reference, &trace)?;
    }

    #[test]
    fn lirs_is_the_papers(capacity in 2..24_usize, trace in trace()) {
        let mut reference = references::Lirs::new(capacity);
        same(lirs(capacity as u64), capacity, &mut reference, &trace)?;
    }

    #[test]
    fn lecar_is_the_papers(capacity in 2..12_usize, trace in trace()) {
        let mut reference = references::LeCaR::new(capacity);
        same(lecar(capacity as u64), capacity, &mut reference, &trace)?;
    }

    #[test]
    fn lhd_is_the_least_initial_density_at_first(capacity in 1..12_usize, trace in trace()) {
        let mut reference = references::Lhd::new(capacity);
        same(lhd(capacity as u64), capacity, &mut reference, &trace)?;
    }

    /// What is drawn among all candidates was one, and nothing else changes.
    #[test]
    fn random_evicts_only_when_full(capacity in 1..12_usize, trace in trace()) {
        let mut flat = Flat::new(random(capacity as u64), capacity);
        for name in trace {
            let held = flat.slots.contains_key(&name);
            let full = flat.slots.len() == capacity;
            let (hit, evicted) = flat.access(name);
            prop_assert_eq!(hit, held);
            prop_assert_eq!(evicted.is_some(), full && !held);
            prop_assert_eq!(flat.policy.validate(), Ok(()));
        }
    }
}
