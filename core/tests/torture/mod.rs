//! A store whose process is killed at random moments, again and again. After each kill every block ever acknowledged is
//! looked at: its bytes are right, or it is a miss that may be; what was deleted stays deleted.
#![allow(dead_code, reason = "each of its users uses its own part")]
#![allow(clippy::expect_used, reason = "a helper of tests")]

mod child;
mod parent;

use kvlab_core::key::BlockKey;
use kvlab_core::run::RunHeader;

pub(crate) use child::{Spec, work};
pub(crate) use parent::Torture;

use crate::disk_support::{header, namespace};

/// Threads of a child; each puts and deletes the runs of its own namespace.
const THREADS: u32 = 3;
/// Runs of a namespace.
const RUNS: u32 = 96;
/// Runs of a chain.
const CHAIN: u32 = 4;
const SHAPES: [&[u32]; 4] = [&[20_000, 9000], &[4096], &[100, 70_000, 5000], &[40_000; 3]];

fn names(thread: u32) -> BlockKey {
    namespace(&format!("thread {thread}"))
}

/// A run of a thread, which follows from its number.
fn run(thread: u32, seed: u32) -> RunHeader {
    let names = names(thread);
    let parent = if seed.is_multiple_of(CHAIN) {
        names
    } else {
        *run(thread, seed - 1).keys.last().expect("a run has keys")
    };
    header(names, parent, seed, 2, SHAPES[seed as usize % SHAPES.len()])
}

/// Numbers from a seed (splitmix64).
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
}
