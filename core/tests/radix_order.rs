//! In which order leaves go: least recently used first, a path ageing from its leaf.

#![expect(clippy::expect_used, reason = "a test may fail loudly")]

use std::cell::Cell;

use kvlab_core::key::{BlockKey, chain_end};
use kvlab_core::policy::{by_name, live_names};
use kvlab_core::radix::{Inserted, RadixTree};

const NAMESPACE: BlockKey = BlockKey([1; 32]);

/// A tree of one-token blocks; every inserted block's id is its position in the prompt plus `base`.
struct Tree(RadixTree);

impl Tree {
    fn new() -> Self {
        Self(RadixTree::new(1, by_name("lru", 0).expect("a known policy")).expect("a block size"))
    }

    fn insert(&mut self, tokens: &[u32], base: u32) -> Inserted {
        let blocks: Vec<u32> = (base..).take(tokens.len()).collect();
        let inserted = self.0.insert(&NAMESPACE, tokens, &blocks);
        inserted.expect("whole blocks")
    }

    fn find(&mut self, tokens: &[u32]) -> usize {
        self.0.match_prefix(&NAMESPACE, tokens).tokens()
    }

    /// The blocks of each leaf that goes.
    fn evict(&mut self, wanted: usize) -> Vec<Vec<u32>> {
        let mut evicted = Vec::new();
        self.0.evict(wanted, &mut evicted);
        assert_eq!(self.0.validate(), Ok(()));
        evicted.iter().map(|run| run.blocks().to_vec()).collect()
    }
}

#[test]
fn a_parent_goes_after_its_child_and_before_what_was_used_later() {
    let mut tree = Tree::new();
    tree.insert(&[1, 2], 10);
    tree.insert(&[1, 2, 3], 20);
    tree.insert(&[5], 30);
    assert_eq!(tree.evict(9), [vec![22], vec![10, 11], vec![30]]);
}

#[test]
fn a_parent_that_becomes_childless_enters_at_its_own_last_use() {
    let mut tree = Tree::new();
    tree.insert(&[1, 2], 10);
    tree.insert(&[1, 2, 3], 20);
    tree.insert(&[5], 30);
    tree.insert(&[6], 40);
    assert_eq!(tree.find(&[1, 2]), 2);
    tree.insert(&[7], 50);
    assert_eq!(
        tree.evict(9),
        [vec![22], vec![30], vec![40], vec![10, 11], vec![50]]
    );
}

#[test]
fn a_use_that_ends_inside_a_node_is_a_use_of_all_of_it() {
    let mut tree = Tree::new();
    tree.insert(&[1, 2, 3, 4], 10);
    tree.insert(&[5], 30);
    assert_eq!(tree.find(&[1, 2, 9]), 2);
    tree.insert(&[6], 40);
    assert_eq!(tree.evict(9), [vec![30], vec![10, 11, 12, 13], vec![40]]);
}

#[test]
fn both_parts_of_a_split_node_keep_its_last_use() {
    let mut tree = Tree::new();
    tree.insert(&[1, 2, 3, 4], 10);
    let inside = tree.0.match_prefix(&NAMESPACE, &[1, 2, 3]);
    tree.insert(&[5], 30);
    let lock = tree.0.lock(&inside).expect("held");
    tree.0.unlock(lock).expect("locked");
    assert_eq!(tree.evict(9), [vec![13], vec![10, 11, 12], vec![30]]);
}

#[test]
fn a_long_leaf_gives_up_only_its_last_blocks_and_keeps_its_rank() {
    let mut tree = Tree::new();
    tree.insert(&[1, 2, 3, 4], 10);
    tree.insert(&[5], 30);
    assert_eq!(tree.evict(1), [vec![13]]);
    assert_eq!(tree.find(&[1, 2, 3, 4]), 3);
    tree.find(&[5]);
    assert_eq!(tree.evict(2), [vec![11, 12]]);
    assert_eq!(tree.evict(2), [vec![10], vec![30]]);
}

#[test]
fn locks_keep_a_path_and_giving_them_back_is_no_use() {
    let mut tree = Tree::new();
    let path = tree.insert(&[1, 2], 10).path;
    let lock = tree.0.lock(&path).expect("held");
    tree.insert(&[1, 2, 3], 20);
    tree.insert(&[5], 30);
    assert_eq!(tree.0.stats().evictable_blocks(), 2);
    assert_eq!(tree.evict(1), [vec![22]]);
    tree.0.unlock(lock).expect("locked");
    assert_eq!(tree.evict(9), [vec![10, 11], vec![30]]);
}

#[test]
fn what_a_lock_protects_stays_known_when_what_follows_is_evicted() {
    let mut tree = Tree::new();
    tree.insert(&[1, 2, 3, 4], 10);
    let inside = tree.0.match_prefix(&NAMESPACE, &[1, 2, 9]);
    let lock = tree.0.lock(&inside).expect("held");
    let path = tree.0.locked(lock).expect("locked");
    assert_eq!(tree.evict(9), [vec![12, 13]]);
    let mut blocks = Vec::new();
    tree.0.blocks_of(&path, &mut blocks).expect("protected");
    assert_eq!(blocks, [10, 11]);
    let again = tree.0.lock(&path).expect("protected");
    tree.0.unlock(lock).expect("locked");
    assert!(tree.evict(9).is_empty());
    tree.0.unlock(again).expect("locked");
    assert!(tree.0.locked(again).is_err());
}

#[test]
fn a_remembered_key_is_used_and_goes_with_the_blocks_it_stands_for() {
    let mut tree = Tree::new();
    let path = tree.insert(&[1, 2, 3], 10).path;
    // Not the true key: only so can be told that it is the remembered one that is used.
    let marked = BlockKey([9; 32]);
    tree.0.remember_key(&path, marked).expect("held");
    assert_eq!(tree.0.path_key(&path).expect("held"), marked);
    assert_eq!(
        tree.0.keys_for(&path, &[4]).expect("held"),
        [chain_end(marked, &[4], 1)]
    );
    tree.evict_one_keyed();
    let shorter = tree.0.match_prefix(&NAMESPACE, &[1, 2, 3]);
    assert_eq!(
        tree.0.path_key(&shorter).expect("held"),
        chain_end(NAMESPACE, &[1, 2], 1)
    );
}

impl Tree {
    fn evict_one_keyed(&mut self) {
        let mut evicted = Vec::new();
        self.0.evict_keyed(1, &mut evicted);
        let parent = chain_end(NAMESPACE, &[1, 2], 1);
        assert_eq!(evicted[0].parent_key(), Some(&parent));
    }
}

#[test]
fn wide_ids_match_as_narrow_ones_do() {
    let policy = by_name("lru", 0).expect("a known policy");
    let mut tree = RadixTree::new(16, policy).expect("a block size");
    let prompt: Vec<u32> = (0..1000).map(|token| token * 977 % 50_000).collect();
    let blocks: Vec<u32> = (0..62).collect();
    tree.insert(&NAMESPACE, &prompt[..992], &blocks)
        .expect("whole blocks");
    for changed in [0, 15, 16, 63, 64, 300, 511, 512, 991, 992, 999] {
        let mut narrow = prompt.clone();
        narrow[changed] = 60_000;
        let wide: Vec<Cell<i64>> = narrow.iter().map(|&id| Cell::new(id.into())).collect();
        let found = tree.match_wide(&NAMESPACE, &wide).expect("ids in range");
        assert_eq!(found.tokens(), changed.min(992) / 16 * 16);
        assert_eq!(found, tree.match_prefix(&NAMESPACE, &narrow));
        for outside in [
            -1,
            1 << 32,
            i64::MIN,
            (1 << 32) + i64::from(prompt[changed]),
        ] {
            wide[changed].set(outside);
            let error = tree
                .match_wide(&NAMESPACE, &wide)
                .expect_err("out of range");
            let named = format!("token {changed} is {outside}:");
            assert!(error.to_string().contains(&named), "{error}");
        }
    }
}

#[test]
fn ids_out_of_range_are_no_use() {
    let mut tree = Tree::new();
    tree.insert(&[1, 2], 10);
    tree.insert(&[5], 30);
    let ids = [1, 2, -7].map(Cell::new);
    assert!(tree.0.match_wide(&NAMESPACE, &ids).is_err());
    assert_eq!(tree.evict(9), [vec![10, 11], vec![30]]);
}

/// A tree over block ids has no secret: what it evicts is the same in every run, by whatever policy.
#[test]
fn trees_of_ids_evict_alike() {
    for policy in live_names() {
        let [one, other] = [0, 1].map(|_| {
            let policy = by_name(policy, 64).expect("a known policy");
            let mut tree = RadixTree::of_ids(policy).expect("a tree");
            let mut evicted = Vec::new();
            for request in 0..400_u32 {
                let family = request * request % 23;
                let path = (0..8).map(|at| family * 100 + at * (1 + request % 3));
                let path = path.collect::<Vec<_>>();
                let found = tree.match_prefix(&BlockKey::default(), &path);
                let full = (tree.stats().total_blocks + path.len() - found.blocks()).max(64) - 64;
                tree.evict(full, &mut evicted);
                tree.insert(&BlockKey::default(), &path, &path)
                    .expect("as many blocks as ids");
                assert_eq!(tree.validate(), Ok(()));
            }
            evicted
        });
        assert!(!one.is_empty(), "{policy}");
        assert_eq!(one, other, "{policy}");
    }
}
