//! What the policies of the lab keep of entries, and their candidates in the order of a rank.

use std::fmt;

use crate::policy::order::Order;
use crate::policy::{EntryMeta, Slot};

/// What an entry counts for in lists and ghosts: its bytes, so that a list of entries of several blocks is as long as it is large.
pub(super) fn weight(meta: &EntryMeta) -> u64 {
    meta.bytes.max(1)
}

/// Numbers for uses in their order. None is 0.
#[derive(Debug, Default)]
pub(super) struct Stamps(u64);

impl Stamps {
    pub(super) fn next(&mut self) -> u64 {
        self.0 += 1;
        self.0
    }
}

/// An entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held<H> {
    pub(super) ghost: u64,
    pub(super) meta: EntryMeta,
    /// What its policy keeps of it.
    pub(super) history: H,
}

impl<H> Held<H> {
    pub(super) fn weight(&self) -> u64 {
        weight(&self.meta)
    }
}

/// Entries as the policies of the lab keep them.
pub(super) type Ranks<H, R> = Order<Held<H>, R>;

/// Where a rank is a class and an order within it, every class is a list.
impl<H, C: Copy + Ord + fmt::Debug, const N: usize> Ranks<H, (C, [u64; N])> {
    /// The first candidate of a class.
    pub(super) fn first_of(&self, class: C) -> Option<Slot> {
        let ((found, _), slot) = self.first_from(((class, [0; N]), 0))?;
        (found == class).then_some(slot)
    }

    /// The first candidate of each class, and its order. Costs O(log candidates) a class.
    pub(super) fn heads(&self) -> impl Iterator<Item = ((C, [u64; N]), Slot)> {
        let first = self.first().and_then(|slot| Some((self.rank(slot)?, slot)));
        std::iter::successors(first, |((class, _), _)| {
            self.first_behind(((*class, [u64::MAX; N]), Slot::MAX))
        })
    }

    /// The order of the last candidate of a class.
    pub(super) fn last_of(&self, class: C) -> Option<[u64; N]> {
        let ((found, order), _) = self.last_upto(((class, [u64::MAX; N]), Slot::MAX))?;
        (found == class).then_some(order)
    }
}
