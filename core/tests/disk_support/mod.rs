//! Runs with bytes that follow from their keys, and a store to put them in.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::expect_used, reason = "a helper of tests")]

pub(crate) mod faulty;
pub(crate) mod recorded;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use kvlab_core::config::DiskConfig;
use kvlab_core::key::{BlockKey, chain_key, namespace_digest};
use kvlab_core::memory::{Piece, Region};
use kvlab_core::run::{RunHeader, RunSource, RunTarget, Terms};
use kvlab_core::tier::disk::{DiskTier, RecoveryReport};
use kvlab_core::tier::{PinnedRun, ReadFailure, Tier};
use proptest::test_runner::Config as ProptestConfig;

/// So many cases of a slow property, unless `PROPTEST_CASES` asks for another number.
pub(crate) fn cases(few: u32) -> ProptestConfig {
    match std::env::var("PROPTEST_CASES") {
        Ok(_) => ProptestConfig::default(),
        Err(_) => ProptestConfig::with_cases(few),
    }
}

pub(crate) fn config(path: &Path) -> DiskConfig {
    DiskConfig {
        capacity: 64 << 20,
        free_reserve: 0,
        segment_bytes: 1 << 20,
        ..DiskConfig::new(path)
    }
}

pub(crate) fn open(config: &DiskConfig) -> (DiskTier, RecoveryReport) {
    DiskTier::open(config).expect("the store opens")
}

pub(crate) fn namespace(name: &str) -> BlockKey {
    namespace_digest([("model", name.as_bytes())])
}

/// The header of a run of `blocks` blocks after `parent`, told apart from its siblings by `seed`.
pub(crate) fn header(
    namespace: BlockKey,
    parent: BlockKey,
    seed: u32,
    blocks: usize,
    slices: &[u32],
) -> RunHeader {
    let mut at = parent;
    let keys = (0..blocks as u32).map(|block| {
        at = chain_key(&at, &[seed, block]);
        at
    });
    RunHeader {
        namespace,
        parent,
        keys: keys.collect(),
        block_tokens: 16,
        slices: slices.into(),
        terms: Terms::default(),
    }
}

/// The bytes of a slice, which follow from the run's first and last key.
pub(crate) fn slice_bytes(header: &RunHeader, slice: usize) -> Vec<u8> {
    let first = header.keys.first().expect("a run has keys").0;
    let last = header.keys.last().expect("a run has keys").0;
    let seed = u64::from_le_bytes(first[..8].try_into().expect("8 bytes"))
        ^ u64::from_le_bytes(last[8..16].try_into().expect("8 bytes"))
        ^ slice as u64;
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(header.slices[slice] as usize + 8);
    while bytes.len() < header.slices[slice] as usize {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(header.slices[slice] as usize);
    bytes
}

/// A source whose slices lie in the region one after the other, each in two pieces.
pub(crate) fn source(header: &RunHeader) -> RunSource {
    let region = Region::new(header.payload_bytes() as usize).expect("memory");
    let mut at = 0;
    let slices = (0..header.slices.len()).map(|slice| {
        let bytes = slice_bytes(header, slice);
        region.write(at, &bytes);
        let half = bytes.len() / 2;
        let pieces = [(at, half), (at + half, bytes.len() - half)];
        at += bytes.len();
        pieces
            .map(|(offset, len)| Piece {
                spare: false,
                offset,
                len,
            })
            .to_vec()
    });
    let slices = slices.collect();
    RunSource {
        region: Arc::new(region),
        lease: None,
        slices,
    }
}

/// How a read's target is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Each slice on a page of its own.
    Pages,
    /// Slices packed, the pieces cut at odd places.
    Odd,
    /// The second half of each slice is only verified.
    HalfSpare,
}

/// Reads all slices and checks every byte that was kept.
pub(crate) fn check(pinned: &dyn PinnedRun, shape: Shape) -> Result<(), ReadFailure> {
    let header = pinned.header().clone();
    let page = |len: usize| len.div_ceil(4096) * 4096;
    let total = header.slices.iter().map(|&len| page(len as usize)).sum();
    let region = Arc::new(Region::new(total).expect("memory"));
    let mut at = 0;
    let mut slices = Vec::new();
    for &len in header.slices.iter() {
        let len = len as usize;
        let cut = match shape {
            Shape::Pages => len,
            Shape::Odd => len / 3,
            Shape::HalfSpare => len / 2 / 512 * 512,
        };
        let rest = if shape == Shape::HalfSpare {
            Piece {
                spare: true,
                offset: 0,
                len: len - cut,
            }
        } else {
            Piece {
                spare: false,
                offset: at + cut,
                len: len - cut,
            }
        };
        slices.push(vec![
            Piece {
                spare: false,
                offset: at,
                len: cut,
            },
            rest,
        ]);
        at += if shape == Shape::Odd { len } else { page(len) };
    }
    let target = RunTarget {
        region: Arc::clone(&region),
        lease: None,
        slices,
    };
    pinned.read_slices(0..header.slices.len(), &target)?;
    for (slice, pieces) in target.slices.iter().enumerate() {
        let expected = slice_bytes(&header, slice);
        let mut from = 0;
        for piece in pieces {
            if !piece.spare {
                let mut found = vec![0; piece.len];
                region.read(piece.offset, &mut found);
                assert!(
                    found == expected[from..from + piece.len],
                    "slice {slice} of {header:?}"
                );
            }
            from += piece.len;
        }
    }
    Ok(())
}

/// Finds a block and checks all bytes of its run; none if it is not there or could not be read.
pub(crate) fn check_key(tier: &DiskTier, key: &BlockKey) -> Option<Result<(), ReadFailure>> {
    let (pinned, position) = tier.find(key)?;
    assert_eq!(&pinned.header().keys[position], key);
    Some(check(&*pinned, Shape::Pages))
}

/// What a kill would leave behind: a copy of the directory as it is now.
pub(crate) fn crash_image(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("readable") {
        let entry = entry.expect("readable");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            crash_image(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}
