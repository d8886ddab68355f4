//! A disk that misbehaves: whatever the system calls do, bytes are right or missing, and what is lost is counted.
#![expect(clippy::expect_used, reason = "helpers of tests")]

mod disk_support;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use disk_support::faulty::{Fault, FaultyFiles, Operation};
use disk_support::{check_key, config, header, namespace, source};
use kvlab_core::config::DiskConfig;
use kvlab_core::run::RunHeader;
use kvlab_core::tier::disk::DiskTier;
use kvlab_core::tier::{Put, ReadFailure, Refusal, Tier};
use proptest::prelude::*;

const SLICES: &[u32] = &[20_000, 9000];

fn faulty(path: &Path, seed: u64) -> (Arc<FaultyFiles>, DiskConfig) {
    let files = FaultyFiles::new(seed);
    let config = DiskConfig {
        segment_bytes: 256 << 10,
        files: Arc::clone(&files) as _,
        ..config(path)
    };
    (files, config)
}

fn run(seed: u32) -> RunHeader {
    let names = namespace("faults");
    header(names, names, seed, 2, SLICES)
}

fn put(tier: &DiskTier, seed: u32) -> Put {
    let run = run(seed);
    tier.put(&run, &source(&run)).expect("valid")
}

fn segment_bytes_on_disk(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir(path)
        .expect("there")
        .map(|entry| entry.expect("readable"));
    entries
        .filter(|entry| entry.path().extension().is_some_and(|end| end == "seg"))
        .map(|entry| entry.metadata().expect("known").blocks() * 512)
        .sum()
}

#[test]
fn short_and_interrupted_calls_are_gone_on_with() {
    for direct in [false, true] {
        let directory = tempfile::tempdir().expect("a directory");
        let (files, config) = faulty(directory.path(), 7);
        let config = DiskConfig { direct, ..config };
        files.plan(|plan| {
            plan.armed = true;
            for operation in [Operation::Read, Operation::Write] {
                plan.rates.insert((operation, Fault::Short), 400);
                plan.rates.insert((operation, Fault::Interrupted), 200);
                plan.rates.insert((operation, Fault::Slow), 50);
            }
        });
        for _ in 0..2 {
            let (tier, report) = DiskTier::open(&config).expect("opened");
            assert_eq!(
                report.rows_dropped,
                kvlab_core::tier::disk::RowsDropped::default()
            );
            for seed in 0..20 {
                assert!(matches!(put(&tier, seed), Put::Stored | Put::Present));
                assert_eq!(check_key(&tier, &run(seed).keys[1]), Some(Ok(())));
            }
            assert_eq!(
                tier.stats().dropped,
                kvlab_core::tier::disk::DroppedCounts::default()
            );
            tier.close().expect("closed");
        }
        for operation in [Operation::Read, Operation::Write] {
            for fault in [Fault::Short, Fault::Interrupted] {
                assert!(files.injected(operation, fault) > 0);
            }
        }
    }
}

#[test]
fn a_full_disk_stops_admission_until_there_is_room() {
    let directory = tempfile::tempdir().expect("a directory");
    let (files, config) = faulty(directory.path(), 1);
    let (tier, _) = DiskTier::open(&config).expect("opened");
    assert_eq!(put(&tier, 0), Put::Stored);
    files.plan(|plan| {
        plan.armed = true;
        plan.budget = Some(100_000);
    });
    let mut stored = HashSet::from([0]);
    for seed in 1..30 {
        match put(&tier, seed) {
            Put::Stored => drop(stored.insert(seed)),
            refused => assert_eq!(refused, Put::Refused(Refusal::NoSpace)),
        }
    }
    assert!(stored.len() > 1 && stored.len() < 10, "{stored:?}");
    assert_eq!(tier.stats().refused.no_space, 30 - stored.len() as u64);
    assert!(
        files.injected(Operation::Write, Fault::Full) > 0,
        "a write was cut"
    );
    for seed in 0..30 {
        let found = check_key(&tier, &run(seed).keys[0]);
        assert_eq!(found, stored.contains(&seed).then_some(Ok(())), "{seed}");
    }
    tier.validate().expect("sound");
    files.plan(|plan| plan.budget = None);
    for seed in 0..30 {
        assert!(matches!(put(&tier, seed), Put::Stored | Put::Present));
        assert_eq!(check_key(&tier, &run(seed).keys[0]), Some(Ok(())));
    }
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged_in_that_segment() {
    let directory = tempfile::tempdir().expect("a directory");
    let (files, config) = faulty(directory.path(), 1);
    let config = DiskConfig {
        durable: true,
        ..config
    };
    let (tier, _) = DiskTier::open(&config).expect("opened");
    assert_eq!(put(&tier, 0), Put::Stored);
    files.plan(|plan| {
        plan.armed = true;
        plan.next.insert(Operation::Sync, (1, Fault::Broken));
    });
    assert_eq!(put(&tier, 1), Put::Refused(Refusal::WriteFailed));
    assert_eq!(check_key(&tier, &run(1).keys[0]), None);
    assert_eq!(tier.stats().segments, 1);
    // The system would say that all is well now.
    assert_eq!(put(&tier, 1), Put::Stored);
    assert_eq!(tier.stats().segments, 2, "it went to another segment");
    for seed in 0..2 {
        assert_eq!(check_key(&tier, &run(seed).keys[0]), Some(Ok(())));
    }
    tier.validate().expect("sound");
    // A flush says so, too, and the segment is not used again.
    files.plan(|plan| {
        plan.next.insert(Operation::Sync, (1, Fault::Broken));
    });
    assert!(tier.flush().is_err());
    assert_eq!(put(&tier, 2), Put::Stored);
    assert_eq!(tier.stats().segments, 3);
    tier.flush().expect("flushed");
    tier.validate().expect("sound");
}

#[test]
fn files_and_ranges_that_cannot_be_given_back_still_count() {
    let directory = tempfile::tempdir().expect("a directory");
    let (files, config) = faulty(directory.path(), 1);
    let config = DiskConfig {
        capacity: 3 << 20,
        ..config
    };
    let (tier, _) = DiskTier::open(&config).expect("opened");
    files.plan(|plan| {
        plan.armed = true;
        plan.rates.insert((Operation::Remove, Fault::Broken), 1000);
        plan.rates.insert((Operation::Punch, Fault::Broken), 1000);
    });
    let mut refused = 0;
    for seed in 0..200 {
        refused += u64::from(put(&tier, seed) != Put::Stored);
        let on_disk = segment_bytes_on_disk(directory.path());
        assert!(
            on_disk <= tier.stats().used_bytes,
            "{on_disk}, {:?}",
            tier.stats()
        );
        assert!(tier.stats().used_bytes <= config.capacity + (64 << 10));
    }
    assert_eq!(refused, tier.stats().refused.nothing_to_evict);
    assert!(refused > 0 && files.failed(Operation::Remove) > 0);
    // What was given up does not come back when the index is lost.
    files.plan(|plan| plan.armed = false);
    let present = (0..200).filter(|seed| tier.contains(&run(*seed).keys[0]));
    let present = present.collect::<Vec<_>>();
    assert_eq!(put(&tier, 1000), Put::Stored, "there is room again");
    tier.close().expect("closed");
    fs::remove_dir_all(directory.path().join("index")).expect("removed");
    let (tier, report) = DiskTier::open(&config).expect("opened");
    assert!(report.index_rebuilt);
    for seed in (0..200).filter(|seed| !present.contains(seed)) {
        assert!(!tier.contains(&run(seed).keys[0]), "{seed} came back");
    }
}

#[test]
fn a_segment_that_cannot_be_read_now_is_left_for_later() {
    let directory = tempfile::tempdir().expect("a directory");
    let (files, config) = faulty(directory.path(), 1);
    let (tier, _) = DiskTier::open(&config).expect("opened");
    for seed in 0..20 {
        assert_eq!(put(&tier, seed), Put::Stored);
    }
    tier.close().expect("closed");
    for operation in [Operation::Open, Operation::Read] {
        files.plan(|plan| {
            plan.armed = true;
            plan.next.insert(operation, (1, Fault::Broken));
        });
        let (tier, report) = DiskTier::open(&config).expect("opened");
        assert_eq!(report.foreign_segments, 1);
        assert!(report.rows_dropped.no_segment > 0);
        assert_eq!(report.runs + report.rows_dropped.no_segment, 20);
        tier.close().expect("closed");
        let (tier, report) = DiskTier::open(&config).expect("opened");
        assert_eq!((report.runs, report.foreign_segments), (20, 0));
        for seed in 0..20 {
            assert_eq!(check_key(&tier, &run(seed).keys[0]), Some(Ok(())));
        }
        tier.close().expect("closed");
    }
}

#[test]
fn what_is_deleted_does_not_come_back_from_a_segment_that_was_left_alone() {
    for namespace_only in [false, true] {
        let directory = tempfile::tempdir().expect("a directory");
        let (files, config) = faulty(directory.path(), 1);
        let (tier, _) = DiskTier::open(&config).expect("opened");
        for seed in 0..20 {
            assert_eq!(put(&tier, seed), Put::Stored);
        }
        tier.close().expect("closed");
        files.plan(|plan| {
            plan.armed = true;
            plan.next.insert(Operation::Open, (1, Fault::Broken));
        });
        let (tier, report) = DiskTier::open(&config).expect("opened");
        assert_eq!(report.foreign_segments, 1);
        files.plan(|plan| {
            plan.next.insert(Operation::Open, (1, Fault::Broken));
        });
        let wanted = namespace_only.then(|| namespace("faults"));
        let refused = tier.clear(wanted.as_ref()).expect_err("nobody can tell");
        assert!(refused.to_string().contains("may hold what was deleted"));
        tier.clear(wanted.as_ref()).expect("cleared");
        tier.close().expect("closed");
        let (tier, report) = DiskTier::open(&config).expect("opened");
        assert_eq!((report.runs, report.foreign_segments), (0, 0));
        assert!((0..20).all(|seed| !tier.contains(&run(seed).keys[0])));
    }
}

#[test]
fn a_payload_that_cannot_be_read_at_open_is_kept_and_counted() {
    let directory = tempfile::tempdir().expect("a directory");
    let (files, mut config) = faulty(&directory.path().join("live"), 1);
    let (tier, _) = DiskTier::open(&config).expect("opened");
    for seed in 0..4 {
        assert_eq!(put(&tier, seed), Put::Stored);
    }
    // As a process leaves it that is killed, and without its index: every payload is looked at.
    let killed = directory.path().join("killed");
    fs::create_dir(&killed).expect("made");
    fs::set_permissions(&killed, std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .expect("changed");
    for entry in fs::read_dir(&config.path).expect("listed") {
        let path = entry.expect("listed").path();
        if path.is_file() && path.file_name().is_some_and(|name| name != "LOCK") {
            fs::copy(&path, killed.join(path.file_name().expect("a name"))).expect("copied");
        }
    }
    tier.close().expect("closed");
    config.path = killed;
    // Behind the page of the segment and that of the first record's header.
    files.plan(|plan| plan.bad = Some(8192..8193));
    let (tier, report) = DiskTier::open(&config).expect("opened");
    assert_eq!((report.runs, report.payloads_unread), (4, 1));
    assert_eq!(tier.stats().unread_at_open, 1);
    files.plan(|plan| plan.bad = None);
    for seed in 0..4 {
        assert_eq!(check_key(&tier, &run(seed).keys[0]), Some(Ok(())));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(u32),
    Read(u32),
    Remove(u32),
    Evict(u64),
    Clear,
    Flush,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..60_u32).prop_map(Step::Put),
        6 => (0..60_u32).prop_map(Step::Read),
        2 => (0..60_u32).prop_map(Step::Remove),
        1 => (1..200_000_u64).prop_map(Step::Evict),
        1 => Just(Step::Clear),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
    ]
}

fn fault() -> impl Strategy<Value = (Operation, Fault, u64)> {
    use Operation::{Open, Preallocate, Punch, Read, Remove, SetSize, Sync, Write};
    let moved = prop_oneof![Just(Read), Just(Write)];
    let soft = prop_oneof![
        Just(Fault::Short),
        Just(Fault::Interrupted),
        Just(Fault::Slow)
    ];
    let any = prop::sample::select(vec![
        Open,
        Read,
        Write,
        Sync,
        SetSize,
        Preallocate,
        Punch,
        Remove,
    ]);
    let hard = prop_oneof![Just(Fault::Broken), Just(Fault::Full)];
    prop_oneof![
        (moved, soft, 50..300_u64),
        (any, hard, 10..200_u64).prop_map(|(operation, fault, rate)| {
            let fault = if operation == Read {
                Fault::Broken
            } else {
                fault
            };
            (operation, fault, rate)
        }),
    ]
}

/// Failures after which a segment that was left alone when the store was opened may still hold what was deleted.
fn unsure(files: &FaultyFiles) -> u64 {
    use Operation::{Open, Read, Remove};
    [Open, Read, Remove]
        .into_iter()
        .map(|of| files.failed(of))
        .sum()
}

proptest! {
    #![proptest_config(disk_support::cases(8))]

    #[test]
    fn any_faults_cost_only_what_is_counted(
        steps in prop::collection::vec(step(), 20..120),
        faults in prop::collection::vec(fault(), 1..4),
        seed: u64,
        small: bool,
        durable: bool,
        direct: bool,
    ) {
        let directory = tempfile::tempdir().expect("a directory");
        let (files, config) = faulty(directory.path(), seed);
        let config = DiskConfig {
            capacity: if small { 2 << 20 } else { 64 << 20 },
            durable,
            direct,
            ..config
        };
        files.plan(|plan| {
            plan.rates = faults.iter().map(|(of, fault, rate)| ((*of, *fault), *rate)).collect::<BTreeMap<_, _>>();
        });
        let (mut tier, _) = DiskTier::open(&config).expect("opened");
        files.plan(|plan| plan.armed = true);
        // What may be there, and what must be.
        let mut stored: HashSet<u32> = HashSet::new();
        let (mut refused, mut lost) = (0, 0);
        for step in &steps {
            match step {
                Step::Put(seed) => match put(&tier, *seed) {
                    Put::Stored | Put::Present => drop(stored.insert(*seed)),
                    Put::Refused(_) => refused += 1,
                    other => panic!("{other:?}"),
                },
                Step::Read(seed) => match check_key(&tier, &run(*seed).keys[0]) {
                    Some(Ok(())) => prop_assert!(stored.contains(seed)),
                    Some(Err(failure)) => {
                        prop_assert_eq!(failure, ReadFailure::Io, "only reads fail here, bytes stay");
                        prop_assert!(files.failed(Operation::Read) > 0);
                        lost += 1;
                    }
                    None => {}
                },
                Step::Remove(seed) => {
                    let before = unsure(&files);
                    tier.remove(&run(*seed).keys);
                    prop_assert!(!tier.contains(&run(*seed).keys[0]));
                    if unsure(&files) == before {
                        stored.remove(seed);
                    }
                }
                Step::Evict(bytes) => drop(tier.evict(*bytes)),
                Step::Clear => {
                    let before = unsure(&files);
                    if tier.clear(None).is_err() {
                        prop_assert!(unsure(&files) + files.failed(Operation::Write) + files.failed(Operation::Sync) > 0);
                    }
                    prop_assert_eq!(tier.stats().runs, 0);
                    if unsure(&files) == before {
                        stored.clear();
                    }
                }
                Step::Flush => {
                    if tier.flush().is_err() {
                        prop_assert!(files.failed(Operation::Sync) > 0);
                    }
                }
                Step::Reopen => {
                    let stats = tier.stats();
                    prop_assert_eq!(stats.dropped.io, lost);
                    prop_assert_eq!(stats.dropped.corrupt, 0);
                    let counts = stats.refused;
                    let errors = counts.no_space + counts.write_failed;
                    prop_assert_eq!(errors + counts.nothing_to_evict, refused);
                    let changes = [Operation::Open, Operation::Write, Operation::Sync, Operation::SetSize, Operation::Preallocate];
                    prop_assert!(errors == 0 || changes.into_iter().any(|of| files.failed(of) > 0));
                    (refused, lost) = (0, 0);
                    let before = (0..60).filter(|seed| tier.contains(&run(*seed).keys[0])).collect::<Vec<_>>();
                    if tier.close().is_err() {
                        prop_assert!(files.failed(Operation::Sync) > 0);
                    }
                    let (next, report) = DiskTier::open(&config).expect("opened");
                    tier = next;
                    let after = before.iter().filter(|seed| tier.contains(&run(**seed).keys[0])).count();
                    let rows = report.rows_dropped;
                    let evicted = tier.stats().evictions as usize;
                    prop_assert!(
                        after + rows.no_segment + rows.no_record + rows.overlapping + evicted >= before.len(),
                        "{} of {}: {:?}", after, before.len(), report
                    );
                    prop_assert!(rows.no_segment == 0 || report.foreign_segments > 0);
                }
            }
            prop_assert!(tier.validate().is_ok(), "{:?}", tier.validate());
            let used = segment_bytes_on_disk(directory.path());
            // Bytes of files that could not even be opened are not ours to count.
            prop_assert!(used <= config.capacity || files.failed(Operation::Open) + files.failed(Operation::Read) > 0);
        }
        files.plan(|plan| plan.armed = false);
        let io = tier.stats().dropped.io;
        for seed in 0..60 {
            let found = check_key(&tier, &run(seed).keys[0]);
            prop_assert!(found.is_none() || found == Some(Ok(())), "{} {:?}", seed, found);
            prop_assert!(found.is_none() || stored.contains(&seed), "{} came back", seed);
        }
        prop_assert_eq!(tier.stats().dropped.io, io);
    }
}
