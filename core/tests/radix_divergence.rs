//! How far a prompt is known, against the plain comparison with everything that was inserted.

use kvlab_core::key::BlockKey;
use kvlab_core::policy::by_name;
use kvlab_core::radix::RadixTree;
use proptest::prelude::*;

const NAMESPACE: BlockKey = BlockKey([1; 32]);

fn shared(left: &[u32], right: &[u32]) -> usize {
    let pairs = left.iter().zip(right);
    pairs.take_while(|(left, right)| left == right).count()
}

proptest! {
    #[test]
    fn is_that_of_the_closest_sequence(
        block_tokens in 1..5_usize,
        cached in prop::collection::vec(prop::collection::vec(0..3_u32, 0..24), 0..6),
        prompt in prop::collection::vec(0..3_u32, 0..24),
    ) {
        let policy = by_name("lru", 0).expect("a known policy");
        let mut tree = RadixTree::new(block_tokens, policy).expect("a block size");
        let mut next = 0_u32;
        let mut known = Vec::new();
        for tokens in &cached {
            let whole = &tokens[..tokens.len() / block_tokens * block_tokens];
            if whole.is_empty() {
                continue;
            }
            let blocks: Vec<u32> = (next..).take(whole.len() / block_tokens).collect();
            next += blocks.len() as u32;
            tree.insert(&NAMESPACE, whole, &blocks).expect("whole blocks");
            known.push(whole);
        }
        let found = tree.divergence(&NAMESPACE, &prompt);
        let most = known.iter().map(|tokens| shared(tokens, &prompt)).max().unwrap_or(0);
        prop_assert_eq!(found.common, most);
        prop_assert_eq!(found.matched, most / block_tokens * block_tokens);
        let follows = |tokens: &&&[u32]| shared(tokens, &prompt) == most;
        let next = known.iter().filter(follows).map(|tokens| tokens.get(most).copied());
        let next = next.collect::<Vec<_>>();
        if most == prompt.len() || next.is_empty() {
            prop_assert_eq!(found.cached, None);
        } else {
            prop_assert!(next.contains(&found.cached), "{:?} of {next:?}", found.cached);
        }
        prop_assert_eq!(tree.divergence(&BlockKey([2; 32]), &prompt).common, 0);
    }
}
