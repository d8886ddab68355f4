//! Namespaces whose requests left L4 alone because computing was quicker. To ask takes time, too: for a while nobody does.

use std::collections::HashMap;

use crate::key::BlockKey;
use crate::sync::Mutex;

/// One in so many requests asks all the same.
const REQUESTS: u32 = 16;
/// Namespaces remembered; of more, all are forgotten.
const NAMESPACES: usize = 1024;

#[derive(Clone, Copy, Debug)]
struct Left {
    /// What was left alone.
    tokens: usize,
    /// How many have not asked since.
    requests: u32,
}

/// What was left alone in L4, by namespace.
#[derive(Debug, Default)]
pub(super) struct Unasked(Mutex<HashMap<BlockKey, Left>>);

impl Unasked {
    /// Whether a request that could find `tokens` tokens in L4 does not ask: as many were left alone, a short while ago.
    pub(super) fn passes(&self, namespace: &BlockKey, tokens: usize) -> bool {
        let mut namespaces = self.0.lock();
        let Some(left) = namespaces.get_mut(namespace) else {
            return false;
        };
        left.requests += 1;
        let passes = left.requests < REQUESTS && tokens <= left.tokens;
        if !passes {
            namespaces.remove(namespace);
        }
        passes
    }

    /// A request restores so many tokens of those that it found in L4.
    pub(super) fn note(&self, namespace: &BlockKey, found: usize, restored: usize) {
        let mut namespaces = self.0.lock();
        if restored > 0 {
            namespaces.remove(namespace);
        } else if found > 0 {
            if namespaces.len() >= NAMESPACES {
                namespaces.clear();
            }
            let left = Left {
                tokens: found,
                requests: 0,
            };
            namespaces.insert(*namespace, left);
        }
    }
}
