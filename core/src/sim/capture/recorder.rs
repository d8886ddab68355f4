//! Where structures write what they are asked and what they choose: to a capture, or for a replay that looks at what is chosen.

use std::sync::Arc;

use parking_lot::Mutex;

use super::Replayed;
use super::record::{L1Event, L2Event, L3Event, Record, Run, Slices};
use super::wire::Name;
use super::writer::Capture;
use crate::error::{Error, Result};
use crate::key::BlockKey;
use crate::policy::{self, EntryMeta, EvictionPolicy, Slot};
use crate::run::{NEVER, RunHeader};
use crate::tier::TierId;

/// Who is told what orders of eviction choose.
#[derive(Clone, Debug)]
pub(crate) enum Recorder {
    /// A capture of what runs live.
    Live(Capture),
    /// A replay, whose names are those of the capture.
    Replay(Arc<Mutex<Vec<Replayed>>>),
}

impl Recorder {
    /// What a name is called.
    fn name(&self, name: u64) -> Name {
        match self {
            Self::Live(capture) => capture.name(name),
            Self::Replay(_) => Name(name),
        }
    }

    /// An order of eviction begins: its policy, and where its structure writes down what it is asked, if that is to be.
    /// `block_tokens` is 0 below L1, `tenant` 0 for a tier's own order.
    ///
    /// # Errors
    /// As [`policy::by_name`]; of a replay as [`policy::simulated`].
    pub(crate) fn policy(
        &self,
        tier: TierId,
        tenant: u64,
        name: &str,
        capacity: u64,
        block_tokens: usize,
    ) -> Result<(Box<dyn EvictionPolicy>, Option<Tap>)> {
        let number = match tier {
            TierId::L1 => 1,
            TierId::L2 => 2,
            TierId::L3 => 3,
            TierId::L4 => return Err(Error::invalid("l4 evicts nothing here")),
        };
        let (order, policy) = match self {
            Self::Live(capture) => {
                let policy = policy::by_name(name, capacity)?;
                let tenant = capture.tenant(tenant);
                let (policy_name, block_tokens) = (name.to_owned(), block_tokens as u32);
                let order = capture.order(&Record::Order {
                    tier: number,
                    tenant,
                    capacity,
                    policy: policy_name,
                    block_tokens,
                });
                (order, policy)
            }
            Self::Replay(orders) => {
                let policy = policy::simulated(name, capacity)?;
                let mut orders = orders.lock();
                orders.push(Replayed {
                    tier: number as u8,
                    tenant,
                    policy: name.to_owned(),
                    capacity,
                    recorded: Vec::new(),
                    victims: Vec::new(),
                });
                (orders.len() as u64 - 1, policy)
            }
        };
        let recorded = Recorded {
            order,
            recorder: self.clone(),
            policy,
            names: Vec::new(),
        };
        let tap = match self {
            Self::Live(capture) => Some(Tap {
                capture: capture.clone(),
                order,
            }),
            Self::Replay(_) => None,
        };
        Ok((Box::new(recorded), tap))
    }

    fn victim(&self, order: u64, name: Name) {
        match self {
            Self::Live(capture) => capture.append(&Record::Victim { order, name }),
            Self::Replay(orders) => {
                if let Some(order) = orders.lock().get_mut(order as usize) {
                    order.victims.push(name.0);
                }
            }
        }
    }
}

/// As [`Recorder::policy`], of a recorder that there may be: without one, the policy alone.
///
/// # Errors
/// As [`Recorder::policy`].
pub(crate) fn policy(
    recorder: Option<&Recorder>,
    tier: TierId,
    tenant: u64,
    name: &str,
    capacity: u64,
    block_tokens: usize,
) -> Result<(Box<dyn EvictionPolicy>, Option<Tap>)> {
    match recorder {
        None => Ok((policy::by_name(name, capacity)?, None)),
        Some(recorder) => recorder.policy(tier, tenant, name, capacity, block_tokens),
    }
}

/// Where a structure writes down what it is asked, under the lock that guards it.
#[derive(Clone, Debug)]
pub(crate) struct Tap {
    capture: Capture,
    order: u64,
}

impl Tap {
    /// The number of the structure's order.
    pub(crate) fn order(&self) -> u64 {
        self.order
    }

    pub(crate) fn capture(&self) -> &Capture {
        &self.capture
    }

    pub(crate) fn l1(&self, event: L1Event) {
        let order = self.order;
        self.capture.append(&Record::L1 { order, event });
    }

    pub(crate) fn l2(&self, event: L2Event) {
        let order = self.order;
        self.capture.append(&Record::L2 { order, event });
    }

    pub(crate) fn l3(&self, event: L3Event) {
        let order = self.order;
        self.capture.append(&Record::L3 { order, event });
    }

    /// The time by which the next event goes, if anything can expire.
    pub(crate) fn time(&self, seconds: u64) {
        self.capture.time(seconds);
    }

    /// What a block is called below L1.
    pub(crate) fn key(&self, key: &BlockKey) -> Name {
        self.capture.name(key.short())
    }

    pub(crate) fn keys(&self, keys: &[BlockKey]) -> Vec<Name> {
        keys.iter().map(|key| self.key(key)).collect()
    }

    /// What a tenant is called.
    pub(crate) fn tenant(&self, tenant: u64) -> Name {
        self.capture.tenant(tenant)
    }

    /// A run, without its payload and its text's keys.
    pub(crate) fn run(&self, header: &RunHeader) -> Run {
        let alike = header.slices.chunk_by(|a, b| a == b);
        let expires = header.terms.expires();
        Run {
            namespace: self.key(&header.namespace),
            parent: self.key(&header.parent),
            keys: self.keys(&header.keys),
            block_tokens: header.block_tokens,
            slices: alike
                .map(|slices| Slices {
                    count: slices.len() as u32,
                    len: slices[0],
                })
                .collect(),
            expires: (expires != NEVER).then_some(expires),
        }
    }
}

/// Tells what is chosen, under the recorder's names: the policy itself sees these, so that one whose choice depends on them chooses
/// alike in the replay.
#[derive(Debug)]
struct Recorded {
    order: u64,
    recorder: Recorder,
    policy: Box<dyn EvictionPolicy>,
    /// By slot.
    names: Vec<Name>,
}

impl Recorded {
    fn set_name(&mut self, slot: Slot, name: Name) {
        let slot = slot as usize;
        if slot >= self.names.len() {
            self.names.resize(slot + 1, Name::default());
        }
        self.names[slot] = name;
    }

    fn name_of(&self, slot: Slot) -> Name {
        self.names.get(slot as usize).copied().unwrap_or_default()
    }
}

impl EvictionPolicy for Recorded {
    fn wants_ghosts(&self) -> bool {
        true
    }

    fn request(&mut self, now_ms: u64, category: u32) {
        self.policy.request(now_ms, category);
    }

    fn insert(&mut self, slot: Slot, ghost: u64, meta: EntryMeta) {
        let name = self.recorder.name(ghost);
        self.set_name(slot, name);
        self.policy.insert(slot, name.0, meta);
    }

    fn touch(&mut self, slot: Slot) {
        self.policy.touch(slot);
    }

    fn renew(&mut self, slot: Slot) {
        self.policy.renew(slot);
    }

    fn split(
        &mut self,
        head: Slot,
        head_meta: EntryMeta,
        tail: Slot,
        tail_ghost: u64,
        tail_meta: EntryMeta,
    ) {
        let name = self.recorder.name(tail_ghost);
        self.set_name(head, self.name_of(tail));
        self.set_name(tail, name);
        self.policy.split(head, head_meta, tail, name.0, tail_meta);
    }

    fn trim(&mut self, slot: Slot, ghost: u64, meta: EntryMeta) {
        let name = self.recorder.name(ghost);
        self.policy.trim(slot, name.0, meta);
    }

    fn set_candidate(&mut self, slot: Slot, candidate: bool) {
        self.policy.set_candidate(slot, candidate);
    }

    fn evicted(&mut self, slot: Slot) {
        self.policy.evicted(slot);
    }

    fn remove(&mut self, slot: Slot) {
        self.policy.remove(slot);
    }

    fn victim(&mut self) -> Option<Slot> {
        let victim = self.policy.victim();
        if let Some(slot) = victim {
            self.recorder.victim(self.order, self.name_of(slot));
        }
        victim
    }

    fn expired(&mut self) -> Option<Slot> {
        self.policy.expired()
    }

    fn candidates(&self) -> usize {
        self.policy.candidates()
    }

    fn validate(&self) -> std::result::Result<(), String> {
        self.policy.validate()
    }
}
