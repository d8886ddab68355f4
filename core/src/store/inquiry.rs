//! What L4 has of some blocks. To ask takes time, so it can be done ahead of the plan that uses the answers, beside other work.

use std::fmt;
use std::sync::Arc;

use crate::key::{BlockKey, KeyMap};
use crate::run::RunHeader;
use crate::tier::{PinnedRun, SharedTier};

/// Answers of L4, by block. Nothing holds the runs there: what vanished since is a miss when it is read.
#[derive(Clone, Default)]
pub struct Inquiry {
    found: KeyMap<(Arc<dyn PinnedRun>, usize)>,
}

/// Whether the caller can take a run of L4: other machines wrote it.
pub(super) type Fits<'a> = &'a dyn Fn(&RunHeader) -> bool;

/// How a plan comes by what L4 has.
#[derive(Clone, Copy)]
pub(super) enum Beyond<'a> {
    /// Not at all.
    Nothing,
    /// It asks when it comes to a block that nothing nearer has, for all that are left.
    Ask(Fits<'a>),
    /// It was asked before.
    Asked(&'a Inquiry, Fits<'a>),
}

impl Inquiry {
    /// Asks, for at most the time-out of the tier.
    pub(super) fn of(l4: &dyn SharedTier, keys: &[BlockKey]) -> Self {
        let answers = keys.iter().zip(l4.find(keys));
        let found = answers.filter_map(|(key, answer)| Some((*key, answer?)));
        Self {
            found: found.collect(),
        }
    }

    /// The run that holds a block, with the block's position in it.
    pub(super) fn get(&self, key: &BlockKey) -> Option<(Arc<dyn PinnedRun>, usize)> {
        self.found.get(key).cloned()
    }

    /// How many blocks L4 has.
    pub fn blocks(&self) -> usize {
        self.found.len()
    }
}

impl fmt::Debug for Inquiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Inquiry({} blocks)", self.blocks())
    }
}
