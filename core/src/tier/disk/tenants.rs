//! Who has how much of the tier, and in which order a tenant with a quota gives it up.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::error::Result;
use crate::policy::{self, EntryMeta, EvictionPolicy, Slot};
use crate::sim::capture::{self, L3Event, Recorder, Tap};
use crate::tier::TierId;

/// A run's place in its tenant's own order of eviction.
pub(super) type Rank = u32;

/// Why a run leaves the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// There was no room for it, in the tier or in its tenant's quota.
    NoRoom,
    /// It was deleted, expired, or its bytes were damaged.
    Dropped,
}

impl Cause {
    pub(super) fn tell(self, policy: &mut dyn EvictionPolicy, slot: Slot) {
        match self {
            Self::NoRoom => policy.evicted(slot),
            Self::Dropped => policy.remove(slot),
        }
    }
}

/// The order in which a tenant's runs go: a policy over places of its own, so that it is as large as the tenant, not the tier.
#[derive(Debug)]
struct Order {
    policy: Box<dyn EvictionPolicy>,
    slots: Vec<Slot>,
    free: Vec<Rank>,
}

#[derive(Debug, Default)]
struct Tenant {
    /// Bytes of its records.
    bytes: u64,
    /// Bytes of records that are being written.
    pending: u64,
    /// None if it may take what it can get.
    quota: Option<u64>,
    /// Kept for tenants with a quota only.
    order: Option<Order>,
}

/// All tenants but nobody, whose number is 0 and who has no quota.
///
/// A run of a tenant with a quota stands in two orders, the tier's and the tenant's: each use of it costs O(log n) twice, and
/// it takes some 40 bytes more. Choosing a victim looks at no run of anybody else.
#[derive(Debug)]
pub(super) struct Tenants {
    policy: String,
    recorder: Option<Recorder>,
    /// Where what is asked is written down, while it is captured.
    tap: Option<Tap>,
    default_quota: Option<u64>,
    known: HashMap<u64, Tenant, RandomState>,
}

impl Tenants {
    pub(super) fn new(
        policy: &str,
        default_quota: Option<u64>,
        recorder: Option<Recorder>,
        tap: Option<Tap>,
    ) -> Result<Self> {
        policy::by_name(policy, 0)?;
        if let Some(tap) = &tap {
            tap.l3(L3Event::Open {
                quota: default_quota,
            });
        }
        Ok(Self {
            policy: policy.to_owned(),
            recorder,
            tap,
            default_quota,
            known: HashMap::default(),
        })
    }

    fn note(&self, event: impl FnOnce(&Tap) -> L3Event) {
        if let Some(tap) = &self.tap {
            tap.l3(event(tap));
        }
    }

    fn order(&self, id: u64, quota: u64) -> Option<Order> {
        let recorder = self.recorder.as_ref();
        // The name was checked.
        let (policy, _) = capture::policy(recorder, TierId::L3, id, &self.policy, quota, 0).ok()?;
        Some(Order {
            policy,
            slots: Vec::new(),
            free: Vec::new(),
        })
    }

    fn tenant(&mut self, id: u64) -> &mut Tenant {
        if !self.known.contains_key(&id) {
            let quota = self.default_quota;
            let tenant = Tenant {
                quota,
                order: quota.and_then(|quota| self.order(id, quota)),
                ..Tenant::default()
            };
            self.known.insert(id, tenant);
        }
        self.known.entry(id).or_default()
    }

    /// Sets a tenant's quota. What it has must be listed anew, by [`Self::insert`], least recently used first.
    pub(super) fn set_quota(&mut self, id: u64, quota: Option<u64>) {
        let order = quota.and_then(|quota| self.order(id, quota));
        let tenant = self.tenant(id);
        tenant.quota = quota;
        tenant.order = order;
        tenant.bytes = 0;
    }

    /// Adds a run; its place in the tenant's order, if there is one.
    pub(super) fn insert(&mut self, id: u64, slot: Slot, ghost: u64, meta: EntryMeta) -> Rank {
        if id == 0 {
            return 0;
        }
        let tenant = self.tenant(id);
        tenant.bytes += meta.bytes;
        let Some(order) = &mut tenant.order else {
            return 0;
        };
        let rank = order.free.pop().unwrap_or(order.slots.len() as Rank);
        match order.slots.get_mut(rank as usize) {
            Some(place) => *place = slot,
            None => order.slots.push(slot),
        }
        order.policy.insert(rank, ghost, meta);
        rank
    }

    /// Takes a run of `bytes` bytes out.
    pub(super) fn remove(&mut self, id: u64, rank: Rank, bytes: u64, cause: Cause) {
        let Some(tenant) = self.known.get_mut(&id) else {
            return;
        };
        tenant.bytes = tenant.bytes.saturating_sub(bytes);
        if let Some(order) = &mut tenant.order {
            cause.tell(order.policy.as_mut(), rank);
            order.free.push(rank);
        }
        self.drop_idle(id);
    }

    /// Forgets a tenant that has nothing and no quota of its own.
    fn drop_idle(&mut self, id: u64) {
        let default = self.default_quota;
        let idle = self.known.get(&id).is_some_and(|tenant| {
            tenant.bytes == 0 && tenant.pending == 0 && tenant.quota == default
        });
        if idle {
            self.known.remove(&id);
        }
    }

    fn order_mut(&mut self, id: u64) -> Option<&mut Order> {
        self.known.get_mut(&id)?.order.as_mut()
    }

    /// Notes a use.
    pub(super) fn touch(&mut self, id: u64, rank: Rank) {
        if let Some(order) = self.order_mut(id) {
            order.policy.touch(rank);
        }
    }

    /// Whether a run is an unpinned leaf.
    pub(super) fn set_candidate(&mut self, id: u64, rank: Rank, candidate: bool) {
        if let Some(order) = self.order_mut(id) {
            order.policy.set_candidate(rank, candidate);
        }
    }

    /// The tenant's leaf that goes next.
    pub(super) fn victim(&mut self, id: u64) -> Option<Slot> {
        let order = self.order_mut(id)?;
        let rank = order.policy.victim()?;
        order.slots.get(rank as usize).copied()
    }

    /// Whether a record of so many bytes could ever fit.
    pub(super) fn fits(&mut self, id: u64, bytes: u64) -> bool {
        id == 0 || self.tenant(id).quota.is_none_or(|quota| bytes <= quota)
    }

    /// Whether the tenant has, or is getting, more than its quota.
    pub(super) fn is_over(&self, id: u64) -> bool {
        self.known.get(&id).is_some_and(|tenant| {
            let taken = tenant.bytes + tenant.pending;
            tenant.quota.is_some_and(|quota| taken > quota)
        })
    }

    /// Tenants above their quotas.
    pub(super) fn all_over(&self) -> Vec<u64> {
        let ids = self.known.keys().copied();
        ids.filter(|id| self.is_over(*id)).collect()
    }

    /// A record of so many bytes is going to be written.
    pub(super) fn begin(&mut self, id: u64, bytes: u64) {
        if id != 0 {
            self.note(|tap| L3Event::Begin {
                tenant: tap.tenant(id),
                bytes,
            });
            self.tenant(id).pending += bytes;
        }
    }

    /// It was written or given up.
    pub(super) fn end(&mut self, id: u64, bytes: u64) {
        if id != 0 {
            self.note(|tap| L3Event::End {
                tenant: tap.tenant(id),
                bytes,
            });
        }
        if let Some(tenant) = self.known.get_mut(&id) {
            tenant.pending = tenant.pending.saturating_sub(bytes);
            self.drop_idle(id);
        }
    }

    /// Bytes of a tenant's records.
    pub(super) fn bytes(&self, id: u64) -> u64 {
        self.known.get(&id).map_or(0, |tenant| tenant.bytes)
    }

    /// Checks counts against what the runs of each tenant add up to: (bytes, leaves that could go).
    pub(super) fn validate(&self, found: &HashMap<u64, (u64, usize)>) -> Result<(), String> {
        for (id, tenant) in &self.known {
            let (bytes, leaves) = found.get(id).copied().unwrap_or_default();
            if tenant.bytes != bytes {
                let counted = tenant.bytes;
                return Err(format!(
                    "{counted} bytes are counted for tenant {id:016x}, it has {bytes}"
                ));
            }
            if let Some(order) = &tenant.order {
                let candidates = order.policy.candidates();
                if candidates != leaves {
                    return Err(format!(
                        "tenant {id:016x} counts {candidates} leaves, it has {leaves}"
                    ));
                }
                order.policy.validate()?;
            }
        }
        match found.keys().find(|id| !self.known.contains_key(id)) {
            Some(id) => Err(format!("tenant {id:016x} is not known")),
            None => Ok(()),
        }
    }
}
