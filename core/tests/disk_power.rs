//! A power failure: of what was not synced anything may be lost, in any order (as in ALICE, OSDI'14, and `CrashMonkey`,
//! OSDI'18). With `durable` everything that was acknowledged is there, and what was deleted is not, whatever the index knows. Without
//! it, what was lost is known to be lost.
#![expect(clippy::expect_used, reason = "helpers of tests")]

mod disk_support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk_support::recorded::RecordedFiles;
use disk_support::{check_key, config, crash_image, header, namespace, open, source};
use kvlab_core::config::DiskConfig;
use kvlab_core::run::RunHeader;
use kvlab_core::tier::disk::{DiskTier, RecoveryReport};
use kvlab_core::tier::{Put, Tier};
use proptest::prelude::*;
use tempfile::TempDir;

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
    Kill,
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
        2 => Just(Step::Kill),
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

/// A store over files that a power failure can be tried on, and where images of it go.
struct Bed {
    directory: TempDir,
    files: Arc<RecordedFiles>,
    config: DiskConfig,
    random: u64,
    kills: usize,
    failures: usize,
}

impl Bed {
    fn new(durable: bool, seed: u64) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let files = RecordedFiles::new();
        let config = DiskConfig {
            durable,
            direct: false,
            segment_bytes: 256 << 10,
            files: Arc::clone(&files) as _,
            ..config(&directory.path().join("store"))
        };
        Self {
            directory,
            files,
            config,
            random: seed | 1,
            kills: 0,
            failures: 0,
        }
    }

    /// Keeps the index as it is now: what a power failure leaves of it at least.
    fn save_index(&self) {
        copy_index(&self.config.path, &self.directory.path().join("saved"));
    }

    /// A flush, a clean end or a kill: the tier that goes on, with its index saved.
    fn end(&mut self, step: &Step, tier: DiskTier) -> DiskTier {
        let tier = match step {
            Step::Flush => {
                tier.flush().expect("flushed");
                tier
            }
            Step::Kill => self.kill(tier),
            _ => {
                tier.close().expect("closed");
                open(&self.config).0
            }
        };
        self.save_index();
        tier
    }

    /// Goes on with what a kill leaves of the store.
    fn kill(&mut self, tier: DiskTier) -> DiskTier {
        self.kills += 1;
        let name = format!("store-{}", self.kills);
        let left = self.directory.path().join(name);
        crash_image(&self.config.path, &left);
        self.files.moved(&self.config.path, &left);
        drop(tier);
        self.config.path = left;
        open(&self.config).0
    }

    /// What the power leaves when it fails now, opened.
    fn power_failure(&mut self, without_index: bool) -> (DiskTier, RecoveryReport, PathBuf) {
        self.failures += 1;
        let image = self
            .directory
            .path()
            .join(format!("image-{}", self.failures));
        let state = &mut self.random;
        self.files.power_failure(&self.config.path, &image, || {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            *state
        });
        fs::copy(self.config.path.join("FORMAT"), image.join("FORMAT")).expect("copied");
        if !without_index {
            copy_index(&self.directory.path().join("saved"), &image);
        }
        let (left, report) = open(&config(&image));
        left.validate().expect("sound");
        (left, report, image)
    }
}

/// Both ways that a power failure can leave the index, after all steps.
const LAST: [Step; 2] = [Step::PowerFailure(true), Step::PowerFailure(false)];

/// What was evicted is a hole that nobody had to sync; deleting its prompt makes it one that stays.
#[test]
fn what_was_evicted_before_a_delete_does_not_come_back() {
    let mut bed = Bed::new(true, 1);
    let (tier, _) = open(&bed.config);
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
    for _ in 0..16 {
        let (left, report, _) = bed.power_failure(true);
        for run in &deleted {
            let found = check_key(&left, &run.keys[1]);
            assert!(!matches!(found, Some(Ok(()))), "came back: {report:?}");
        }
        for run in &kept {
            assert_eq!(check_key(&left, &run.keys[1]), Some(Ok(())), "{report:?}");
        }
    }
}

/// A table of contents may arrive without the payload of what it lists.
#[test]
fn a_segment_that_was_not_synced_is_not_believed() {
    let mut bed = Bed::new(false, 1);
    let (tier, _) = open(&bed.config);
    bed.save_index();
    // Two segments are sealed then, and none is synced.
    let runs = (0..20).map(run).collect::<Vec<_>>();
    for run in &runs {
        assert_eq!(tier.put(run, &source(run)).expect("valid"), Put::Stored);
    }
    for failure in 0..48 {
        let (left, report, _) = bed.power_failure(failure % 2 == 0);
        for run in &runs {
            let put = left.put(run, &source(run)).expect("valid");
            let found = check_key(&left, &run.keys[1]);
            assert_eq!(found, Some(Ok(())), "was {put:?}: {report:?}");
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
        let mut bed = Bed::new(true, seed);
        let (mut tier, _) = open(&bed.config);
        bed.save_index();
        let (mut stored, mut evicted) = (BTreeSet::new(), false);
        for step in steps.iter().chain(&LAST) {
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
                Step::Flush | Step::Reopen | Step::Kill => tier = bed.end(step, tier),
                Step::PowerFailure(without_index) => {
                    let (left, report, image) = bed.power_failure(*without_index);
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

    /// Without `durable` anything may be lost, but nothing that is lost stands in the way of its being stored again.
    #[test]
    fn what_is_said_to_be_present_can_be_read(
        steps in prop::collection::vec(step(), 30..60),
        seed: u64,
    ) {
        let mut bed = Bed::new(false, seed);
        let (mut tier, _) = open(&bed.config);
        bed.save_index();
        for step in steps.iter().chain(&LAST) {
            match step {
                Step::Put(seed) => {
                    tier.put(&run(*seed), &source(&run(*seed))).expect("valid");
                }
                Step::Remove(seed) => {
                    tier.remove(&run(*seed).keys);
                }
                Step::Clear => {
                    tier.clear(None).expect("cleared");
                }
                Step::Evict(bytes) => {
                    tier.evict(*bytes);
                }
                Step::Flush | Step::Reopen | Step::Kill => tier = bed.end(step, tier),
                Step::PowerFailure(without_index) => {
                    let (left, report, image) = bed.power_failure(*without_index);
                    for seed in 0..40 {
                        let run = run(seed);
                        let put = left.put(&run, &source(&run)).expect("valid");
                        prop_assert!(matches!(put, Put::Stored | Put::Present), "{:?}", put);
                        let found = check_key(&left, &run.keys[1]);
                        prop_assert_eq!(found, Some(Ok(())), "{} was {:?}: {:?}", seed, put, report);
                    }
                    drop(left);
                    fs::remove_dir_all(image).expect("removed");
                }
            }
        }
    }
}
