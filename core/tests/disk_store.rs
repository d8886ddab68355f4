//! The disk tier: what goes in comes out, across reopening, under a cap, leaves first.

mod disk_support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use disk_support::{Shape, check, check_key, config, crash_image, header, namespace, open, source};
use kvlab_core::Error;
use kvlab_core::tier::disk::{DiskTier, DroppedCounts};
use kvlab_core::tier::{Put, Refusal, Tier};

const SLICES: &[u32] = &[8192, 4096, 1024];

#[test]
fn bytes_come_back_through_every_shape_of_target() {
    for direct in [false, true] {
        let directory = tempfile::tempdir().expect("a directory");
        let config = kvlab_core::config::DiskConfig {
            direct,
            ..config(directory.path())
        };
        let (tier, report) = open(&config);
        assert!(report.clean);
        let names = namespace("one");
        let odd: &[&[u32]] = &[
            SLICES,
            &[1],
            &[511, 513, 4095, 4097, 1],
            &[5 << 20, 3, 1 << 20],
        ];
        for (seed, slices) in odd.iter().enumerate() {
            let header = header(names, names, seed as u32, 3, slices);
            let source = source(&header);
            assert_eq!(tier.put(&header, &source).expect("valid"), Put::Stored);
            assert_eq!(tier.put(&header, &source).expect("valid"), Put::Present);
            for (position, key) in header.keys.iter().enumerate() {
                let (pinned, found) = tier.find(key).expect("stored");
                assert_eq!(found, position);
                assert_eq!(pinned.header(), &header);
                for shape in [Shape::Pages, Shape::Odd, Shape::HalfSpare] {
                    check(&*pinned, shape).expect("sound bytes");
                }
            }
            tier.validate().expect("sound");
        }
        assert_eq!(tier.stats().dropped, DroppedCounts::default());
    }
}

#[test]
fn a_store_is_found_again_after_closing_and_after_a_kill() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store");
    let names = namespace("one");
    let first = header(names, names, 1, 4, SLICES);
    let second = header(names, first.keys[3], 2, 2, &[700, 300]);
    let (tier, _) = open(&config(&path));
    for run in [&first, &second] {
        assert_eq!(tier.put(run, &source(run)).expect("valid"), Put::Stored);
    }
    let killed = directory.path().join("killed");
    crash_image(&path, &killed);
    tier.close().expect("closed");
    tier.close().expect("closed twice");
    assert!(matches!(
        tier.put(&first, &source(&first)),
        Err(Error::Closed)
    ));
    assert!(tier.find(&first.keys[0]).is_none());
    for (path, clean) in [(&path, true), (&killed, false)] {
        let (tier, report) = open(&config(path));
        assert_eq!((report.clean, report.runs, report.blocks), (clean, 2, 6));
        tier.validate().expect("sound");
        for run in [&first, &second] {
            for key in &run.keys {
                assert_eq!(check_key(&tier, key), Some(Ok(())));
            }
        }
        // What was sealed goes on without a new file.
        let third = header(names, second.keys[1], 3, 1, SLICES);
        assert_eq!(
            tier.put(&third, &source(&third)).expect("valid"),
            Put::Stored
        );
        assert_eq!(tier.segment_files().len(), 1);
        assert_eq!(check_key(&tier, &third.keys[0]), Some(Ok(())));
    }
}

#[test]
fn files_are_private_and_a_second_opener_is_told_who_holds_the_store() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("deep").join("store");
    let (tier, _) = open(&config(&path));
    let names = namespace("one");
    let run = header(names, names, 1, 1, SLICES);
    tier.put(&run, &source(&run)).expect("valid");
    let mode =
        |path: &std::path::Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&path.join("index")), 0o700);
    for entry in fs::read_dir(&path).expect("readable") {
        let entry = entry.expect("readable").path();
        if entry.is_file() {
            assert_eq!(mode(&entry), 0o600, "{}", entry.display());
        }
    }
    let refused = DiskTier::open(&config(&path));
    let Err(Error::Locked { holder, .. }) = refused else {
        panic!("a second opener got in: {refused:?}");
    };
    assert!(
        holder.starts_with(&std::process::id().to_string()),
        "{holder}"
    );
    drop(tier);
    open(&config(&path));
}

#[test]
fn leaves_go_first_and_the_cap_holds() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = kvlab_core::config::DiskConfig {
        capacity: 4 << 20,
        segment_bytes: 256 << 10,
        ..config(directory.path())
    };
    let (tier, _) = open(&config);
    let names = namespace("one");
    let mut parent = names;
    let mut chain = Vec::new();
    for seed in 0..4 {
        let run = header(names, parent, seed, 2, &[30_000]);
        parent = run.keys[1];
        assert_eq!(tier.put(&run, &source(&run)).expect("valid"), Put::Stored);
        chain.push(run);
    }
    let (pinned, _) = tier.find(&chain[3].keys[0]).expect("stored");
    for seed in 100..250 {
        let run = header(names, names, seed, 1, &[60_000]);
        assert_eq!(tier.put(&run, &source(&run)).expect("valid"), Put::Stored);
        tier.validate().expect("sound");
        // A chain whose end is pinned stays whole.
        assert!(chain.iter().all(|run| tier.contains(&run.keys[0])));
    }
    drop(pinned);
    assert!(tier.stats().evictions > 0);
    let before = tier.stats().runs;
    while tier.contains(&chain[0].keys[0]) {
        assert!(tier.evict(1) > 0);
        tier.validate().expect("sound");
        // The rest of the chain goes from its end.
        let left = chain.iter().map(|run| tier.contains(&run.keys[0]));
        assert!(left.is_sorted_by(|before, after| before >= after));
    }
    assert!(tier.stats().runs < before);
    tier.evict(u64::MAX);
    assert_eq!(tier.stats().runs, 0);
}

#[test]
fn a_run_is_refused_for_the_right_reason() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = config(directory.path());
    config.capacity = 4 << 20;
    let names = namespace("one");
    let root = header(names, names, 1, 1, SLICES);
    {
        let (tier, _) = open(&config);
        let orphan = header(names, root.keys[0], 2, 1, SLICES);
        let put = tier.put(&orphan, &source(&orphan)).expect("valid");
        assert_eq!(put, Put::Refused(Refusal::ParentMissing));
        let large = header(names, names, 3, 1, &[5 << 20]);
        let put = tier.put(&large, &source(&large)).expect("valid");
        assert_eq!(put, Put::Refused(Refusal::TooLarge));
        let mut wrong = source(&root);
        wrong.slices[0].pop();
        assert!(matches!(
            tier.put(&root, &wrong),
            Err(Error::InvalidArgument(_))
        ));
        assert_eq!(tier.put(&root, &source(&root)).expect("valid"), Put::Stored);
        let refused = tier.stats().refused;
        assert_eq!((refused.parent_missing, refused.too_large), (1, 1));
    }
    config.free_reserve = u64::MAX / 2;
    let (tier, _) = open(&config);
    let other = header(names, names, 4, 1, SLICES);
    let put = tier.put(&other, &source(&other)).expect("valid");
    assert_eq!(put, Put::Refused(Refusal::NoSpace));
    assert_eq!(check_key(&tier, &root.keys[0]), Some(Ok(())));
    tier.validate().expect("sound");
}

#[test]
fn limits_slow_reads_and_writes_down_and_nothing_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = config(directory.path());
    let names = namespace("limited");
    let run = header(names, names, 1, 2, &[400_000, 400_000]);
    for limits in [(Some(4 << 20), None), (None, Some(4 << 20))] {
        (config.read_limit, config.write_limit) = limits;
        let (tier, _) = open(&config);
        let least = |limited: Option<u64>| {
            limited.map_or(Duration::ZERO, |limit| {
                Duration::from_secs_f64(800_000.0 / limit as f64)
            })
        };
        let start = Instant::now();
        assert_eq!(tier.put(&run, &source(&run)).expect("valid"), Put::Stored);
        assert!(start.elapsed() >= least(limits.1));
        let start = Instant::now();
        assert_eq!(check_key(&tier, &run.keys[0]), Some(Ok(())));
        assert!(start.elapsed() >= least(limits.0));
        assert_eq!(tier.clear(None).expect("cleared"), 1);
        tier.close().expect("closed");
    }
    config.read_limit = Some(0);
    let refused = DiskTier::open(&config).expect_err("refused");
    assert!(
        refused.to_string().contains("l3_read_limit = 0"),
        "{refused}"
    );
}
