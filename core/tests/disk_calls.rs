//! How many system calls the disk tier makes where they are what costs.
#![allow(clippy::expect_used, reason = "helpers of tests")]

mod disk_support;

use std::path::Path;
use std::sync::Arc;

use disk_support::faulty::{FaultyFiles, Operation};
use disk_support::{check_key, config, crash_image, header, namespace, open, source};
use kvlab_core::config::DiskConfig;
use kvlab_core::run::RunHeader;
use kvlab_core::tier::{Put, Tier};

/// A store whose calls are counted.
fn counted(path: &Path) -> (DiskConfig, Arc<FaultyFiles>) {
    let files = FaultyFiles::new(1);
    let config = DiskConfig {
        files: Arc::clone(&files) as _,
        ..config(path)
    };
    (config, files)
}

fn run(seed: u32, slices: &[u32]) -> RunHeader {
    let names = namespace("calls");
    header(names, names, seed, 1, slices)
}

#[test]
fn a_small_record_is_read_by_one_call_header_included() {
    let directory = tempfile::tempdir().expect("a directory");
    let (config, files) = counted(directory.path());
    let reads = || files.calls(Operation::Read);
    let runs = [
        run(1, &[65_536]),
        run(2, &[100]),
        run(3, &[4097, 1, 30_000]),
    ];
    for reopened in [false, true] {
        let (tier, _) = open(&config);
        for run in &runs {
            let put = tier.put(run, &source(run)).expect("valid");
            assert_eq!(put == Put::Present, reopened);
            for _ in 0..2 {
                let before = reads();
                assert_eq!(check_key(&tier, &run.keys[0]), Some(Ok(())));
                assert_eq!(reads() - before, 1, "{:?}", run.slices);
            }
        }
    }
}

#[test]
fn what_this_process_wrote_needs_no_header() {
    let directory = tempfile::tempdir().expect("a directory");
    let (config, files) = counted(directory.path());
    let (tier, _) = open(&config);
    let large = run(1, &[2 << 20, 2 << 20, 4096]);
    assert_eq!(
        tier.put(&large, &source(&large)).expect("valid"),
        Put::Stored
    );
    let before = files.calls(Operation::Read);
    assert_eq!(check_key(&tier, &large.keys[0]), Some(Ok(())));
    let reads = files.calls(Operation::Read) - before;
    assert_eq!(reads, 2, "4 MiB, then the rest");
}

#[test]
fn sealed_segments_are_saved_together_and_none_is_lost_before() {
    let directory = tempfile::tempdir().expect("a directory");
    let (config, files) = counted(&directory.path().join("store"));
    let (tier, _) = open(&config);
    let before = files.calls(Operation::Sync);
    // Two fill a segment.
    let runs = (0..14)
        .map(|seed| run(seed, &[400_000]))
        .collect::<Vec<_>>();
    for run in &runs {
        assert_eq!(tier.put(run, &source(run)).expect("valid"), Put::Stored);
    }
    tier.validate().expect("sound");
    assert!(tier.segment_files().len() > 6);
    let syncs = files.calls(Operation::Sync) - before;
    assert_eq!(syncs, 4, "six were sealed, four are saved");
    let image = directory.path().join("image");
    crash_image(&directory.path().join("store"), &image);
    let (left, report) = open(&disk_support::config(&image));
    assert!(!report.clean);
    for run in &runs {
        assert_eq!(check_key(&left, &run.keys[0]), Some(Ok(())));
    }
    tier.flush().expect("flushed");
    let syncs = files.calls(Operation::Sync) - before;
    assert_eq!(syncs, 7, "the other two, and the open one");
    tier.flush().expect("flushed");
    let syncs = files.calls(Operation::Sync) - before;
    assert_eq!(syncs, 8, "the open one");
}
