//! What a lookup says of a block, and the steps that would restore a prefix.

use std::sync::Arc;

use crate::key::BlockKey;
use crate::run::RunHeader;
use crate::tier::{PinnedRun, TierId};

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Nowhere.
    Miss,
    /// In a tier, ready to be read.
    Hit(TierId),
    /// Accepted for L3, not written yet.
    Pending,
}

/// One run to read, pinned while the step lives.
#[derive(Clone, Debug)]
pub struct Step {
    /// Where it is read from.
    pub tier: TierId,
    /// The run.
    pub run: Arc<dyn PinnedRun>,
    /// Position in the run of the first wanted block.
    pub first: usize,
    /// How many blocks from there on are wanted.
    pub blocks: usize,
}

/// The leading consecutive blocks of a list of keys that can be read.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// In the order of the keys.
    pub steps: Vec<Step>,
}

impl Step {
    /// Whether the bytes that it brings have been through a lossy codec.
    pub(crate) fn is_decoded(&self) -> bool {
        let terms = &self.run.header().terms;
        let below = matches!(self.tier, TierId::L3 | TierId::L4);
        terms.decoded || below && terms.codec.is_lossy()
    }
}

impl Plan {
    /// Blocks in all.
    pub fn blocks(&self) -> usize {
        self.steps.iter().map(|step| step.blocks).sum()
    }

    /// Payload bytes that reading it moves; runs are read whole.
    pub fn bytes(&self) -> u64 {
        self.steps
            .iter()
            .map(|step| step.run.header().payload_bytes())
            .sum()
    }
}

/// How many of `keys` a run holds in a row from its block `first` on. `keys[0]` is that block's.
pub(super) fn covered(header: &RunHeader, first: usize, keys: &[BlockKey]) -> usize {
    let stored = header.keys.get(first..).unwrap_or_default();
    stored.iter().zip(keys).take_while(|(a, b)| a == b).count()
}
