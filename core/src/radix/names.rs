//! Names of nodes that outlive them, for policies that remember what they evicted.
//!
//! A name stands for the tokens of a prefix up to and with a node's first block, however the prefix was cut into nodes. It is a
//! chain of one step a block that can be taken back, so that cutting a node's end off costs what is cut off, not what stays.

use std::hash::{BuildHasher, RandomState};

use super::arena::{Arena, Node};
use crate::key::BlockKey;

/// Odd, so that multiplying by it can be undone; its bits look random.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
const INVERSE: u64 = inverse(MULTIPLIER);
const TURN: u32 = 23;

/// The inverse modulo 2^64 of an odd number; every round of Newton's method doubles the bits that are right.
const fn inverse(odd: u64) -> u64 {
    let mut inverse = odd;
    let mut round = 0;
    while round < 5 {
        inverse = inverse.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(inverse)));
        round += 1;
    }
    inverse
}

fn step(name: u64, block: u64) -> u64 {
    (name ^ block).rotate_left(TURN).wrapping_mul(MULTIPLIER)
}

fn back(name: u64, block: u64) -> u64 {
    name.wrapping_mul(INVERSE).rotate_right(TURN) ^ block
}

/// What a block adds to the name of what is before it.
#[derive(Debug)]
enum Spelling {
    /// Its tokens, hashed with secret keys, so that no prompt can be made to share a name with another one.
    Secret(RandomState),
    /// Its id, which is its only token.
    Id,
    /// Nothing: the name up to and with it is the one that was given for its first token.
    Given(Vec<u64>),
}

/// The name at the end of each node.
#[derive(Debug)]
pub(super) struct Names {
    spelling: Spelling,
    /// By the node's place in the arena; of a root, the name of its namespace.
    ends: Vec<u64>,
}

impl Names {
    /// Names that nobody can foretell.
    pub(super) fn secret() -> Self {
        Self::spelt(Spelling::Secret(RandomState::new()))
    }

    fn spelt(spelling: Spelling) -> Self {
        Self {
            spelling,
            ends: Vec::new(),
        }
    }

    /// Names that are the same in every run, of blocks of one token that is the block's id.
    pub(super) fn of_ids() -> Self {
        Self::spelt(Spelling::Id)
    }

    /// Names that are given by [`Self::give`], of blocks whose first token tells them from all others, wherever they are.
    pub(super) fn given() -> Self {
        Self::spelt(Spelling::Given(Vec::new()))
    }

    /// Says what a prefix is called whose last block begins with `token`: they are given for 0, 1, 2 and so on.
    pub(super) fn give(&mut self, token: u32, name: u64) {
        if let Spelling::Given(names) = &mut self.spelling {
            names.resize(names.len().max(token as usize + 1), 0);
            names[token as usize] = name;
        }
    }

    /// The name that a block makes of the one before it.
    fn step(&self, name: u64, block: u64) -> u64 {
        match self.spelling {
            Spelling::Given(_) => block,
            _ => step(name, block),
        }
    }

    fn block(&self, tokens: &[u32]) -> u64 {
        let first = tokens.first().copied();
        match &self.spelling {
            Spelling::Secret(secret) => secret.hash_one(tokens),
            Spelling::Id => first.map_or(0, u64::from),
            Spelling::Given(names) => first
                .and_then(|token| names.get(token as usize).copied())
                .unwrap_or(0),
        }
    }

    fn root(&self, namespace: &BlockKey) -> u64 {
        match &self.spelling {
            Spelling::Secret(secret) => secret.hash_one(namespace),
            Spelling::Id | Spelling::Given(_) => namespace.short(),
        }
    }

    /// The names of all blocks of a prompt, of which the last may be partial.
    pub(super) fn chain(
        &self,
        namespace: &BlockKey,
        tokens: &[u32],
        block_tokens: usize,
    ) -> impl Iterator<Item = u64> {
        let blocks = self.blocks(tokens, block_tokens);
        blocks.scan(self.root(namespace), |name, block| {
            *name = self.step(*name, block);
            Some(*name)
        })
    }

    fn set_end(&mut self, index: u32, name: u64) {
        let index = index as usize;
        if index >= self.ends.len() {
            self.ends.resize(index + 1, 0);
        }
        self.ends[index] = name;
    }

    fn blocks<'a>(
        &self,
        tokens: &'a [u32],
        block_tokens: usize,
    ) -> impl DoubleEndedIterator<Item = u64> + use<'a, '_> {
        let blocks = tokens.chunks(block_tokens);
        blocks.map(|block| self.block(block))
    }

    /// A namespace came in.
    pub(super) fn add_root(&mut self, index: u32, namespace: &BlockKey) {
        let name = self.root(namespace);
        self.set_end(index, name);
    }

    /// A node came in below one whose end is known.
    pub(super) fn add(&mut self, index: u32, node: &Node, block_tokens: usize) {
        let above = self.ends[node.parent as usize];
        let blocks = self.blocks(node.tokens(), block_tokens);
        let end = blocks.fold(above, |name, block| self.step(name, block));
        self.set_end(index, end);
    }

    /// The name of a node.
    pub(super) fn name(&self, node: &Node, block_tokens: usize) -> u64 {
        let above = self.ends[node.parent as usize];
        let first = self.blocks(node.tokens(), block_tokens).next();
        first.map_or(above, |block| self.step(above, block))
    }

    /// The node lost its last blocks, which held `cut`: what these are called.
    pub(super) fn trim(&mut self, index: u32, cut: &[u32], block_tokens: usize) -> u64 {
        let end = self.ends[index as usize];
        let (mut name, mut end) = (end, end);
        for block in self.blocks(cut, block_tokens).rev() {
            (name, end) = match self.spelling {
                Spelling::Given(_) => (block, block),
                _ => (end, back(end, block)),
            };
        }
        self.set_end(index, end);
        name
    }

    /// Checks the end of every node below `nodes`' first, the root of `namespace`; parents come before their children.
    pub(super) fn validate(
        &self,
        arena: &Arena,
        namespace: &BlockKey,
        nodes: &[u32],
        block_tokens: usize,
    ) -> Result<(), String> {
        if matches!(self.spelling, Spelling::Given(_)) {
            // Nothing follows from the end of a node.
            return Ok(());
        }
        for &index in nodes {
            let node = &arena[index];
            let expected = if node.is_root() {
                self.root(namespace)
            } else {
                let above = self.ends[node.parent as usize];
                let blocks = self.blocks(node.tokens(), block_tokens);
                blocks.fold(above, |name, block| self.step(name, block))
            };
            if self.ends[index as usize] != expected {
                return Err(format!("node {index} has a wrong name at its end"));
            }
        }
        Ok(())
    }
}
