//! Putting a prompt in, and splitting nodes.

use super::arena::{List, Node};
use super::tree::{Match, RadixTree};
use crate::error::{Error, Result};
use crate::key::BlockKey;

/// What became of an insert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inserted {
    /// Tokens that the tree held already: whole blocks, or all tokens if a partial last block was held too. The tree did not
    /// take the blocks that hold them, it took those that follow.
    pub present: usize,
    /// The caller's blocks that the tree did not take, counted from the first.
    pub duplicates: usize,
    /// The whole blocks of the prompt, ready to be locked.
    pub path: Match,
    /// A partial block that the new tokens made superfluous; the tree holds it no longer.
    pub displaced: Option<u32>,
}

impl RadixTree {
    /// Inserts a prompt: `blocks` hold `tokens` in order, the last one perhaps only in part. What it finds of the path is as
    /// new as what it adds, but not used once more: the request that computed the rest has matched it.
    ///
    /// A partial last block is kept as a leaf of its own unless one that reaches as far is there; a shorter one that it, or a
    /// whole block, continues is displaced. Partial blocks are reused by copy, so no lock is ever on one.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for no tokens, or a number of blocks other than the tokens need; nothing is changed then.
    pub fn insert(
        &mut self,
        namespace: &BlockKey,
        tokens: &[u32],
        blocks: &[u32],
    ) -> Result<Inserted> {
        let needed = tokens.len().div_ceil(self.block_tokens);
        if tokens.is_empty() {
            return Err(Error::invalid("an empty prompt cannot be inserted"));
        }
        if blocks.len() != needed {
            return Err(Error::invalid(format!(
                "{} tokens need {needed} blocks of {}, got {}",
                tokens.len(),
                self.block_tokens,
                blocks.len()
            )));
        }
        let root = self.root(namespace);
        let (node, matched) = self.walk(root, tokens);
        let (body, tail) = tokens.split_at(self.whole_blocks(tokens).len());
        if matched == body.len() {
            let holder = self.tail_holder(node, matched, tail);
            if tail.is_empty() || holder.is_some() {
                if let Some(holder) = holder
                    && holder != node
                {
                    self.policy.renew(holder);
                }
                self.renew(node);
                return Ok(Inserted {
                    present: tokens.len(),
                    duplicates: needed,
                    path: self.match_at(*namespace, node, body.len()),
                    displaced: None,
                });
            }
        }
        let duplicates = matched / self.block_tokens;
        let node = self.split(node, duplicates);
        let displaced = self.displace_tail(node, &tokens[matched..]);
        let (own, tail_block) =
            blocks[duplicates..].split_at((body.len() - matched) / self.block_tokens);
        let body_end = match own {
            [] => node,
            _ => self.attach(node, &body[matched..], own, List::Children),
        };
        let leaf = match tail {
            [] => body_end,
            _ => self.attach(body_end, tail, tail_block, List::Tails),
        };
        // The leaf's side is announced first, so that the root's side ends newest.
        let mut new = leaf;
        while new != node {
            self.announce(new);
            new = self.arena[new].parent;
        }
        self.renew(node);
        self.refresh_candidate(node);
        self.refresh_candidate(leaf);
        Ok(Inserted {
            present: matched,
            duplicates,
            path: self.match_at(*namespace, body_end, body.len()),
            displaced,
        })
    }

    pub(super) fn root(&mut self, namespace: &BlockKey) -> u32 {
        if let Some(&root) = self.roots.get(namespace) {
            return root;
        }
        let root = self.arena.insert(Node::root(*namespace));
        if let Some(names) = &mut self.names {
            names.add_root(root, namespace);
        }
        self.roots.insert(*namespace, root);
        root
    }

    /// The node that holds all of `tail` behind the first `matched` tokens of the path to `node`: the node itself, or the
    /// partial block with the lowest id.
    fn tail_holder(&self, node: u32, matched: usize, tail: &[u32]) -> Option<u32> {
        let here = &self.arena[node];
        let inside = matched - here.start as usize * self.block_tokens;
        if inside < here.tokens().len() {
            return here.tokens()[inside..].starts_with(tail).then_some(node);
        }
        let holds = |&index: &u32| self.arena[index].tokens().starts_with(tail);
        let tails = self.arena.siblings(here.tails).filter(holds);
        tails.min_by_key(|&index| self.arena[index].blocks()[0])
    }

    /// Drops the partial block under `parent` that `rest` continues: there is at most one, since none continues another.
    pub(super) fn displace_tail(&mut self, parent: u32, rest: &[u32]) -> Option<u32> {
        let shorter = {
            let mut tails = self.arena.siblings(self.arena[parent].tails);
            tails.find(|&index| rest.starts_with(self.arena[index].tokens()))?
        };
        self.policy.remove(shorter);
        Some(self.detach(shorter).blocks()[0])
    }

    /// Links a new leaf in.
    pub(super) fn attach(
        &mut self,
        parent: u32,
        tokens: &[u32],
        blocks: &[u32],
        list: List,
    ) -> u32 {
        let mut node = Node::new(tokens, blocks, parent, self.arena[parent].end() as u32);
        let hash = self.hash(parent, &tokens[..tokens.len().min(self.block_tokens)]);
        node.hash = hash;
        self.stats.nodes += 1;
        self.stats.total_blocks += blocks.len();
        if !self.counts_as_leaf(parent) {
            self.stats.leaves += 1;
        }
        let index = self.arena.insert(node);
        if let Some(names) = &mut self.names {
            names.add(index, &self.arena[index], self.block_tokens);
        }
        self.arena.link(index, list);
        if list == List::Children {
            let arena = &self.arena;
            self.table
                .insert_unique(hash, index, |&index| arena[index].hash);
        }
        index
    }

    /// Makes a new node known to the policy, as used just now.
    pub(super) fn announce(&mut self, index: u32) {
        let (name, meta) = (self.name(index), self.meta(index));
        self.policy.insert(index, name, meta);
    }

    /// Takes a leaf out of every structure; the policy was told why.
    pub(super) fn detach(&mut self, index: u32) -> Node {
        let node = &self.arena[index];
        let parent = node.parent;
        let list = if node.is_partial(self.block_tokens) {
            List::Tails
        } else {
            List::Children
        };
        if list == List::Children
            && let Ok(entry) = self.table.find_entry(node.hash, |&other| other == index)
        {
            entry.remove();
        }
        self.stats.nodes -= 1;
        self.stats.total_blocks -= node.blocks().len();
        self.arena.unlink(index, list);
        if !self.counts_as_leaf(parent) {
            self.stats.leaves -= 1;
        }
        self.arena.remove(index)
    }

    /// A root is no leaf, even if it has no children for a moment.
    fn counts_as_leaf(&self, index: u32) -> bool {
        let node = &self.arena[index];
        node.is_leaf() && !node.is_root()
    }

    /// Makes the path's first `blocks` blocks end with a node: splits `index`, in which they end, if need be. The new node is
    /// the upper one, so that handles, locks and children of the old one stay right.
    pub(super) fn split(&mut self, index: u32, blocks: usize) -> u32 {
        let node = &self.arena[index];
        if blocks == node.end() {
            return index;
        }
        let keep = blocks - node.start as usize;
        let (hash, locks) = (node.hash, node.locks);
        self.arena.unlink(index, List::Children);
        let mut head = self.arena[index].take_front(keep * self.block_tokens, keep);
        head.hash = hash;
        head.locks = locks;
        let head = self.arena.insert(head);
        self.arena.link(head, List::Children);
        self.arena[index].parent = head;
        self.arena.link(index, List::Children);

        let below = self.hash(head, &self.arena[index].tokens()[..self.block_tokens]);
        self.arena[index].hash = below;
        if let Some(entry) = self.table.find_mut(hash, |&other| other == index) {
            *entry = head;
        }
        let arena = &self.arena;
        self.table
            .insert_unique(below, index, |&index| arena[index].hash);
        if let Some(names) = &mut self.names {
            names.add(head, &self.arena[head], self.block_tokens);
        }
        let (above, below) = (self.meta(head), self.meta(index));
        self.policy
            .split(head, above, index, self.name(index), below);
        self.stats.nodes += 1;
        head
    }

    /// Tells the policy whether a node may be evicted: unlocked leaves may.
    pub(super) fn refresh_candidate(&mut self, index: u32) {
        let node = &self.arena[index];
        if !node.is_root() {
            self.policy
                .set_candidate(index, node.locks == 0 && node.is_leaf());
        }
    }
}
