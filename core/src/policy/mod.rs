//! Eviction policies, one file each. The same code drives every tier.
//!
//! A policy knows entries by dense `u32` slots that its owner gives out. Only *candidates* (unlocked leaves) may become victims;
//! history is kept for all entries, so that a parent that becomes childless enters at its own rank.

mod lru;

pub use lru::Lru;

use std::fmt;

use crate::error::{Error, Result};

/// A dense index that the owner gives an entry and reuses after `remove`.
pub type Slot = u32;

/// What a policy may know of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EntryMeta {
    /// Payload size.
    pub bytes: u64,
    /// Tokens held.
    pub tokens: u32,
    /// Distance from the root, in blocks.
    pub depth: u32,
}

/// Chooses what goes first. Every call is O(1) or O(log n) in the number of entries, locked neighbours or not.
pub trait EvictionPolicy: Send + fmt::Debug {
    /// A new entry, used just now, not a candidate yet. `ghost` is its key's short form, for policies that remember evicted keys.
    fn insert(&mut self, slot: Slot, ghost: u64, meta: EntryMeta);
    /// The entry was used.
    fn touch(&mut self, slot: Slot);
    /// `tail` gave its earlier part to the new entry `head`, which gets a copy of its history and is no candidate; `tail` keeps
    /// its rank and candidacy. `ghost` is that of `head`.
    fn split(&mut self, head: Slot, tail: Slot, ghost: u64);
    /// The entry may (not) be evicted from now on.
    fn set_candidate(&mut self, slot: Slot, candidate: bool);
    /// The entry is gone.
    fn remove(&mut self, slot: Slot);
    /// The candidate that goes next; it stays in until `remove`.
    fn victim(&mut self) -> Option<Slot>;
    /// How many candidates there are.
    fn candidates(&self) -> usize;
    /// Checks the policy's own structure.
    ///
    /// # Errors
    /// A description of the first thing that is wrong.
    fn validate(&self) -> std::result::Result<(), String>;
}

/// The names that [`by_name`] knows.
pub const NAMES: &[&str] = &["lru"];

/// A fresh policy by its name.
///
/// # Errors
/// [`Error::Config`] that lists the known names.
pub fn by_name(name: &str) -> Result<Box<dyn EvictionPolicy>> {
    match name {
        "lru" => Ok(Box::new(Lru::default())),
        _ => Err(Error::Config {
            name: "policy",
            value: name.to_owned(),
            remedy: format!("use one of: {}", NAMES.join(", ")),
        }),
    }
}
