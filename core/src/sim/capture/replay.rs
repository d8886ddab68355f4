//! A capture, done again: the live structures, asked what they were asked, without payload.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::format::Reader;
use super::record::{L3Event, Record};
use super::recorder::Recorder;
use super::requests::Recent;
use crate::cache;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::policy::EvictionPolicy;
use crate::tier::{TierId, disk, memory};

/// What became of one order of eviction.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// A structure that a capture drives.
enum Structure {
    L1(Box<cache::Replica>),
    L2(memory::Replica),
    /// It opens with its first event.
    L3Closed(Box<dyn EvictionPolicy>),
    L3(Box<disk::Replica>),
    /// A tenant's order, which its tier keeps.
    Tenant,
}

struct Replay {
    recorder: Recorder,
    /// What the replay's own orders choose.
    chosen: Arc<Mutex<Vec<Replayed>>>,
    clock: Clock,
    structures: Vec<Structure>,
    /// What was recorded, by the capture's numbers.
    recorded: Vec<Replayed>,
    recent: Recent,
}

/// Drives the tree of L1, the directory and pages of L2 and the directory of L3 with a capture; what their policies choose this time
/// stands beside what was chosen then.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io), [`Error::Format`](crate::Error::Format) for no capture or a damaged one (with the offset),
/// [`Error::Config`](crate::Error::Config) for a policy that is not known.
pub fn replay(path: &Path) -> Result<Vec<Replayed>> {
    let mut reader = Reader::open(path)?;
    let chosen = Arc::<Mutex<Vec<Replayed>>>::default();
    let mut replay = Replay {
        recorder: Recorder::Replay(Arc::clone(&chosen)),
        chosen,
        clock: Clock::standing(),
        structures: Vec::new(),
        recorded: Vec::new(),
        recent: Recent::default(),
    };
    while let Some(record) = reader.next() {
        replay.apply(record?).map_err(|error| match error {
            Error::InvalidArgument(what) => reader.damaged(&what),
            other => other,
        })?;
    }
    replay.validate().map_err(|wrong| reader.damaged(&wrong))?;
    Ok(replay.finish())
}

pub(super) fn no_order(number: u64) -> Error {
    Error::invalid(format!("a record of order {number}, which did not begin"))
}

impl Replay {
    fn apply(&mut self, record: Record) -> Result<()> {
        match record {
            Record::Order {
                tier,
                tenant,
                capacity,
                policy,
                block_tokens,
            } => {
                let structure = self.begin(tier, tenant.0, capacity, &policy, block_tokens)?;
                self.structures.push(structure);
                self.recorded.push(Replayed {
                    tier: tier as u8,
                    tenant: tenant.0,
                    policy,
                    capacity,
                    recorded: Vec::new(),
                    victims: Vec::new(),
                });
            }
            Record::Victim { order, name } => {
                let order = self.recorded.get_mut(order as usize);
                let order = order.ok_or_else(|| Error::invalid("a victim of no order"))?;
                order.recorded.push(name.0);
            }
            Record::Request {
                time_ms,
                category,
                back,
                shared,
                blocks,
                claim,
                ..
            } => {
                let blocks = self.recent.whole(back, shared, blocks);
                let blocks =
                    blocks.ok_or_else(|| Error::invalid("a request that goes on from none"))?;
                if let Some(claim) = claim {
                    let Structure::L1(l1) = self.structure(claim.order)? else {
                        return Err(no_order(claim.order));
                    };
                    l1.begin(time_ms, category, &claim, blocks)?;
                }
            }
            Record::L1 { order, event } => match self.structure(order)? {
                Structure::L1(l1) => l1.apply(event)?,
                _ => return Err(no_order(order)),
            },
            Record::L2 { order, event } => match self.structure(order)? {
                Structure::L2(l2) => l2.apply(event)?,
                _ => return Err(no_order(order)),
            },
            Record::L3 { order, event } => self.apply_to_l3(order, event)?,
            Record::Time { seconds } => {
                self.clock.seen(seconds);
            }
            Record::Overrun {} => {}
        }
        Ok(())
    }

    fn structure(&mut self, order: u64) -> Result<&mut Structure> {
        let structure = self.structures.get_mut(order as usize);
        structure.ok_or_else(|| no_order(order))
    }

    fn begin(
        &self,
        tier: u32,
        tenant: u64,
        capacity: u64,
        policy: &str,
        block_tokens: u32,
    ) -> Result<Structure> {
        if tenant != 0 {
            return Ok(Structure::Tenant);
        }
        let tier = match tier {
            1 => TierId::L1,
            2 => TierId::L2,
            3 => TierId::L3,
            _ => return Err(Error::invalid(format!("an order of tier {tier}"))),
        };
        let block_tokens = block_tokens as usize;
        let recorder = &self.recorder;
        let (policy, _) = recorder.policy(tier, tenant, policy, capacity, block_tokens)?;
        Ok(match tier {
            TierId::L1 => {
                let blocks = capacity as usize;
                Structure::L1(Box::new(cache::Replica::new(
                    blocks,
                    block_tokens,
                    policy,
                    false,
                )?))
            }
            TierId::L2 => {
                let clock = self.clock.clone();
                Structure::L2(memory::Replica::new(capacity, policy, clock)?)
            }
            TierId::L3 => Structure::L3Closed(policy),
            TierId::L4 => return Err(Error::invalid("an order of l4")),
        })
    }

    fn apply_to_l3(&mut self, order: u64, event: L3Event) -> Result<()> {
        let (recorder, clock) = (self.recorder.clone(), self.clock.clone());
        let recorded = self.recorded.get(order as usize);
        let name = recorded.map_or_else(String::new, |recorded| recorded.policy.clone());
        let structure = self.structure(order)?;
        match (structure, event) {
            (Structure::L3(l3), event) => l3.apply(event),
            (structure, L3Event::Open { quota }) => {
                let Structure::L3Closed(policy) = std::mem::replace(structure, Structure::Tenant)
                else {
                    return Err(no_order(order));
                };
                let l3 = disk::Replica::new(policy, &name, quota, recorder, clock)?;
                *structure = Structure::L3(Box::new(l3));
                Ok(())
            }
            _ => Err(no_order(order)),
        }
    }

    /// Checks the structures as the last record left them.
    fn validate(&self) -> std::result::Result<(), String> {
        for structure in &self.structures {
            match structure {
                Structure::L1(l1) => l1.validate()?,
                Structure::L2(l2) => l2.validate()?,
                Structure::L3(l3) => l3.validate()?,
                Structure::L3Closed(_) | Structure::Tenant => {}
            }
        }
        Ok(())
    }

    /// Puts what was chosen beside what was recorded: of each tier and tenant, in the order in which they began.
    fn finish(self) -> Vec<Replayed> {
        let mut chosen: HashMap<(u8, u64), std::collections::VecDeque<Vec<u64>>> = HashMap::new();
        for order in std::mem::take(&mut *self.chosen.lock()) {
            let same = chosen.entry((order.tier, order.tenant)).or_default();
            same.push_back(order.victims);
        }
        let mut recorded = self.recorded;
        for order in &mut recorded {
            let same = chosen.get_mut(&(order.tier, order.tenant));
            let victims = same.and_then(std::collections::VecDeque::pop_front);
            order.victims = victims.unwrap_or_default();
        }
        recorded
    }
}
