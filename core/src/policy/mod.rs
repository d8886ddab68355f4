//! Eviction policies, one file each. The same code drives every tier and the simulator.
//!
//! A policy knows entries by dense `u32` slots that its owner gives out. Only *candidates* (unlocked leaves) may become victims;
//! history is kept for all entries, so that a parent that becomes childless enters at its own rank.
//!
//! A *ghost* is the name of an entry that outlives it: 64 bits that stand for the prefix up to and with the entry's first block.
//! The same blocks have the same ghost whenever they come back, in whatever slot and however the tree is cut into nodes then.

mod gdsf;
mod ghosts;
mod lab;
mod lfu;
mod lru;
mod order;
mod queue;
mod s3_fifo;
mod sieve;
mod sketch;
mod slots;
mod slru;
#[cfg(test)]
mod testing;
mod w_tinylfu;

pub use gdsf::Gdsf;
pub use lfu::Lfu;
pub use lru::Lru;
pub use s3_fifo::S3Fifo;
pub use sieve::Sieve;
pub use slru::Slru;
pub use w_tinylfu::WTinyLfu;

use std::fmt;

use crate::error::{Error, Result};
use crate::sim::page::policy as page;

/// A dense index that the owner gives an entry and reuses once it is gone.
pub type Slot = u32;

/// From this position on a token's attention costs as much as all the rest of it: 30,500 for an 8B model (2 x parameters over
/// 4 x layers x width), 53,000 for a 70B one, 3,900 for a 135M one.
const DEAR_POSITION: f32 = 32_768.0;

/// What a policy may know of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EntryMeta {
    /// Payload size. In the radix tree, where all blocks are of one size, the number of blocks.
    pub bytes: u64,
    /// Tokens held; 0 where they are unknown.
    pub tokens: u32,
    /// Distance from the root, in blocks.
    pub depth: u32,
    /// Relative cost of recomputing it: see [`recompute_cost`].
    pub cost: f32,
    /// What kind of request it came with; 0 where that is unknown.
    pub category: u32,
}

/// What it costs to recompute `tokens` tokens that follow `before` others, in tokens at the start of a prompt: attention makes
/// a token dearer the more there is before it.
pub fn recompute_cost(tokens: u32, before: u64) -> f32 {
    let middle = before as f32 + tokens as f32 / 2.0;
    tokens as f32 * (1.0 + middle / DEAR_POSITION)
}

/// Chooses what goes first. Every call of a live policy is O(1) or O(log n) in the number of entries, locked neighbours or not
/// (where a policy says so, amortised).
pub trait EvictionPolicy: Send + fmt::Debug {
    /// Whether the policy reads ghosts. If not, its owner need not compute them and may give 0.
    fn wants_ghosts(&self) -> bool {
        false
    }

    /// A request begins: the uses that follow are its. For policies that look at the time (milliseconds from any start) or at
    /// what kind of request it is. No live tier calls this.
    fn request(&mut self, _now_ms: u64, _category: u32) {}

    /// A new entry, used just now, not a candidate yet.
    fn insert(&mut self, slot: Slot, ghost: u64, meta: EntryMeta);

    /// The entry was used.
    fn touch(&mut self, slot: Slot);

    /// The entry is on the path to one that comes in, for a request that used it already: newer, but not used once more.
    fn renew(&mut self, slot: Slot) {
        self.touch(slot);
    }

    /// `tail` gave its earlier part to the new entry `head`, which gets a copy of its history and its ghost, and is no
    /// candidate; `tail` keeps its rank and candidacy and is called `tail_ghost` from now on.
    fn split(
        &mut self,
        head: Slot,
        head_meta: EntryMeta,
        tail: Slot,
        tail_ghost: u64,
        tail_meta: EntryMeta,
    );

    /// The victim gave up only its last blocks, which were evicted and are called `ghost`; the rest stays, with its rank and
    /// its candidacy, and is now as `meta` says.
    fn trim(&mut self, slot: Slot, ghost: u64, meta: EntryMeta);

    /// The entry may (not) be evicted from now on.
    fn set_candidate(&mut self, slot: Slot, candidate: bool);

    /// The entry is gone because there was no room for it. Policies that remember evicted entries do so here.
    fn evicted(&mut self, slot: Slot) {
        self.remove(slot);
    }

    /// The entry is gone for another reason (deleted, expired, damaged), and forgotten.
    fn remove(&mut self, slot: Slot);

    /// The candidate that goes next; it stays in until [`evicted`](Self::evicted) or [`remove`](Self::remove), and is the same
    /// one if asked again at once.
    fn victim(&mut self) -> Option<Slot>;

    /// A candidate whose time is over, for policies that let go of entries though there is room. The simulator asks when a
    /// request begins and [removes](Self::remove) what comes; no live tier asks.
    fn expired(&mut self) -> Option<Slot> {
        None
    }

    /// How many candidates there are.
    fn candidates(&self) -> usize;

    /// Checks the policy's own structure.
    ///
    /// # Errors
    /// A description of the first thing that is wrong.
    fn validate(&self) -> std::result::Result<(), String>;
}

/// A policy that can be had by its name.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// What it is called.
    pub name: &'static str,
    /// Whether the tiers may use it; if not, it is for the simulator alone.
    pub live: bool,
    /// Makes one for so many bytes.
    make: fn(u64) -> Box<dyn EvictionPolicy>,
}

const fn live(name: &'static str, make: fn(u64) -> Box<dyn EvictionPolicy>) -> Known {
    Known {
        name,
        live: true,
        make,
    }
}

const fn simulated_only(name: &'static str, make: fn(u64) -> Box<dyn EvictionPolicy>) -> Known {
    Known {
        live: false,
        ..live(name, make)
    }
}

/// All policies.
pub const KNOWN: &[Known] = &[
    live("lru", |_| Box::new(Lru::default())),
    live("slru", |bytes| Box::new(Slru::new(bytes))),
    live("lfu", |_| Box::new(Lfu::ageing())),
    live("s3-fifo", |bytes| Box::new(S3Fifo::new(bytes))),
    live("sieve", |_| Box::new(Sieve::default())),
    live("w-tinylfu", |bytes| Box::new(WTinyLfu::new(bytes))),
    live("gdsf", |_| Box::new(Gdsf::default())),
    simulated_only("lfu-plain", |_| Box::new(Lfu::plain())),
    simulated_only("2q", lab::two_q),
    simulated_only("arc", lab::arc),
    simulated_only("clock", lab::clock),
    simulated_only("fifo", lab::fifo),
    simulated_only("flop-aware", lab::flop_aware),
    simulated_only("lecar", lab::lecar),
    simulated_only("length-aware", lab::length_aware),
    simulated_only("lhd", lab::lhd),
    simulated_only("lirs", lab::lirs),
    simulated_only("lru-k", lab::lru_k),
    simulated_only("mru", lab::mru),
    simulated_only("random", lab::random),
    simulated_only("ttl", lab::ttl),
    simulated_only("wa-lru", lab::wa_lru),
    simulated_only("workload-aware", lab::workload_aware),
    simulated_only("windowed_recency", |_| page::windowed_recency()),
    simulated_only("heavy_hitter", |_| page::heavy_hitter()),
    simulated_only("cost_aware", |_| page::cost_aware()),
    simulated_only("predictive", |_| page::predictive()),
    simulated_only("regret_aware", |_| page::regret_aware()),
];

/// The names of the policies that the tiers may use.
pub fn live_names() -> impl Iterator<Item = &'static str> {
    let live = KNOWN.iter().filter(|known| known.live);
    live.map(|known| known.name)
}

/// A fresh policy for a tier, by its name. `capacity` is what the tier holds when full, in the unit of [`EntryMeta::bytes`]:
/// some policies divide it among their parts.
///
/// # Errors
/// [`Error::Config`] that lists the names of live policies, for an unknown one and for one that is for the simulator alone.
pub fn by_name(name: &str, capacity: u64) -> Result<Box<dyn EvictionPolicy>> {
    choose(name, capacity, |known| known.live)
}

/// As [`by_name`], of all policies.
///
/// # Errors
/// [`Error::Config`] that lists all names.
pub fn simulated(name: &str, capacity: u64) -> Result<Box<dyn EvictionPolicy>> {
    choose(name, capacity, |_| true)
}

fn choose(
    name: &str,
    capacity: u64,
    may: impl Fn(&Known) -> bool,
) -> Result<Box<dyn EvictionPolicy>> {
    let mut choice = KNOWN.iter().filter(|known| may(known));
    match choice.clone().find(|known| known.name == name) {
        Some(known) => Ok((known.make)(capacity)),
        None => Err(Error::Config {
            name: "policy",
            value: name.to_owned(),
            remedy: format!(
                "use one of: {}",
                choice
                    .by_ref()
                    .map(|known| known.name)
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        }),
    }
}
