//! What a node costs in memory, allocator included. Alone in its process, so that nothing else grows meanwhile.

#![cfg(target_os = "linux")]
#![expect(clippy::expect_used, reason = "a test may fail loudly")]

use kvlab_core::key::BlockKey;
use kvlab_core::policy::by_name;
use kvlab_core::radix::{NODE_BYTES, RadixTree};

const NODES: u32 = 200_000;
const BLOCK: usize = 16;

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("a proc file system");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.expect("VmRSS in kB")
        .parse::<usize>()
        .expect("a number")
        * 1024
}

#[test]
fn a_node_costs_no_more_than_documented() {
    let policy = by_name("lru", 0).expect("a known policy");
    let mut tree = RadixTree::new(BLOCK, policy).expect("a valid block size");
    let before = resident();
    // Leaves of one block under 100 parents of one block: the smallest nodes, so that nothing hides behind tokens.
    let mut prompt = vec![0; 2 * BLOCK];
    for node in 0..NODES {
        prompt[0] = node % 100;
        prompt[BLOCK] = node;
        tree.insert(&BlockKey::default(), &prompt, &[node, NODES + node])
            .expect("whole blocks");
    }
    let nodes = tree.stats().nodes;
    assert_eq!(nodes, NODES as usize + 100);
    let payload = nodes * (BLOCK + 1) * size_of::<u32>();
    let metadata = resident().saturating_sub(before).saturating_sub(payload) / nodes;
    assert!(metadata > 0, "memory was not measured");
    assert!(
        metadata <= NODE_BYTES,
        "{metadata} bytes a node besides tokens and block ids, {NODE_BYTES} are documented"
    );
}
