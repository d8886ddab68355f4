//! A power failure: of what was not synced anything may be lost, in any order (as in ALICE, OSDI'14, and `CrashMonkey`,
//! OSDI'18). With `durable` everything that was acknowledged is there, and what was deleted is not, whatever the index knows.
#![expect(clippy::expect_used, reason = "helpers of tests")]

mod disk_support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use disk_support::recorded::RecordedFiles;
use disk_support::{check_key, config, crash_image, header, namespace, open, source};
use kvlab_core::config::DiskConfig;
use kvlab_core::run::RunHeader;
use kvlab_core::tier::{Put, Tier};
use proptest::prelude::*;

fn run(seed: u32) -> RunHeader {
    let names = namespace("power");
    header(names, names, seed, 2, &[20_000, 9000])
}

#[derive(Clone, Debug)]
enum Step {
    Put(u32),
    Remove(u32),
    Clear,
    Evict(u64),
    Flush,
    Reopen,
    /// With the index as it was when last saved (false) or without it.
    PowerFailure(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..40_u32).prop_map(Step::Put),
        3 => (0..40_u32).prop_map(Step::Remove),
        1 => Just(Step::Clear),
        1 => (1..100_000_u64).prop_map(Step::Evict),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        4 => any::<bool>().prop_map(Step::PowerFailure),
    ]
}

fn copy_index(from: &Path, to: &Path) {
    let to = to.join("index");
    if to.exists() {
        fs::remove_dir_all(&to).expect("removed");
    }
    crash_image(&from.join("index"), &to);
}

/// What was evicted is a hole that nobody had to sync; deleting its prompt makes it one that stays.
#[test]
fn what_was_evicted_before_a_delete_does_not_come_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = directory.path().join("store");
    let files = RecordedFiles::new();
    let (tier, _) = open(&DiskConfig {
        durable: true,
        direct: false,
        segment_bytes: 256 << 10,
        files: Arc::clone(&files) as _,
        ..config(&store)
    });
    let run_of = |name: &str, seed| {
        let names = namespace(name);
        header(names, names, seed, 2, &[20_000, 9000])
    };
    let deleted: Vec<_> = (0..12).map(|seed| run_of("deleted", seed)).collect();
    let kept: Vec<_> = (0..12).map(|seed| run_of("kept", seed)).collect();
    // The first lies in a segment that nothing else will be deleted from.
    for run in deleted[..1].iter().chain(&kept).chain(&deleted[1..]) {
        assert_eq!(tier.put(run, &source(run)).expect("valid"), Put::Stored);
    }
    tier.evict(1);
    let evicted = deleted.iter().filter(|run| !tier.contains(&run.keys[0]));
    assert_eq!(evicted.count(), 1);
    tier.clear(Some(&namespace("deleted"))).expect("cleared");
    let mut state = 1_u64;
    for failure in 0..16 {
        let image = directory.path().join(format!("image-{failure}"));
        files.power_failure(&image, &mut || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state >> 20
        });
        fs::copy(store.join("FORMAT"), image.join("FORMAT")).expect("copied");
        let (left, report) = open(&config(&image));
        for run in &deleted {
            let found = check_key(&left, &run.keys[1]);
            assert!(!matches!(found, Some(Ok(()))), "came back: {report:?}");
        }
        for run in &kept {
            assert_eq!(check_key(&left, &run.keys[1]), Some(Ok(())), "{report:?}");
        }
    }
}

proptest! {
    #![proptest_config(disk_support::cases(6))]

    #[test]
    fn what_is_acknowledged_is_on_stable_storage(
        steps in prop::collection::vec(step(), 20..60),
        seed: u64,
    ) {
        let directory = tempfile::tempdir().expect("a directory");
        let (store, saved) = (directory.path().join("store"), directory.path().join("saved"));
        let files = RecordedFiles::new();
        let config = DiskConfig {
            durable: true,
            direct: false,
            segment_bytes: 256 << 10,
            files: Arc::clone(&files) as _,
            ..config(&store)
        };
        let mut state = seed | 1;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let (mut tier, _) = open(&config);
        copy_index(&store, &saved);
        let (mut stored, mut evicted, mut failures) = (BTreeSet::new(), false, 0);
        for step in steps.iter().chain([&Step::PowerFailure(true), &Step::PowerFailure(false)]) {
            match step {
                Step::Put(seed) => {
                    let put = tier.put(&run(*seed), &source(&run(*seed))).expect("valid");
                    prop_assert!(matches!(put, Put::Stored | Put::Present), "{:?}", put);
                    stored.insert(*seed);
                }
                Step::Remove(seed) => {
                    tier.remove(&run(*seed).keys);
                    stored.remove(seed);
                }
                Step::Clear => {
                    tier.clear(None).expect("cleared");
                    stored.clear();
                }
                Step::Evict(bytes) => evicted |= tier.evict(*bytes) > 0,
                Step::Flush => {
                    tier.flush().expect("flushed");
                    copy_index(&store, &saved);
                }
                Step::Reopen => {
                    tier.close().expect("closed");
                    (tier, _) = open(&config);
                    copy_index(&store, &saved);
                }
                Step::PowerFailure(without_index) => {
                    failures += 1;
                    let image = directory.path().join(format!("image-{failures}"));
                    files.power_failure(&image, &mut random);
                    fs::copy(store.join("FORMAT"), image.join("FORMAT")).expect("copied");
                    if !without_index {
                        copy_index(&saved, &image);
                    }
                    let (left, report) = open(&disk_support::config(&image));
                    left.validate().expect("sound");
                    for seed in 0..40 {
                        let found = check_key(&left, &run(seed).keys[1]);
                        if stored.contains(&seed) {
                            prop_assert!(found == Some(Ok(())) || evicted, "{} is {:?}: {:?}", seed, found, report);
                        } else {
                            prop_assert!(!matches!(found, Some(Ok(()))), "{} came back: {:?}", seed, report);
                        }
                    }
                    drop(left);
                    fs::remove_dir_all(image).expect("removed");
                }
            }
        }
    }
}
