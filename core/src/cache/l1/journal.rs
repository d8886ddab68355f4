//! What is written down of L1 while it is captured, under its lock.

use std::collections::HashMap;

use super::{HoldId, L1};
use crate::block::BlockId;
use crate::key::BlockKey;
use crate::sim::capture::{Claim, L1Event, Name, Tap};

/// Where it goes, and what the tokens of holds were called when they were last written down.
#[derive(Debug)]
pub(in crate::cache) struct Journal {
    tap: Tap,
    names: HashMap<HoldId, Vec<Name>>,
}

impl Journal {
    pub(in crate::cache) fn new(tap: Tap) -> Self {
        Self {
            tap,
            names: HashMap::new(),
        }
    }
}

pub(super) fn ids(blocks: &[BlockId]) -> Vec<u32> {
    blocks.iter().map(|block| block.0).collect()
}

impl L1 {
    pub(super) fn note(&self, event: impl FnOnce() -> L1Event) {
        if let Some(journal) = &self.journal {
            journal.tap.l1(event());
        }
    }

    fn names(&self, journal: &Journal, namespace: &BlockKey, tokens: &[u32]) -> Vec<Name> {
        let names = self.tree.block_names(namespace, tokens).into_iter();
        names.map(|name| journal.tap.capture().name(name)).collect()
    }

    /// How many leading blocks may be found, if not all.
    fn limit(&self, tokens: &[u32], live: usize) -> Option<u64> {
        (live < tokens.len()).then_some((live / self.block_tokens) as u64)
    }

    /// A request begins, whose hold is the next one.
    pub(super) fn note_request(
        &mut self,
        category: u32,
        namespace: &BlockKey,
        tokens: &[u32],
        live: usize,
    ) {
        let Some(journal) = &self.journal else { return };
        let names = self.names(journal, namespace, tokens);
        let claim = Claim {
            order: journal.tap.order(),
            namespace: journal.tap.key(namespace),
            live: self.limit(tokens, live),
        };
        let capture = journal.tap.capture();
        capture.request(category, self.block_tokens, names.clone(), Some(claim));
        self.keep_names(self.next_hold, names);
    }

    pub(super) fn note_adopt(
        &mut self,
        hold: HoldId,
        namespace: &BlockKey,
        tokens: &[u32],
        live: usize,
    ) {
        let Some(journal) = &self.journal else { return };
        let names = self.names(journal, namespace, tokens);
        let before = journal.names.get(&hold).map_or(&[][..], Vec::as_slice);
        let same = before.iter().zip(&names);
        let shared = same.take_while(|(a, b)| a == b).count();
        journal.tap.l1(L1Event::Adopt {
            hold,
            shared: shared as u64,
            blocks: names[shared..].to_vec(),
            live: self.limit(tokens, live),
        });
        self.keep_names(hold, names);
    }

    pub(super) fn note_fork(&mut self, hold: HoldId) {
        let Some(journal) = &mut self.journal else {
            return;
        };
        journal.tap.l1(L1Event::Fork { hold });
        if let Some(names) = journal.names.get(&hold).cloned() {
            journal.names.insert(self.next_hold, names);
        }
    }

    pub(super) fn note_use(&self, namespace: &BlockKey, tokens: &[u32], live: usize) {
        if let Some(journal) = &self.journal {
            journal.tap.l1(L1Event::Use {
                namespace: journal.tap.key(namespace),
                blocks: self.names(journal, namespace, tokens),
                live: self.limit(tokens, live),
            });
        }
    }

    pub(super) fn note_clear(&self, namespace: Option<&BlockKey>) {
        if let Some(journal) = &self.journal {
            let namespace = namespace.map(|namespace| journal.tap.key(namespace));
            journal.tap.l1(L1Event::Clear { namespace });
        }
    }

    fn keep_names(&mut self, hold: HoldId, names: Vec<Name>) {
        if let Some(journal) = &mut self.journal {
            journal.names.insert(hold, names);
        }
    }

    /// A hold ended.
    pub(super) fn forget_names(&mut self, hold: HoldId) {
        if let Some(journal) = &mut self.journal {
            journal.names.remove(&hold);
        }
    }
}
