//! The radix tree against a brute-force model: every prefix that is held, in a map. `validate()` after each step.

#![expect(clippy::expect_used, reason = "a test may fail loudly")]

use std::collections::BTreeMap;

use kvlab_core::Error;
use kvlab_core::key::{BlockKey, chain_end, chain_keys};
use kvlab_core::policy::{by_name, live_names};
use kvlab_core::radix::{Evicted, LockId, Match, RadixStats, RadixTree};
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

/// A namespace and all tokens up to the end of a block.
type Prefix = (u8, Vec<u32>);

#[derive(Clone, Debug)]
enum Step {
    Insert(u8, Vec<u32>),
    Match(u8, Vec<u32>),
    Lock(u8, Vec<u32>),
    LockEarlier(usize),
    Unlock(usize),
    Evict(usize, bool),
    Clear(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let namespace = 0..3_u8;
    // Two tokens, one of them rare, so that long prefixes are shared and split at every depth.
    let token = prop_oneof![4 => Just(0_u32), 1 => Just(1)];
    let tokens = prop::collection::vec(token, 0..24);
    let prompt = (namespace.clone(), tokens);
    prop_oneof![
        6 => prompt.clone().prop_map(|(namespace, tokens)| Step::Insert(namespace, tokens)),
        3 => prompt.clone().prop_map(|(namespace, tokens)| Step::Match(namespace, tokens)),
        2 => prompt.prop_map(|(namespace, tokens)| Step::Lock(namespace, tokens)),
        1 => any::<usize>().prop_map(Step::LockEarlier),
        2 => any::<usize>().prop_map(Step::Unlock),
        3 => (0..12_usize, any::<bool>()).prop_map(|(wanted, keyed)| Step::Evict(wanted, keyed)),
        1 => namespace.prop_map(Step::Clear),
    ]
}

fn key(namespace: u8) -> BlockKey {
    BlockKey([namespace; 32])
}

struct World {
    block_tokens: usize,
    tree: RadixTree,
    /// The block at the end of each prefix; a partial block is one whose prefix does not end on a block border.
    held: BTreeMap<Prefix, u32>,
    locks: Vec<(LockId, Prefix)>,
    given_back: Vec<LockId>,
    matches: Vec<(Match, Prefix, Vec<u32>)>,
    next_block: u32,
}

impl World {
    fn new(block_tokens: usize, policy: &str) -> Self {
        let policy = by_name(policy, 40).expect("a known policy");
        Self {
            block_tokens,
            tree: RadixTree::new(block_tokens, policy).expect("a valid block size"),
            held: BTreeMap::new(),
            locks: Vec::new(),
            given_back: Vec::new(),
            matches: Vec::new(),
            next_block: 0,
        }
    }

    fn whole(&self, tokens: &[u32]) -> usize {
        tokens.len() / self.block_tokens * self.block_tokens
    }

    /// The longest prefix in whole blocks.
    fn longest(&self, namespace: u8, tokens: &[u32]) -> usize {
        let ends = (0..=self.whole(tokens)).step_by(self.block_tokens);
        ends.take_while(|&end| {
            end == 0 || self.held.contains_key(&(namespace, tokens[..end].to_vec()))
        })
        .last()
        .unwrap_or(0)
    }

    fn blocks(&self, (namespace, tokens): &Prefix) -> Option<Vec<u32>> {
        let ends = (self.block_tokens..=tokens.len()).step_by(self.block_tokens);
        ends.map(|end| {
            self.held
                .get(&(*namespace, tokens[..end].to_vec()))
                .copied()
        })
        .collect()
    }

    /// What directly follows `prefix`: tokens of the next block, whole or partial, and the block.
    fn followers(&self, prefix: &Prefix) -> Vec<(Vec<u32>, u32)> {
        let from = prefix.1.len();
        if self.is_partial(prefix) {
            return Vec::new();
        }
        self.held
            .iter()
            .filter(|((namespace, tokens), _)| {
                *namespace == prefix.0
                    && tokens.len() > from
                    && tokens.len() <= from + self.block_tokens
                    && tokens.starts_with(&prefix.1)
            })
            .map(|((_, tokens), block)| (tokens[from..].to_vec(), *block))
            .collect()
    }

    fn is_partial(&self, prefix: &Prefix) -> bool {
        !prefix.1.len().is_multiple_of(self.block_tokens)
    }

    fn is_locked(&self, prefix: &Prefix) -> bool {
        let mut locks = self.locks.iter();
        !self.is_partial(prefix)
            && locks.any(|(_, locked)| locked.0 == prefix.0 && locked.1.starts_with(&prefix.1))
    }

    fn protected(&self) -> usize {
        self.held
            .keys()
            .filter(|prefix| self.is_locked(prefix))
            .count()
    }

    fn insert(&mut self, namespace: u8, tokens: &[u32]) -> TestCaseResult {
        let needed = tokens.len().div_ceil(self.block_tokens);
        let blocks: Vec<u32> = (self.next_block..).take(needed).collect();
        self.next_block += needed as u32;
        if tokens.is_empty() {
            prop_assert!(self.tree.insert(&key(namespace), tokens, &blocks).is_err());
            return Ok(());
        }
        let surplus = [&blocks[..], &[u32::MAX]].concat();
        for wrong in [&blocks[1..], &surplus] {
            let refused = self.tree.insert(&key(namespace), tokens, wrong);
            prop_assert!(matches!(refused, Err(Error::InvalidArgument(_))));
        }

        let matched = self.longest(namespace, tokens);
        let body = self.whole(tokens);
        let rest = &tokens[matched..];
        let followers = self.followers(&(namespace, tokens[..matched].to_vec()));
        let inserted = self
            .tree
            .insert(&key(namespace), tokens, &blocks)
            .expect("valid");
        let path = inserted.path;
        prop_assert_eq!(
            (path.tokens(), path.blocks()),
            (body, body / self.block_tokens)
        );
        prop_assert_eq!(
            inserted.duplicates,
            inserted.present.div_ceil(self.block_tokens)
        );
        if inserted.present == tokens.len() {
            prop_assert_eq!(matched, body, "whole blocks are missing");
            prop_assert_eq!(inserted.displaced, None);
            let covered = followers.iter().any(|(own, _)| own.starts_with(rest));
            prop_assert!(rest.is_empty() || covered, "nothing holds the tail");
            return Ok(());
        }
        prop_assert_eq!(inserted.present, matched);
        let is_tail = |own: &Vec<u32>| own.len() < self.block_tokens;
        if matched == body {
            let covered = followers
                .iter()
                .any(|(own, _)| is_tail(own) && own.starts_with(rest));
            prop_assert!(!covered, "the tail was held already");
        }
        let shorter = followers
            .iter()
            .filter(|(own, _)| is_tail(own) && rest.starts_with(own));
        let shorter: Vec<_> = shorter.cloned().collect();
        prop_assert!(shorter.len() <= 1);
        prop_assert_eq!(inserted.displaced, shorter.first().map(|(_, block)| *block));
        for (own, _) in shorter {
            self.held
                .remove(&(namespace, [&tokens[..matched], &own].concat()));
        }
        for (index, &block) in blocks.iter().enumerate().skip(inserted.duplicates) {
            let end = tokens.len().min((index + 1) * self.block_tokens);
            self.held.insert((namespace, tokens[..end].to_vec()), block);
        }
        Ok(())
    }

    fn find(&mut self, namespace: u8, tokens: &[u32]) -> Result<Match, TestCaseError> {
        let matched = self.longest(namespace, tokens);
        let prefix = (namespace, tokens[..matched].to_vec());
        let found = self.tree.match_prefix(&key(namespace), tokens);
        prop_assert_eq!(found.tokens(), matched);
        let mut blocks = vec![7];
        self.tree
            .blocks_of(&found, &mut blocks)
            .expect("a fresh match");
        let expected = self.blocks(&prefix).expect("a prefix that is held");
        prop_assert_eq!(&blocks[1..], &expected);

        let partial = self.tree.match_partial(&key(namespace), tokens);
        prop_assert_eq!(partial.whole, found);
        let shared = |own: &[u32]| {
            let pairs = own.iter().zip(&tokens[matched..]);
            pairs.take_while(|(left, right)| left == right).count()
        };
        let best = self.followers(&prefix);
        let best = best.iter().map(|(own, block)| (shared(own), *block));
        let best = best.max_by_key(|&(tokens, block)| (tokens, u32::MAX - block));
        let best = best.filter(|&(tokens, _)| tokens > 0);
        prop_assert_eq!(
            partial.partial.map(|found| (found.tokens, found.block)),
            best
        );

        let beyond = &tokens[matched..];
        let mut keys = Vec::new();
        chain_keys(key(namespace), tokens, self.block_tokens, &mut keys);
        let computed = self.tree.keys_for(&found, beyond).expect("a fresh match");
        prop_assert_eq!(&computed, &keys[found.blocks()..]);
        self.matches.push((found, prefix, expected));
        Ok(found)
    }

    fn lock(&mut self, found: &Match, prefix: Prefix) -> TestCaseResult {
        let lock = self.tree.lock(found);
        prop_assert!(lock.is_ok(), "{:?}", lock);
        self.locks.extend(lock.map(|lock| (lock, prefix)));
        Ok(())
    }

    fn unlock(&mut self, which: usize) -> TestCaseResult {
        if !self.locks.is_empty() {
            let (lock, _) = self.locks.swap_remove(which % self.locks.len());
            prop_assert!(self.tree.unlock(lock).is_ok());
            self.given_back.push(lock);
        }
        for &lock in &self.given_back {
            prop_assert!(matches!(self.tree.unlock(lock), Err(Error::NotLocked)));
        }
        Ok(())
    }

    fn evict(&mut self, wanted: usize, keyed: bool) -> TestCaseResult {
        let evictable = self.held.len() - self.protected();
        let mut evicted = Vec::new();
        let freed = if keyed {
            self.tree.evict_keyed(wanted, &mut evicted)
        } else {
            self.tree.evict(wanted, &mut evicted)
        };
        prop_assert_eq!(freed, wanted.min(evictable));
        prop_assert_eq!(
            evicted.iter().map(|run| run.blocks().len()).sum::<usize>(),
            freed
        );
        for run in &evicted {
            self.check_evicted(run, keyed)?;
        }
        Ok(())
    }

    fn check_evicted(&mut self, run: &Evicted, keyed: bool) -> TestCaseResult {
        let last = run.blocks().last().expect("a run is not empty");
        let prefix = self.held.iter().find(|(_, block)| *block == last);
        let prefix = prefix.expect("an evicted block was held").0.clone();
        prop_assert_eq!(run.namespace(), &key(prefix.0));
        prop_assert!(self.followers(&prefix).is_empty(), "not a leaf");
        prop_assert!(prefix.1.ends_with(run.tokens()));
        prop_assert_eq!(run.is_partial(), self.is_partial(&prefix));
        let start = prefix.1.len() - run.tokens().len();
        let before = chain_end(key(prefix.0), &prefix.1[..start], self.block_tokens);
        prop_assert_eq!(
            run.parent_key(),
            (keyed && !run.is_partial()).then_some(&before)
        );
        for (index, block) in run.blocks().iter().enumerate() {
            let end = prefix.1.len().min(start + (index + 1) * self.block_tokens);
            let prefix = (prefix.0, prefix.1[..end].to_vec());
            prop_assert!(!self.is_locked(&prefix), "locked");
            prop_assert_eq!(self.held.remove(&prefix), Some(*block));
        }
        Ok(())
    }

    fn clear(&mut self, namespace: u8) -> TestCaseResult {
        let cleared = self.tree.remove_namespace(&key(namespace));
        let inside = |prefix: &&Prefix| prefix.0 == namespace;
        let (kept, gone): (Vec<Prefix>, Vec<Prefix>) = self
            .held
            .keys()
            .filter(inside)
            .cloned()
            .partition(|prefix| self.is_locked(prefix));
        prop_assert_eq!(cleared.protected_blocks, kept.len());
        let mut expected: Vec<u32> = gone
            .iter()
            .filter_map(|prefix| self.held.remove(prefix))
            .collect();
        expected.sort_unstable();
        let mut blocks = cleared.blocks;
        blocks.sort_unstable();
        prop_assert_eq!(blocks, expected);
        Ok(())
    }

    fn step(&mut self, step: Step) -> TestCaseResult {
        match step {
            Step::Insert(namespace, tokens) => self.insert(namespace, &tokens)?,
            Step::Match(namespace, tokens) => self.find(namespace, &tokens).map(drop)?,
            Step::Lock(namespace, tokens) => {
                let found = self.find(namespace, &tokens)?;
                self.lock(&found, (namespace, tokens[..found.tokens()].to_vec()))?;
            }
            Step::LockEarlier(which) => {
                if !self.matches.is_empty() {
                    let which = which % self.matches.len();
                    let (found, prefix, blocks) = self.matches.swap_remove(which);
                    let mut now = Vec::new();
                    // Refused or right: a match from before splits and evictions never leads to other blocks.
                    if self.tree.blocks_of(&found, &mut now).is_ok() {
                        prop_assert_eq!(&now, &blocks);
                        prop_assert_eq!(Some(now), self.blocks(&prefix));
                        self.lock(&found, prefix)?;
                    } else {
                        prop_assert!(self.tree.lock(&found).is_err());
                    }
                }
            }
            Step::Unlock(which) => self.unlock(which)?,
            Step::Evict(wanted, keyed) => self.evict(wanted, keyed)?,
            Step::Clear(namespace) => self.clear(namespace)?,
        }
        prop_assert_eq!(self.tree.validate(), Ok(()));
        let stats = self.tree.stats();
        prop_assert_eq!(stats.total_blocks, self.held.len());
        prop_assert_eq!(stats.protected_blocks, self.protected());
        prop_assert_eq!(stats.evictable_blocks(), self.held.len() - self.protected());
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_tree_is_the_map_of_prefixes(
        block_tokens in 1..6_usize,
        policy in prop::sample::select(live_names().collect::<Vec<_>>()),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut world = World::new(block_tokens, policy);
        for step in steps {
            world.step(step)?;
        }
        // Whatever happened, unlocking and evicting all leaves nothing behind.
        while !world.locks.is_empty() {
            world.unlock(0)?;
        }
        world.evict(usize::MAX, false)?;
        prop_assert_eq!(world.tree.stats(), RadixStats::default());
        prop_assert_eq!(world.tree.validate(), Ok(()));
    }
}
