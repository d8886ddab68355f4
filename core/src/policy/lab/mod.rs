//! Policies for the simulator alone: baselines, policies of the literature for flat caches, and such as were made for KV caches.
//!
//! Those of the literature know flat objects of which any can go. Here an entry is a piece of a prefix, of one or more blocks:
//! only leaves can go, a piece can be split, and a leaf can give up its last blocks. Each policy says what it makes of that; all
//! count an entry by its bytes where the paper counts pages, and learn of a miss only when the entry comes in, room having been
//! made for it before. With entries of one block that are all candidates they are what the papers say, but for what they note.

mod arc;
mod classes;
mod clock;
mod density;
mod draw;
mod fifo;
mod flop_aware;
mod lecar;
mod length_aware;
mod lhd;
mod lirs;
mod lru_k;
mod mru;
mod random;
mod ranked;
mod ranks;
mod reuse;
mod sampled;
mod time;
mod ttl;
mod two_q;
mod wa_lru;
mod workload_aware;

#[cfg(test)]
mod tests;

use ranked::{Ranked, Ranking};

use super::EvictionPolicy;

type Policy = Box<dyn EvictionPolicy>;

fn ranked(ranking: impl Ranking + 'static) -> Policy {
    Box::new(Ranked::new(ranking))
}

pub(super) fn arc(capacity: u64) -> Policy {
    ranked(arc::Arc::new(capacity))
}

pub(super) fn clock(_capacity: u64) -> Policy {
    ranked(clock::Clock::default())
}

pub(super) fn fifo(_capacity: u64) -> Policy {
    ranked(fifo::Fifo::default())
}

pub(super) fn flop_aware(_capacity: u64) -> Policy {
    ranked(flop_aware::FlopAware::default())
}

pub(super) fn lecar(capacity: u64) -> Policy {
    Box::new(lecar::LeCaR::new(capacity, draw::SEED))
}

pub(super) fn length_aware(_capacity: u64) -> Policy {
    ranked(length_aware::LengthAware::default())
}

pub(super) fn lhd(_capacity: u64) -> Policy {
    Box::new(lhd::Lhd::new(draw::SEED))
}

pub(super) fn lirs(capacity: u64) -> Policy {
    Box::new(lirs::Lirs::new(capacity))
}

pub(super) fn lru_k(capacity: u64) -> Policy {
    ranked(lru_k::LruK::new(capacity))
}

pub(super) fn mru(_capacity: u64) -> Policy {
    ranked(mru::Mru::default())
}

pub(super) fn random(_capacity: u64) -> Policy {
    Box::new(random::Random::new(draw::SEED))
}

pub(super) fn ttl(_capacity: u64) -> Policy {
    ranked(ttl::Ttl::default())
}

pub(super) fn two_q(capacity: u64) -> Policy {
    ranked(two_q::TwoQ::new(capacity))
}

pub(super) fn wa_lru(_capacity: u64) -> Policy {
    ranked(wa_lru::WaLru::default())
}

pub(super) fn workload_aware(capacity: u64) -> Policy {
    ranked(workload_aware::WorkloadAware::new(capacity))
}
