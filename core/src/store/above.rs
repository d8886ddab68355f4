//! What lies above a store: an L1, where a chain may begin that goes on below.

use std::sync::{Arc, Weak};

use crate::sync::Mutex;

use crate::key::BlockKey;
use crate::run::{RunHeader, RunSource};

/// A tier above a store, which may be asked for the beginnings of chains.
pub trait Above: Send + Sync {
    /// The blocks of a chain up to and with `key`, from behind the last one that `known` names, as runs, the first one first.
    /// Their bytes stay as they are while the sources live. Empty if the block is not there.
    fn lend(
        self: Arc<Self>,
        key: &BlockKey,
        known: &dyn Fn(&BlockKey) -> bool,
    ) -> Vec<(RunHeader, RunSource)>;

    /// Keys of the last blocks of all chains.
    fn ends(&self) -> Vec<BlockKey>;
}

/// The tiers above a store. They own handles of the store, not the other way round.
#[derive(Default)]
pub(super) struct Uppers(Mutex<Vec<Weak<dyn Above>>>);

impl Uppers {
    pub(super) fn add(&self, above: Weak<dyn Above>) {
        let mut uppers = self.0.lock();
        uppers.retain(|upper| upper.strong_count() > 0);
        uppers.push(above);
    }

    pub(super) fn all(&self) -> Vec<Arc<dyn Above>> {
        self.0.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// [`Above::lend`] of the first that has the block.
    pub(super) fn lend(
        &self,
        key: &BlockKey,
        known: &dyn Fn(&BlockKey) -> bool,
    ) -> Option<Vec<(RunHeader, RunSource)>> {
        let mut uppers = self.all().into_iter();
        uppers.find_map(|upper| Some(upper.lend(key, known)).filter(|runs| !runs.is_empty()))
    }
}
