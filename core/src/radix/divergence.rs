//! Where a prompt leaves what the tree holds: for explaining a miss, so it counts as no use of anything.

use super::arena::NONE;
use super::tree::{RadixTree, common_tokens};
use crate::key::BlockKey;

/// How far a prompt is known, to the token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Divergence {
    /// Leading tokens that match in whole blocks.
    pub matched: usize,
    /// Leading tokens that the closest cached sequence shares, whole blocks or not.
    pub common: usize,
    /// What that sequence has where the prompt goes another way; none if it ends there, or the prompt does.
    pub cached: Option<u32>,
}

impl RadixTree {
    /// Compares a prompt with the cached sequence that shares the most tokens with it. Touches nothing; costs O(matched tokens +
    /// children of the last node).
    pub fn divergence(&self, namespace: &BlockKey, tokens: &[u32]) -> Divergence {
        let (node, matched) = self.find(namespace, tokens);
        let mut found = Divergence {
            matched,
            common: matched,
            cached: None,
        };
        let rest = &tokens[matched..];
        if node == NONE || rest.is_empty() {
            return found;
        }
        let here = &self.arena[node];
        let inside = matched - here.start as usize * self.block_tokens;
        let mut closest = None;
        let mut compare = |own: &[u32]| {
            let same = common_tokens(own, rest);
            if closest.is_none_or(|most| same > most) {
                closest = Some(same);
                found.common = matched + same;
                found.cached = own.get(same).copied().filter(|_| same < rest.len());
            }
        };
        match here.tokens().get(inside..) {
            Some(own) if !own.is_empty() => compare(own),
            _ => {
                let children = self.arena.siblings(here.children);
                for index in children.chain(self.arena.siblings(here.tails)) {
                    compare(self.arena[index].tokens());
                }
            }
        }
        found
    }
}
