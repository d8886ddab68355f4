//! The tree itself: what it counts, and how a prefix is found.

use std::cell::Cell;
use std::hash::{BuildHasher, Hasher};

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashTable};

use super::arena::{Arena, NONE, NodeId};
use super::lock::LockTable;
use super::names::Names;
use crate::error::{Error, Result};
use crate::key::BlockKey;
use crate::policy::{EntryMeta, EvictionPolicy, recompute_cost};
use crate::tokens::{TokenId, check_range};

/// The most tokens that a block may have.
const MAX_BLOCK_TOKENS: usize = 1 << 16;
/// Tokens that are compared at once: one `memcmp` of 1 KiB, after which only a stretch this long is searched block by block.
const STRIDE: usize = 256;

/// How much a tree holds. Kept as it changes: reading it costs nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RadixStats {
    /// Nodes that hold blocks.
    pub nodes: usize,
    /// Nodes without children.
    pub leaves: usize,
    /// Blocks held.
    pub total_blocks: usize,
    /// Blocks of locked nodes.
    pub protected_blocks: usize,
}

impl RadixStats {
    /// Blocks that eviction can free.
    pub fn evictable_blocks(&self) -> usize {
        self.total_blocks - self.protected_blocks
    }
}

/// The longest prefix that was found: a place in the tree, on a block border. It stays right when nodes split; once a block
/// of it is evicted, every use is refused. Lock it to keep it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Match {
    namespace: BlockKey,
    node: Option<NodeId>,
    blocks: u32,
    tokens: usize,
}

impl Match {
    /// The namespace that was searched.
    pub fn namespace(&self) -> &BlockKey {
        &self.namespace
    }

    /// Tokens that matched: whole blocks, 0 for a miss.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Blocks that matched.
    pub fn blocks(&self) -> usize {
        self.blocks as usize
    }

    /// The node that holds the last matching block; none for a miss.
    pub fn node(&self) -> Option<NodeId> {
        self.node
    }
}

/// A block whose first tokens are those that follow a match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialBlock {
    /// The block to copy from.
    pub block: u32,
    /// How many of its tokens match: at least 1, fewer than a whole block.
    pub tokens: usize,
}

/// A match and the best partial block behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialMatch {
    /// The whole blocks.
    pub whole: Match,
    /// What can be copied beyond them.
    pub partial: Option<PartialBlock>,
}

/// The radix tree. Not shared: its owner's mutex guards it together with the block pool.
#[derive(Debug)]
pub struct RadixTree {
    pub(super) block_tokens: usize,
    pub(super) arena: Arena,
    /// Nodes by (parent, first block); partial ones and roots are not in it.
    pub(super) table: HashTable<u32>,
    hasher: RandomState,
    pub(super) roots: HashMap<BlockKey, u32, RandomState>,
    pub(super) policy: Box<dyn EvictionPolicy>,
    /// Kept if the policy wants them.
    pub(super) names: Option<Names>,
    /// What kind of request it is that uses the tree now.
    category: u32,
    pub(super) locks: LockTable,
    pub(super) stats: RadixStats,
}

impl RadixTree {
    /// An empty tree over blocks of `block_tokens` tokens, from which `policy` chooses what to evict.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] unless `block_tokens` is 1 to 65536.
    pub fn new(block_tokens: usize, policy: Box<dyn EvictionPolicy>) -> Result<Self> {
        if !(1..=MAX_BLOCK_TOKENS).contains(&block_tokens) {
            return Err(Error::invalid(format!(
                "block_tokens is 1 to {MAX_BLOCK_TOKENS}, got {block_tokens}"
            )));
        }
        Ok(Self {
            block_tokens,
            arena: Arena::new(),
            table: HashTable::new(),
            hasher: RandomState::default(),
            roots: HashMap::default(),
            names: policy.wants_ghosts().then(Names::secret),
            policy,
            category: 0,
            locks: LockTable::default(),
            stats: RadixStats::default(),
        })
    }

    /// An empty tree over blocks of one token each, which is the block's id: what it evicts depends on the ids alone, in every run.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn of_ids(policy: Box<dyn EvictionPolicy>) -> Result<Self> {
        let mut tree = Self::new(1, policy)?;
        tree.names = tree.names.map(|_| Names::of_ids());
        Ok(tree)
    }

    /// An empty tree over blocks whose first token tells them from all others, and says what the policy calls them: see
    /// [`name_block`](Self::name_block).
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(crate) fn of_named_blocks(
        block_tokens: usize,
        policy: Box<dyn EvictionPolicy>,
    ) -> Result<Self> {
        let mut tree = Self::new(block_tokens, policy)?;
        tree.names = tree.names.map(|_| Names::given());
        Ok(tree)
    }

    /// Says what a prefix is called whose last block begins with `token`.
    pub(crate) fn name_block(&mut self, token: u32, name: u64) {
        if let Some(names) = &mut self.names {
            names.give(token, name);
        }
    }

    /// What the policy would call a node that began with each of a prompt's whole blocks; nothing if it does not ask.
    pub(crate) fn block_names(&self, namespace: &BlockKey, tokens: &[u32]) -> Vec<u64> {
        let names = self.names.iter();
        let tokens = self.whole_blocks(tokens);
        names
            .flat_map(|names| names.chain(namespace, tokens, self.block_tokens))
            .collect()
    }

    /// Tells the policy that a request of some category begins, at a time in milliseconds: what is used and inserted from now
    /// on is its.
    pub fn request(&mut self, now_ms: u64, category: u32) {
        self.category = category;
        self.policy.request(now_ms, category);
    }

    /// Tokens in a block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// What the tree holds.
    pub fn stats(&self) -> RadixStats {
        self.stats
    }

    /// The namespaces that hold anything, in no order.
    pub fn namespaces(&self) -> impl Iterator<Item = &BlockKey> {
        self.roots.keys()
    }

    /// Every block that the tree holds, in no order.
    pub fn all_blocks(&self) -> impl Iterator<Item = u32> {
        let nodes = self.roots.values().flat_map(|&root| self.subtree(root));
        nodes.flat_map(|index| self.arena[index].blocks().iter().copied())
    }

    /// The longest prefix of `tokens` in whole blocks. Counts as a use of every node it touches, the root's side last. Costs
    /// O(matched tokens), allocates nothing; [`blocks_of`](Self::blocks_of) fetches the blocks.
    pub fn match_prefix(&mut self, namespace: &BlockKey, tokens: &[u32]) -> Match {
        let (node, matched) = self.find(namespace, tokens);
        self.touch(node);
        self.match_at(*namespace, node, matched)
    }

    /// As [`match_prefix`](Self::match_prefix), but counts as no use.
    pub fn peek_prefix(&self, namespace: &BlockKey, tokens: &[u32]) -> Match {
        let (node, matched) = self.find(namespace, tokens);
        self.match_at(*namespace, node, matched)
    }

    /// As [`match_prefix`](Self::match_prefix), of ids as a tokenizer gives them: compared where they lie, in one pass.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] that names the first id outside of 0..=4294967295; that counts as no use.
    pub fn match_wide(&mut self, namespace: &BlockKey, tokens: &[Cell<i64>]) -> Result<Match> {
        let (node, matched) = self.find(namespace, tokens);
        // What matched is in range: the tree holds no other ids.
        check_range(tokens, matched)?;
        self.touch(node);
        Ok(self.match_at(*namespace, node, matched))
    }

    /// As [`match_prefix`](Self::match_prefix), with the block that shares the most tokens beyond the whole blocks; of several,
    /// the one with the lowest block id. Its node counts as used too. Costs O(children of the last node) more.
    pub fn match_partial(&mut self, namespace: &BlockKey, tokens: &[u32]) -> PartialMatch {
        let (node, matched) = self.find(namespace, tokens);
        let source = self.best_partial(node, matched, &tokens[matched..]);
        if let Some((source, _)) = source
            && source != node
        {
            self.policy.touch(source);
        }
        self.touch(node);
        PartialMatch {
            whole: self.match_at(*namespace, node, matched),
            partial: source.map(|(_, partial)| partial),
        }
    }

    /// Appends the ids of the matched blocks to `blocks`, in order.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if blocks of the match were evicted since.
    pub fn blocks_of(&self, found: &Match, blocks: &mut Vec<u32>) -> Result<()> {
        let Some(lowest) = self.resolve(found)? else {
            return Ok(());
        };
        let base = blocks.len();
        let mut end = found.blocks();
        blocks.resize(base + end, 0);
        for index in self.arena.path(lowest) {
            let node = &self.arena[index];
            let start = node.start as usize;
            blocks[base + start..base + end].copy_from_slice(&node.blocks()[..end - start]);
            end = start;
        }
        Ok(())
    }

    /// The node that holds the last block of a match; none for a miss.
    pub(super) fn resolve(&self, found: &Match) -> Result<Option<u32>> {
        let Some(id) = found.node else {
            return Ok(None);
        };
        let end = found.blocks();
        self.arena
            .get(id)
            .filter(|&index| self.arena[index].end() >= end)
            // The node may have split since: the match then ends in one of its ancestors.
            .and_then(|index| {
                let mut path = self.arena.path(index);
                path.find(|&index| (self.arena[index].start as usize) < end)
            })
            .map(Some)
            .ok_or_else(|| {
                Error::invalid(format!(
                    "a match of {} tokens is stale: its blocks were evicted; match again and lock it",
                    found.tokens
                ))
            })
    }

    pub(super) fn match_at(&self, namespace: BlockKey, node: u32, tokens: usize) -> Match {
        Match {
            namespace,
            node: (tokens > 0).then(|| self.arena.id(node)),
            blocks: (tokens / self.block_tokens) as u32,
            tokens,
        }
    }

    /// Uses the path down to a node: the leaf's side first, so that the root's side is newest and leaves age first.
    pub(super) fn touch(&mut self, lowest: u32) {
        for index in self.arena.path(lowest) {
            if !self.arena[index].is_root() {
                self.policy.touch(index);
            }
        }
    }

    /// As [`touch`](Self::touch), for a path that was extended.
    pub(super) fn renew(&mut self, lowest: u32) {
        for index in self.arena.path(lowest) {
            if !self.arena[index].is_root() {
                self.policy.renew(index);
            }
        }
    }

    /// What the policy is told of a node.
    pub(super) fn meta(&self, index: u32) -> EntryMeta {
        let node = &self.arena[index];
        let tokens = node.tokens().len() as u32;
        EntryMeta {
            bytes: node.blocks().len() as u64,
            tokens,
            depth: node.start,
            cost: recompute_cost(tokens, u64::from(node.start) * self.block_tokens as u64),
            category: self.category,
        }
    }

    /// What the policy calls a node; 0 if it does not ask.
    pub(super) fn name(&self, index: u32) -> u64 {
        let names = self.names.as_ref();
        names.map_or(0, |names| names.name(&self.arena[index], self.block_tokens))
    }

    /// The node in which the longest prefix ends ([`NONE`] for an unknown namespace), and how many tokens matched.
    pub(super) fn find<T: TokenId>(&self, namespace: &BlockKey, tokens: &[T]) -> (u32, usize) {
        match self.roots.get(namespace) {
            Some(&root) => self.walk(root, tokens),
            None => (NONE, 0),
        }
    }

    pub(super) fn walk<T: TokenId>(&self, root: u32, tokens: &[T]) -> (u32, usize) {
        let tokens = self.whole_blocks(tokens);
        let (mut node, mut matched) = (root, 0);
        while matched < tokens.len() {
            let rest = &tokens[matched..];
            let Some(child) = self.child(node, &rest[..self.block_tokens]) else {
                break;
            };
            let own = self.arena[child].tokens();
            let common = common_blocks(own, rest, self.block_tokens);
            matched += common;
            node = child;
            if common < own.len() {
                break;
            }
        }
        (node, matched)
    }

    pub(super) fn whole_blocks<'a, T>(&self, tokens: &'a [T]) -> &'a [T] {
        &tokens[..tokens.len() - tokens.len() % self.block_tokens]
    }

    /// The child of `parent` that begins with `block`.
    pub(super) fn child<T: TokenId>(&self, parent: u32, block: &[T]) -> Option<u32> {
        let is_it = |&index: &u32| {
            let node = &self.arena[index];
            node.parent == parent && T::all_equal(block, &node.tokens()[..block.len()])
        };
        self.table.find(self.hash(parent, block), is_it).copied()
    }

    /// The hash of a node's place among its siblings.
    pub(super) fn hash<T: TokenId>(&self, parent: u32, block: &[T]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u64(u64::from(parent));
        let (pairs, odd) = block.as_chunks::<2>();
        for [low, high] in pairs {
            hasher.write_u64(u64::from(low.id()) | u64::from(high.id()) << 32);
        }
        for token in odd {
            hasher.write_u32(token.id());
        }
        hasher.finish()
    }

    /// The node and block that share the most tokens with `rest`, behind the first `matched` tokens of the path to `node`.
    fn best_partial(&self, node: u32, matched: usize, rest: &[u32]) -> Option<(u32, PartialBlock)> {
        if node == NONE || rest.is_empty() {
            return None;
        }
        let here = &self.arena[node];
        let inside = matched / self.block_tokens - here.start as usize;
        if let Some(&block) = here.blocks().get(inside) {
            let own = &here.tokens()[inside * self.block_tokens..];
            let tokens = common_tokens(own, rest);
            return (tokens > 0).then_some((node, PartialBlock { block, tokens }));
        }
        let children = self.arena.siblings(here.children);
        let mut best: Option<(u32, PartialBlock)> = None;
        for index in children.chain(self.arena.siblings(here.tails)) {
            let child = &self.arena[index];
            let (tokens, block) = (common_tokens(child.tokens(), rest), child.blocks()[0]);
            let better = best.is_none_or(|(_, best)| {
                tokens > best.tokens || (tokens == best.tokens && block < best.block)
            });
            if tokens > 0 && better {
                best = Some((index, PartialBlock { block, tokens }));
            }
        }
        best
    }
}

/// How many tokens two stretches of whole blocks share, in whole blocks.
fn common_blocks<T: TokenId>(own: &[u32], given: &[T], block_tokens: usize) -> usize {
    let len = own.len().min(given.len());
    let (own, given) = (&own[..len], &given[..len]);
    let stride = STRIDE.div_ceil(block_tokens) * block_tokens;
    let mut at = 0;
    while at < len {
        let end = len.min(at + stride);
        if !T::all_equal(&given[at..end], &own[at..end]) {
            let differs = |&start: &usize| {
                let block = start..start + block_tokens;
                !T::all_equal(&given[block.clone()], &own[block])
            };
            return (at..end).step_by(block_tokens).find(differs).unwrap_or(end);
        }
        at = end;
    }
    len
}

/// How many tokens two stretches share.
pub(super) fn common_tokens(left: &[u32], right: &[u32]) -> usize {
    let pairs = left.iter().zip(right);
    pairs.take_while(|(left, right)| left == right).count()
}
