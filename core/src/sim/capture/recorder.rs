//! A policy whose calls are written down.

use super::format::{Call, Record};
use super::writer::Capture;
use crate::error::Result;
use crate::policy::{self, EntryMeta, EvictionPolicy, Slot};
use crate::tier::TierId;

/// The order of eviction of a tier, or of a tenant in it (0 for the tier's own): recorded if there is a capture.
///
/// # Errors
/// As [`policy::by_name`].
pub(crate) fn policy(
    capture: Option<&Capture>,
    tier: TierId,
    tenant: u64,
    name: &str,
    capacity: u64,
) -> Result<Box<dyn EvictionPolicy>> {
    let policy = policy::by_name(name, capacity)?;
    let Some(capture) = capture else {
        return Ok(policy);
    };
    let tier = match tier {
        TierId::L1 => 1,
        TierId::L2 => 2,
        TierId::L3 => 3,
    };
    Ok(Box::new(Recorded {
        order: capture.order(tier, tenant, capacity, name),
        capture: capture.clone(),
        policy,
    }))
}

/// Passes every call on, under the capture's names: a policy whose choice depends on them chooses alike in the replay.
#[derive(Debug)]
struct Recorded {
    order: u64,
    capture: Capture,
    policy: Box<dyn EvictionPolicy>,
}

impl Recorded {
    fn note(&self, call: Call) {
        let order = self.order;
        self.capture.append(&Record::Call { order, call });
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
        let ghost = self.capture.name(ghost);
        self.note(Call::Insert(slot, ghost, meta));
        self.policy.insert(slot, ghost, meta);
    }

    fn touch(&mut self, slot: Slot) {
        self.note(Call::Touch(slot));
        self.policy.touch(slot);
    }

    fn renew(&mut self, slot: Slot) {
        self.note(Call::Renew(slot));
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
        let tail_ghost = self.capture.name(tail_ghost);
        self.note(Call::Split {
            head,
            head_meta,
            tail,
            tail_ghost,
            tail_meta,
        });
        self.policy
            .split(head, head_meta, tail, tail_ghost, tail_meta);
    }

    fn trim(&mut self, slot: Slot, ghost: u64, meta: EntryMeta) {
        let ghost = self.capture.name(ghost);
        self.note(Call::Trim(slot, ghost, meta));
        self.policy.trim(slot, ghost, meta);
    }

    fn set_candidate(&mut self, slot: Slot, candidate: bool) {
        self.note(Call::Candidate(slot, candidate));
        self.policy.set_candidate(slot, candidate);
    }

    fn evicted(&mut self, slot: Slot) {
        self.note(Call::Evicted(slot));
        self.policy.evicted(slot);
    }

    fn remove(&mut self, slot: Slot) {
        self.note(Call::Removed(slot));
        self.policy.remove(slot);
    }

    fn victim(&mut self) -> Option<Slot> {
        let victim = self.policy.victim();
        self.note(Call::Victim(victim));
        victim
    }

    fn candidates(&self) -> usize {
        self.policy.candidates()
    }

    fn validate(&self) -> std::result::Result<(), String> {
        self.policy.validate()
    }
}
