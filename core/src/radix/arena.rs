//! The nodes, in one array with reused places, linked by index.

use std::ops::{Index, IndexMut};

use crate::key::BlockKey;

/// No node.
pub(super) const NONE: u32 = u32::MAX;

/// A node, for as long as it lives: its place is reused, its generation is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId {
    pub(super) index: u32,
    generation: u32,
}

/// A stretch of whole blocks, a partial block (always a leaf), or the root of a namespace (no blocks).
#[derive(Debug)]
pub(super) struct Node {
    /// Token ids, then block ids: one allocation.
    data: Box<[u32]>,
    /// Hash of (parent, first block): its key in the tree's table.
    pub(super) hash: u64,
    /// Blocks held.
    blocks: u32,
    /// Blocks on the path before this node.
    pub(super) start: u32,
    /// Locks on this node or below it.
    pub(super) locks: u32,
    pub(super) parent: u32,
    /// First child that begins with a whole block.
    pub(super) children: u32,
    /// First child that is a partial block.
    pub(super) tails: u32,
    pub(super) next: u32,
    pub(super) previous: u32,
    generation: u32,
    /// Digest of the chain up to the node's end, once computed; of a root, its namespace.
    pub(super) last_key: Option<BlockKey>,
}

impl Node {
    pub(super) fn new(tokens: &[u32], blocks: &[u32], parent: u32, start: u32) -> Self {
        let mut data = Vec::with_capacity(tokens.len() + blocks.len());
        data.extend_from_slice(tokens);
        data.extend_from_slice(blocks);
        Self {
            data: data.into_boxed_slice(),
            hash: 0,
            blocks: blocks.len() as u32,
            start,
            locks: 0,
            parent,
            children: NONE,
            tails: NONE,
            next: NONE,
            previous: NONE,
            generation: 0,
            last_key: None,
        }
    }

    pub(super) fn root(namespace: BlockKey) -> Self {
        Self {
            last_key: Some(namespace),
            ..Self::new(&[], &[], NONE, 0)
        }
    }

    pub(super) fn tokens(&self) -> &[u32] {
        &self.data[..self.data.len() - self.blocks as usize]
    }

    pub(super) fn blocks(&self) -> &[u32] {
        &self.data[self.data.len() - self.blocks as usize..]
    }

    /// Blocks on the path up to and with this node.
    pub(super) fn end(&self) -> usize {
        (self.start + self.blocks) as usize
    }

    pub(super) fn is_root(&self) -> bool {
        self.parent == NONE
    }

    pub(super) fn is_leaf(&self) -> bool {
        self.children == NONE && self.tails == NONE
    }

    pub(super) fn is_partial(&self, block_tokens: usize) -> bool {
        self.tokens().len() < self.blocks as usize * block_tokens
    }

    /// Cuts the node to its first `keep` blocks, of `tokens` tokens; hands over tokens and block ids of the rest in one piece.
    pub(super) fn truncate(&mut self, tokens: usize, keep: usize) -> Box<[u32]> {
        let rest = [&self.tokens()[tokens..], &self.blocks()[keep..]].concat();
        let mut data = std::mem::take(&mut self.data).into_vec();
        let blocks_at = data.len() - self.blocks as usize;
        data.copy_within(blocks_at..blocks_at + keep, tokens);
        data.truncate(tokens + keep);
        self.data = data.into_boxed_slice();
        self.blocks = keep as u32;
        rest.into_boxed_slice()
    }

    /// Cuts off the first `blocks` blocks, of `tokens` tokens, and returns the node that holds them; the rest starts later.
    pub(super) fn take_front(&mut self, tokens: usize, blocks: usize) -> Self {
        let front = Self::new(
            &self.tokens()[..tokens],
            &self.blocks()[..blocks],
            self.parent,
            self.start,
        );
        self.data = [&self.tokens()[tokens..], &self.blocks()[blocks..]]
            .concat()
            .into_boxed_slice();
        self.blocks -= blocks as u32;
        self.start += blocks as u32;
        front
    }

    /// Its tokens and block ids in one piece, and how many block ids there are.
    pub(super) fn into_data(self) -> (Box<[u32]>, usize) {
        (self.data, self.blocks as usize)
    }
}

/// Which of its parent's two lists a node is in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum List {
    Children,
    Tails,
}

#[derive(Debug)]
pub(super) struct Arena {
    nodes: Vec<Node>,
    /// First vacant place; vacant places are chained through `next`.
    vacant: u32,
    live: usize,
}

impl Arena {
    pub(super) fn new() -> Self {
        Self {
            nodes: Vec::new(),
            vacant: NONE,
            live: 0,
        }
    }

    pub(super) fn insert(&mut self, mut node: Node) -> u32 {
        self.live += 1;
        if self.vacant == NONE {
            self.nodes.push(node);
            return (self.nodes.len() - 1) as u32;
        }
        let index = self.vacant;
        let place = &mut self.nodes[index as usize];
        self.vacant = place.next;
        node.generation = place.generation;
        *place = node;
        index
    }

    /// Takes a node out; it must not be linked any more. Handles to it are stale from here on.
    pub(super) fn remove(&mut self, index: u32) -> Node {
        let mut vacant = Node::new(&[], &[], NONE, 0);
        vacant.next = self.vacant;
        vacant.generation = self[index].generation.wrapping_add(1);
        self.vacant = index;
        self.live -= 1;
        std::mem::replace(&mut self.nodes[index as usize], vacant)
    }

    pub(super) fn id(&self, index: u32) -> NodeId {
        NodeId {
            index,
            generation: self[index].generation,
        }
    }

    pub(super) fn get(&self, id: NodeId) -> Option<u32> {
        let node = self.nodes.get(id.index as usize)?;
        (node.generation == id.generation).then_some(id.index)
    }

    /// Nodes in use, roots included.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    fn head(&mut self, parent: u32, list: List) -> &mut u32 {
        let parent = &mut self[parent];
        match list {
            List::Children => &mut parent.children,
            List::Tails => &mut parent.tails,
        }
    }

    /// Puts a node in front of a list of its parent.
    pub(super) fn link(&mut self, index: u32, list: List) {
        let parent = self[index].parent;
        let next = std::mem::replace(self.head(parent, list), index);
        if next != NONE {
            self[next].previous = index;
        }
        let node = &mut self[index];
        node.next = next;
        node.previous = NONE;
    }

    /// Takes a node out of a list of its parent.
    pub(super) fn unlink(&mut self, index: u32, list: List) {
        let Node {
            parent,
            next,
            previous,
            ..
        } = self[index];
        if previous == NONE {
            *self.head(parent, list) = next;
        } else {
            self[previous].next = next;
        }
        if next != NONE {
            self[next].previous = previous;
        }
    }

    /// The node and those that follow it in its list.
    pub(super) fn siblings(&self, first: u32) -> impl Iterator<Item = u32> {
        let some = |index| (index != NONE).then_some(index);
        std::iter::successors(some(first), move |&index| some(self[index].next))
    }

    /// The node and its ancestors up to and with the root.
    pub(super) fn path(&self, lowest: u32) -> impl Iterator<Item = u32> {
        let some = |index| (index != NONE).then_some(index);
        std::iter::successors(some(lowest), move |&index| some(self[index].parent))
    }
}

impl Index<u32> for Arena {
    type Output = Node;

    fn index(&self, index: u32) -> &Node {
        &self.nodes[index as usize]
    }
}

impl IndexMut<u32> for Arena {
    fn index_mut(&mut self, index: u32) -> &mut Node {
        &mut self.nodes[index as usize]
    }
}

const _: () = assert!(size_of::<Node>() <= 96);
