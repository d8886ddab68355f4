//! A capture, done again by fresh policies without a tier around them.

use std::collections::HashMap;
use std::path::Path;

use super::format::{Call, Reader, Record};
use crate::error::Result;
use crate::policy::{self, EvictionPolicy, Slot};

/// What became of one order of eviction.
#[derive(Debug)]
pub struct Replayed {
    /// 1 to 3.
    pub tier: u8,
    /// Whose order it is, by the capture's name; 0 for the tier's own.
    pub tenant: u64,
    /// What the policy is called.
    pub policy: String,
    /// What the tier, or the quota, holds: blocks in L1, bytes below.
    pub capacity: u64,
    /// Names of the victims that were chosen live, in order; one that gives up only its end appears each time it does.
    pub recorded: Vec<u64>,
    /// The same for the replay.
    pub victims: Vec<u64>,
}

struct Order {
    replayed: Replayed,
    policy: Box<dyn EvictionPolicy>,
    names: HashMap<Slot, u64>,
}

/// Gives every policy of a capture the calls that it got live; what it chooses this time stands beside what it chose then.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io), [`Error::Format`](crate::Error::Format) for no capture or a damaged one (with the offset),
/// [`Error::Config`](crate::Error::Config) for a policy that is not known.
pub fn replay(path: &Path) -> Result<Vec<Replayed>> {
    let mut reader = Reader::open(path)?;
    let mut orders: Vec<Order> = Vec::new();
    while let Some(record) = reader.next() {
        match record? {
            Record::Order {
                tier,
                tenant,
                capacity,
                policy,
            } => orders.push(Order {
                policy: policy::by_name(&policy, capacity)?,
                names: HashMap::new(),
                replayed: Replayed {
                    tier,
                    tenant,
                    policy,
                    capacity,
                    recorded: Vec::new(),
                    victims: Vec::new(),
                },
            }),
            Record::Call { order, call } => {
                let Some(order) = orders.get_mut(order as usize) else {
                    return Err(reader.damaged("a call of an order that did not begin"));
                };
                order.call(call);
            }
            Record::Request { .. } | Record::Overrun => {}
        }
    }
    Ok(orders.into_iter().map(|order| order.replayed).collect())
}

impl Order {
    fn call(&mut self, call: Call) {
        let policy = self.policy.as_mut();
        match call {
            Call::Insert(slot, ghost, meta) => {
                self.names.insert(slot, ghost);
                policy.insert(slot, ghost, meta);
            }
            Call::Touch(slot) => policy.touch(slot),
            Call::Renew(slot) => policy.renew(slot),
            Call::Split {
                head,
                head_meta,
                tail,
                tail_ghost,
                tail_meta,
            } => {
                if let Some(name) = self.names.insert(tail, tail_ghost) {
                    self.names.insert(head, name);
                }
                policy.split(head, head_meta, tail, tail_ghost, tail_meta);
            }
            Call::Trim(slot, ghost, meta) => policy.trim(slot, ghost, meta),
            Call::Candidate(slot, on) => policy.set_candidate(slot, on),
            Call::Evicted(slot) => {
                policy.evicted(slot);
                self.names.remove(&slot);
            }
            Call::Removed(slot) => {
                policy.remove(slot);
                self.names.remove(&slot);
            }
            Call::Victim(recorded) => {
                let chosen = policy.victim();
                let name =
                    |slot: Option<Slot>| slot.and_then(|slot| self.names.get(&slot).copied());
                self.replayed.recorded.extend(name(recorded));
                self.replayed.victims.extend(name(chosen));
            }
        }
    }
}
