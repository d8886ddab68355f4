//! On the radix tree: leaves only, pieces of several blocks, splits, trims and locks.

use proptest::prelude::*;

use crate::key::BlockKey;
use crate::policy::{KNOWN, simulated};
use crate::radix::RadixTree;

const CAPACITY: usize = 24;

#[derive(Clone, Debug)]
enum Step {
    /// A prompt of one of a few branches, this long: looked up, locked, and inserted if there is room.
    Request {
        branch: u32,
        length: usize,
        wait_ms: u64,
    },
    /// Gives so many blocks up.
    Evict(usize),
    /// Gives back the oldest lock.
    Unlock,
    Clear,
}

fn step() -> impl Strategy<Value = Step> {
    let request = (0..6_u32, 1..14_usize, 0..90_000_u64);
    prop_oneof![
        12 => request.prop_map(|(branch, length, wait_ms)| Step::Request { branch, length, wait_ms }),
        3 => (1..6_usize).prop_map(Step::Evict),
        4 => Just(Step::Unlock),
        1 => Just(Step::Clear),
    ]
}

/// Branches share their beginnings: two blocks all of them, six every other one.
fn prompt(branch: u32, length: usize) -> Vec<u32> {
    let block = |at: usize| match at {
        0..2 => at as u32,
        2..6 => 10 + branch % 2 * 10 + at as u32,
        _ => 100 + branch * 20 + at as u32,
    };
    (0..length).map(block).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn every_policy_of_the_lab_serves_a_tree(steps in prop::collection::vec(step(), 1..80)) {
        for known in KNOWN.iter().filter(|known| !known.live) {
            let mut tree = RadixTree::new(1, simulated(known.name, CAPACITY as u64).unwrap()).unwrap();
            let (mut locks, mut now_ms) = (Vec::new(), 0);
            for step in &steps {
                match *step {
                    Step::Request { branch, length, wait_ms } => {
                        now_ms += wait_ms;
                        tree.request(now_ms, branch % 3);
                        tree.discard_expired(|_| {});
                        let tokens = prompt(branch, length);
                        let found = tree.match_prefix(&BlockKey::default(), &tokens);
                        let lock = tree.lock(&found).unwrap();
                        let missing = length - found.blocks();
                        let free = CAPACITY - tree.stats().total_blocks;
                        let mut evicted = Vec::new();
                        let wanted = missing.saturating_sub(free);
                        let freed = tree.evict(wanted, &mut evicted);
                        let unlocked = tree.stats().evictable_blocks();
                        prop_assert!(freed == wanted || unlocked == 0, "{}", known.name);
                        let taken = found.blocks() + missing.min(free + freed);
                        if taken > 0 {
                            tree.insert(&BlockKey::default(), &tokens[..taken], &tokens[..taken]).unwrap();
                        }
                        if branch == 0 { locks.push(lock) } else { tree.unlock(lock).unwrap() }
                    }
                    Step::Evict(wanted) => {
                        tree.evict(wanted, &mut Vec::new());
                    }
                    Step::Unlock if locks.is_empty() => {}
                    Step::Unlock => tree.unlock(locks.remove(0)).unwrap(),
                    Step::Clear => {
                        tree.remove_namespace(&BlockKey::default());
                    }
                }
                prop_assert_eq!(tree.validate(), Ok(()), "{}", known.name);
                prop_assert!(tree.stats().total_blocks <= CAPACITY, "{}", known.name);
            }
        }
    }
}

/// A prefix lives as long as what is below it; what nobody uses for five minutes goes, and what is locked stays.
#[test]
fn a_tree_lets_go_of_what_has_expired() {
    let mut tree = RadixTree::new(1, simulated("ttl", 24).unwrap()).unwrap();
    let namespace = BlockKey::default();
    tree.request(0, 0);
    tree.insert(&namespace, &[1, 2, 3], &[1, 2, 3]).unwrap();
    tree.request(200_000, 0);
    tree.insert(&namespace, &[1, 2, 4], &[1, 2, 4]).unwrap();
    assert_eq!(tree.discard_expired(|_| {}), 0);
    tree.request(300_000, 0);
    assert_eq!(
        tree.discard_expired(|_| {}),
        1,
        "3 was last used at the start"
    );
    let found = tree.match_prefix(&namespace, &[1]);
    let lock = tree.lock(&found).unwrap();
    tree.request(900_000, 0);
    assert_eq!(tree.discard_expired(|_| {}), 2, "2 and 4");
    tree.unlock(lock).unwrap();
    assert_eq!(tree.discard_expired(|_| {}), 1);
    assert_eq!(tree.validate(), Ok(()));
}
