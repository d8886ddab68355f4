use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use std::collections::HashMap;

use super::{ARENA_PAGE, MemoryRun, MemoryTier, VictimRun};
use crate::clock::Clock;
use crate::key::BlockKey;
use crate::memory::{PAGE, Piece, Region};
use crate::policy::Lru;
use crate::run::{RunHeader, RunTarget, Terms};
use crate::tier::testing::{arrived, chain, header, namespace, slice_bytes, source, target};
use crate::tier::{PinnedRun, Put, Refusal, Tier};

fn tier(pages: u64) -> MemoryTier {
    // One thread: nobody else could give pages back meanwhile.
    MemoryTier::with_limits(
        pages * ARENA_PAGE as u64,
        Box::new(Lru::default()),
        Duration::ZERO,
        Clock::default(),
        None,
    )
    .expect("a tier")
}

fn reads_back(tier: &MemoryTier, key: &BlockKey, position: usize) -> bool {
    let (run, found) = tier.find(key).expect("present");
    let to = target(run.header());
    run.read_slices(0..run.header().slices.len(), &to)
        .expect("memory is readable");
    found == position && run.header().keys[found] == *key && arrived(run.header(), &to)
}

#[derive(Clone, Debug)]
enum Op {
    Put {
        branch: u32,
        start: usize,
        blocks: usize,
        shape: usize,
    },
    Reserve {
        branch: u32,
        start: usize,
        blocks: usize,
        commit: bool,
    },
    Pin {
        branch: u32,
        block: usize,
    },
    Unpin,
    Remove {
        branch: u32,
        block: usize,
    },
    Covered {
        branch: u32,
        start: usize,
        blocks: usize,
    },
    Clear,
    Evict,
}

fn ops() -> impl Strategy<Value = Op> {
    let place = (0..4_u32, 0..6_usize, 1..4_usize);
    prop_oneof![
        8 => (place.clone(), 0..SHAPES.len()).prop_map(|((branch, start, blocks), shape)| Op::Put { branch, start, blocks, shape }),
        2 => (place.clone(), any::<bool>()).prop_map(|((branch, start, blocks), commit)| Op::Reserve { branch, start, blocks, commit }),
        3 => (0..4_u32, 0..9_usize).prop_map(|(branch, block)| Op::Pin { branch, block }),
        2 => Just(Op::Unpin),
        1 => (0..4_u32, 0..9_usize).prop_map(|(branch, block)| Op::Remove { branch, block }),
        1 => place.prop_map(|(branch, start, blocks)| Op::Covered { branch, start, blocks }),
        1 => Just(Op::Clear),
        2 => Just(Op::Evict),
    ]
}

const SHAPES: &[&[u32]] = &[
    &[1],
    &[70_000, 3],
    &[4096, 4096, 5000],
    &[65_536, 65_536],
    &[130_000],
];

/// What the tier must at most hold: the run that each visible key may come from, by key and header.
type Model = HashMap<BlockKey, Vec<RunHeader>>;

fn check(tier: &MemoryTier, keys: &[Vec<BlockKey>], model: &Model) {
    tier.validate().expect("sound");
    for key in keys.iter().flatten() {
        if let Some((run, position)) = tier.find_run(key) {
            let known = &model[key];
            assert!(known.contains(run.header()), "a run that nobody put");
            assert_eq!(run.header().keys[position], *key);
            let to = target(run.header());
            run.read_slices(0..run.header().slices.len(), &to)
                .expect("memory");
            assert!(arrived(run.header(), &to), "wrong bytes");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn holds_what_was_put_or_nothing(script in prop::collection::vec(ops(), 1..60)) {
        let tier = tier(9);
        let space = namespace(0);
        let keys = (0..4).map(|branch| chain(&space, branch, 3, 9)).collect::<Vec<_>>();
        let mut model = Model::default();
        let mut pins: Vec<MemoryRun> = Vec::new();
        for op in script {
            match op {
                Op::Put { branch, start, blocks, shape } => {
                    let header = header(&space, &keys[branch as usize], start..start + blocks, SHAPES[shape]);
                    let before = tier.usage();
                    let mut victims = Vec::new();
                    let put = tier.put_evicting(&header, &source(&header), &mut |victim: VictimRun| {
                        let bytes = slice_bytes(victim.header(), 0);
                        let from = victim.header().clone();
                        let source = victim.into_source();
                        let mut read = vec![0; bytes.len()];
                        let mut at = 0;
                        for piece in &source.slices[0] {
                            source.region.read(piece.offset, &mut read[at..at + piece.len]);
                            at += piece.len;
                        }
                        assert_eq!(read, bytes, "a victim's bytes are still its own");
                        victims.push(from);
                    }).expect("sound arguments");
                    match put {
                        Put::Stored => {
                            for key in &header.keys {
                                model.entry(*key).or_default().push(header.clone());
                                assert!(tier.contains(key));
                            }
                        }
                        Put::Present => assert!(header.keys.iter().all(|key| tier.contains(key))),
                        Put::Refused(Refusal::NothingToEvict) => assert!(!pins.is_empty(), "only pins can be in the way"),
                        other => panic!("{other:?}"),
                    }
                    if put == Put::Present {
                        assert_eq!(before, tier.usage());
                        assert!(victims.is_empty());
                    }
                }
                Op::Reserve { branch, start, blocks, commit } => {
                    let header = header(&space, &keys[branch as usize], start..start + blocks, SHAPES[1]);
                    let Ok(room) = tier.reserve(&header, &mut drop) else {
                        assert!(!pins.is_empty());
                        continue;
                    };
                    let to = room.target();
                    for (slice, pieces) in to.slices.iter().enumerate() {
                        assert_eq!(pieces[0].offset % PAGE, 0, "slices start on direct-I/O borders");
                        let bytes = slice_bytes(&header, slice);
                        let mut at = 0;
                        for piece in pieces {
                            to.region.write(piece.offset, &bytes[at..at + piece.len]);
                            at += piece.len;
                        }
                    }
                    if commit {
                        let (put, run) = tier.commit(room);
                        if put == Put::Stored {
                            for key in &header.keys {
                                model.entry(*key).or_default().push(header.clone());
                            }
                        }
                        pins.push(run);
                    }
                }
                Op::Pin { branch, block } => pins.extend(tier.find_run(&keys[branch as usize][block]).map(|(run, _)| run)),
                Op::Unpin => { pins.pop(); }
                Op::Remove { branch, block } => {
                    let key = keys[branch as usize][block];
                    let there = tier.contains(&key);
                    assert!(tier.remove(&[key]) >= usize::from(there));
                    assert!(!tier.contains(&key));
                }
                Op::Covered { branch, start, blocks } => {
                    tier.remove_covered(&keys[branch as usize][start..start + blocks]);
                }
                Op::Clear => { tier.clear(Some(&space)); assert_eq!(tier.usage().runs, 0); }
                Op::Evict => { tier.evict_one(); }
            }
            for run in &pins {
                let to = target(run.header());
                run.read_slices(0..run.header().slices.len(), &to).expect("memory");
                assert!(arrived(run.header(), &to), "a pinned run changed");
            }
            check(&tier, &keys, &model);
        }
        drop(pins);
        tier.clear(None);
        assert_eq!(tier.usage().used, 0, "pages are lost");
        tier.validate().expect("sound");
    }
}

#[test]
fn leaves_go_first_and_pins_stay() {
    let space = namespace(0);
    let keys = chain(&space, 1, 0, 6);
    let tier = tier(3);
    let run = |block| header(&space, &keys, block..block + 1, &[60_000]);
    for block in 0..3 {
        assert_eq!(
            tier.put(&run(block), &source(&run(block))).expect("put"),
            Put::Stored
        );
    }
    // Block 0 is oldest, but it is the root of a chain; pinning the leaf leaves nothing to evict.
    let pin = tier.find(&keys[2]);
    let other = chain(&space, 2, 0, 1);
    let other = header(&space, &other, 0..1, &[10]);
    let refused = tier.put(&other, &source(&other)).expect("put");
    assert_eq!(refused, Put::Refused(Refusal::NothingToEvict));
    assert_eq!(tier.usage().runs, 3, "a refusal changes nothing");
    drop(pin);
    assert_eq!(tier.put(&other, &source(&other)).expect("put"), Put::Stored);
    assert!(tier.contains(&keys[0]) && tier.contains(&keys[1]) && !tier.contains(&keys[2]));
    let huge = header(&space, &keys, 4..5, &[300_000]);
    let refused = tier.put(&huge, &source(&huge)).expect("put");
    assert_eq!(refused, Put::Refused(Refusal::TooLarge));
}

#[test]
fn a_parent_that_comes_back_finds_its_children() {
    let space = namespace(0);
    let keys = chain(&space, 1, 0, 3);
    let tier = tier(2);
    let run = |block| header(&space, &keys, block..block + 1, &[60_000]);
    // The child first: its parent lives elsewhere.
    for block in [2, 1] {
        assert_eq!(
            tier.put(&run(block), &source(&run(block))).expect("put"),
            Put::Stored
        );
    }
    // The child is older, and goes first though its parent was listed later.
    assert!(
        tier.evict_one()
            .is_some_and(|victim| victim.header() == &run(2))
    );
    assert!(
        tier.evict_one()
            .is_some_and(|victim| victim.header() == &run(1))
    );
    assert!(tier.evict_one().is_none());
}

#[test]
fn rings_of_opaque_parents_can_be_evicted() {
    let tier = tier(8);
    let keys = [1_u8, 2, 3].map(|byte| BlockKey([byte; 32]));
    for (index, key) in keys.iter().enumerate() {
        let header = RunHeader {
            namespace: BlockKey::default(),
            parent: keys[(index + 1) % 3],
            keys: [*key].into(),
            block_tokens: 0,
            slices: [5].into(),
            terms: Terms::default(),
        };
        assert_eq!(
            tier.put(&header, &source(&header)).expect("put"),
            Put::Stored
        );
        tier.validate().expect("sound");
    }
    let own = RunHeader {
        namespace: BlockKey::default(),
        parent: BlockKey([9; 32]),
        keys: [BlockKey([9; 32])].into(),
        block_tokens: 0,
        slices: [5].into(),
        terms: Terms::default(),
    };
    assert_eq!(tier.put(&own, &source(&own)).expect("put"), Put::Stored);
    for _ in 0..4 {
        assert!(tier.evict_one().is_some());
        tier.validate().expect("sound");
    }
    assert_eq!(tier.usage().used, 0);
}

#[test]
fn spare_pieces_are_not_kept() {
    let space = namespace(0);
    let keys = chain(&space, 1, 0, 2);
    let header = header(&space, &keys, 0..2, &[70_000]);
    let tier = tier(4);
    tier.put(&header, &source(&header)).expect("put");
    let region = Arc::new(Region::new(70_000).expect("memory"));
    let piece = |spare, offset, len| Piece { spare, offset, len };
    let to = RunTarget {
        region: Arc::clone(&region),
        lease: None,
        slices: vec![vec![
            piece(true, 0, 66_000),
            piece(false, 5, 1000),
            piece(true, 0, 3000),
        ]],
    };
    let (run, _) = tier.find(&keys[1]).expect("present");
    run.read_slices(0..1, &to).expect("memory");
    let mut got = vec![0; 1010];
    region.read(0, &mut got);
    let bytes = slice_bytes(&header, 0);
    assert_eq!(&got[5..1005], &bytes[66_000..67_000]);
    assert!(got[..5].iter().chain(&got[1005..]).all(|byte| *byte == 0));
    assert!(reads_back(&tier, &keys[0], 0) && reads_back(&tier, &keys[1], 1));
}

#[test]
fn bad_arguments_are_refused() {
    let space = namespace(0);
    let keys = chain(&space, 1, 0, 2);
    let good = header(&space, &keys, 0..2, &[100, 200]);
    let tier = tier(2);
    let mut fewer = source(&good);
    fewer.slices.pop();
    let mut outside = source(&good);
    outside.slices[0][0].offset = usize::MAX;
    let mut unkept = source(&good);
    unkept.slices[1][0].spare = true;
    let mut uneven = source(&good);
    uneven.slices[0][0].len -= 1;
    for bad in [fewer, outside, unkept, uneven] {
        assert!(tier.put(&good, &bad).is_err());
    }
    assert!(MemoryTier::new(1, "lru").is_err() && MemoryTier::new(1 << 20, "nonesuch").is_err());
    assert_eq!(tier.usage().used, 0);
}

#[test]
fn a_removed_block_goes_from_every_run_that_holds_it() {
    let space = namespace(0);
    let keys = chain(&space, 1, 0, 3);
    let tier = tier(4);
    for range in [1..2, 0..3] {
        let run = header(&space, &keys, range, &[100]);
        assert_eq!(tier.put(&run, &source(&run)).expect("put"), Put::Stored);
    }
    assert_eq!(tier.remove(&keys[1..2]), 2);
    tier.validate().expect("sound");
    assert_eq!(tier.usage().used, 0);
}
