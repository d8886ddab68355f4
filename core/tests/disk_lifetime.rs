//! Time to live, quotas, runs that stay off the disk, stores that are only read, and directories that are not safe.
#![expect(clippy::expect_used, reason = "helpers of tests")]

mod disk_support;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use disk_support::{check_key, config, crash_image, header, namespace, open, source};
use kvlab_core::Error;
use kvlab_core::config::DiskConfig;
use kvlab_core::run::{RunHeader, Terms};
use kvlab_core::tier::disk::DiskTier;
use kvlab_core::tier::{Put, Refusal, Tier};
use proptest::prelude::*;

const SLICES: &[u32] = &[5000, 3000];

fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

/// A run that was first stored `age` seconds ago and lives for `ttl` seconds.
fn mortal(seed: u32, parent: Option<&RunHeader>, age: u64, ttl: u32) -> RunHeader {
    let names = namespace("one");
    let parent = parent.map_or(names, |run| run.keys[run.keys.len() - 1]);
    RunHeader {
        terms: Terms {
            ttl_seconds: ttl,
            born: unix_seconds() - age,
            ..Terms::default()
        },
        ..header(names, parent, seed, 2, SLICES)
    }
}

fn put(tier: &DiskTier, run: &RunHeader) -> Put {
    tier.put(run, &source(run)).expect("valid")
}

/// For what opens a store anew, by the time of day; the clock of an open one can be put forward.
fn wait_until(time: u64) {
    while unix_seconds() < time {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn what_has_expired_is_a_miss_and_does_not_come_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store");
    let (tier, _) = open(&config(&path));
    let runs = [
        mortal(1, None, 10, 14),
        mortal(2, None, 10, 1000),
        header(namespace("one"), namespace("one"), 3, 2, SLICES),
    ];
    let child = mortal(4, Some(&runs[0]), 0, 1000);
    for run in runs.iter().chain([&child]) {
        assert_eq!(put(&tier, run), Put::Stored);
        assert_eq!(check_key(&tier, &run.keys[1]), Some(Ok(())));
    }
    let over = mortal(5, None, 10, 10);
    assert_eq!(put(&tier, &over), Put::Refused(Refusal::Expired));
    tier.flush().expect("saved");
    let killed = directory.path().join("killed");
    crash_image(&path, &killed);
    wait_until(runs[0].terms.expires());
    assert!(!tier.contains(&runs[0].keys[0]) && tier.find(&runs[0].keys[1]).is_none());
    // Nothing is stored behind what nobody can reach any more.
    let behind = mortal(6, Some(&runs[0]), 0, 1000);
    assert_eq!(put(&tier, &behind), Put::Refused(Refusal::ParentMissing));
    assert_eq!((tier.stats().expired, tier.stats().runs), (1, 3));
    tier.validate().expect("sound");
    // It may be stored anew; its child can then be reached again.
    let again = mortal(1, None, 0, 1000);
    assert_eq!(put(&tier, &again), Put::Stored);
    for run in [&again, &runs[1], &runs[2], &child] {
        assert_eq!(check_key(&tier, &run.keys[0]), Some(Ok(())));
    }
    tier.validate().expect("sound");
    drop(tier);
    for lost_index in [false, true] {
        let copy = directory.path().join(format!("copy-{lost_index}"));
        crash_image(&killed, &copy);
        if lost_index {
            fs::remove_dir_all(copy.join("index")).expect("removed");
        }
        let (tier, report) = open(&config(&copy));
        assert!(
            report.rows_dropped.expired >= 1 && !report.clean,
            "{report:?}"
        );
        assert_eq!(report.runs, 3, "{report:?}");
        assert!(!tier.contains(&runs[0].keys[0]));
        tier.validate().expect("sound");
        drop(tier);
        let (tier, report) = open(&config(&copy));
        assert_eq!((report.runs, report.rows_dropped.expired), (3, 0));
        assert!(!tier.contains(&runs[0].keys[0]));
    }
}

#[test]
fn a_clock_that_was_set_back_prolongs_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    // The clock was an hour ahead when the first run was stored: an hour later than that, the second one is over.
    for lost_index in [false, true] {
        let path = directory.path().join(format!("{lost_index}"));
        let (tier, _) = open(&config(&path));
        let mut ahead = mortal(1, None, 0, 1_000_000);
        ahead.terms.born += 3600;
        let short = mortal(2, None, 0, 1800);
        assert_eq!(
            [&ahead, &short].map(|run| put(&tier, run)),
            [Put::Stored; 2]
        );
        tier.close().expect("closed");
        if lost_index {
            fs::remove_dir_all(path.join("index")).expect("removed");
        }
        let (tier, report) = open(&config(&path));
        assert_eq!((report.runs, report.rows_dropped.expired), (1, 1));
        assert!(tier.contains(&ahead.keys[0]) && !tier.contains(&short.keys[0]));
    }
}

#[test]
fn expired_runs_go_before_others_and_a_flush_drops_them() {
    let directory = tempfile::tempdir().expect("a directory");
    let (tier, _) = open(&config(directory.path()));
    let stays = mortal(0, None, 0, 1000);
    assert_eq!(put(&tier, &stays), Put::Stored);
    let runs = (1..60)
        .map(|seed| mortal(seed, None, 10, 500))
        .collect::<Vec<_>>();
    for run in &runs {
        assert_eq!(put(&tier, run), Put::Stored);
    }
    tier.clock().seen(runs[58].terms.expires());
    assert!(tier.evict(1) > 0);
    assert!(
        tier.contains(&stays.keys[0]),
        "the least recently used run that can be read"
    );
    assert_eq!((tier.stats().evictions, tier.stats().expired), (0, 1));
    // A put drops a few.
    assert_eq!(put(&tier, &mortal(99, None, 0, 1000)), Put::Stored);
    let expired = tier.stats().expired;
    assert!((2..40).contains(&expired), "{expired}");
    tier.flush().expect("saved");
    assert_eq!((tier.stats().expired, tier.stats().runs), (59, 2));
    tier.validate().expect("sound");
}

#[test]
fn what_must_not_be_on_disk_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let (tier, _) = open(&config(directory.path()));
    let mut run = mortal(1, None, 0, 0);
    run.terms.persist = false;
    assert_eq!(put(&tier, &run), Put::Refused(Refusal::NotPersisted));
    assert_eq!(
        (tier.stats().refused.not_persisted, tier.stats().runs),
        (1, 0)
    );
    assert!(tier.segment_files().is_empty());
}

/// A root run of a tenant.
fn owned(tenant: u64, seed: u32, slice: u32) -> RunHeader {
    let names = namespace(&tenant.to_string());
    RunHeader {
        terms: Terms {
            tenant,
            ..Terms::default()
        },
        ..header(names, names, seed, 1, &[slice])
    }
}

/// Bytes of the record of [`owned`].
fn record(slice: u32) -> u64 {
    4096 + u64::from(slice).div_ceil(4096) * 4096
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Put { tenant: u64, slice: u32 },
    Use { tenant: u64, nth: usize },
    SetQuota { tenant: u64, pages: Option<u64> },
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..4_u64, 1..12_000_u32).prop_map(|(tenant, slice)| Step::Put { tenant, slice }),
        4 => (0..4_u64, 0..20_usize).prop_map(|(tenant, nth)| Step::Use { tenant, nth }),
        1 => (1..4_u64, prop::option::of(0..16_u64))
            .prop_map(|(tenant, pages)| Step::SetQuota { tenant, pages }),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(disk_support::cases(12))]
    /// Against a plain list a tenant, oldest use first: a quota takes from its own tenant only, in order of use.
    #[test]
    fn a_quota_evicts_the_tenants_own_oldest_leaves(steps in steps()) {
        const DEFAULT: u64 = 10 * 4096;
        let directory = tempfile::tempdir().expect("a directory");
        let config = DiskConfig {
            quota_per_tenant: Some(DEFAULT),
            ..config(directory.path())
        };
        let (mut tier, _) = open(&config);
        let mut quotas: HashMap<u64, Option<u64>> = HashMap::new();
        let mut held: HashMap<u64, Vec<(RunHeader, u64)>> = HashMap::new();
        for (seed, step) in steps.into_iter().enumerate() {
            let quota_of = |quotas: &HashMap<u64, Option<u64>>, tenant| match tenant {
                0 => None,
                _ => quotas.get(&tenant).copied().unwrap_or(Some(DEFAULT)),
            };
            match step {
                Step::Put { tenant, slice } => {
                    let run = owned(tenant, seed as u32, slice);
                    let quota = quota_of(&quotas, tenant);
                    if quota.is_some_and(|quota| record(slice) > quota) {
                        prop_assert_eq!(put(&tier, &run), Put::Refused(Refusal::OverQuota));
                    } else {
                        prop_assert_eq!(put(&tier, &run), Put::Stored);
                        held.entry(tenant).or_default().push((run, record(slice)));
                    }
                }
                Step::Use { tenant, nth } => {
                    let runs = held.entry(tenant).or_default();
                    if nth < runs.len() {
                        let used = runs.remove(nth);
                        prop_assert!(tier.find(&used.0.keys[0]).is_some());
                        runs.push(used);
                    }
                }
                Step::SetQuota { tenant, pages } => {
                    let quota = pages.map(|pages| pages * 4096);
                    tier.set_quota(tenant, quota).expect("set");
                    quotas.insert(tenant, quota);
                }
                Step::Reopen => {
                    tier.close().expect("closed");
                    tier = open(&config).0;
                    quotas.clear();
                }
            }
            for (tenant, runs) in &mut held {
                if let Some(quota) = quota_of(&quotas, *tenant) {
                    while runs.iter().map(|(_, bytes)| bytes).sum::<u64>() > quota {
                        let (gone, _) = runs.remove(0);
                        prop_assert!(!tier.contains(&gone.keys[0]));
                    }
                }
                let bytes = runs.iter().map(|(_, bytes)| bytes).sum::<u64>();
                prop_assert_eq!(tier.tenant_bytes(*tenant), if *tenant == 0 { 0 } else { bytes });
                for (run, _) in runs {
                    prop_assert!(tier.contains(&run.keys[0]));
                }
            }
            tier.validate().map_err(TestCaseError::fail)?;
        }
    }
}

/// What a time to live or a quota took is not found again by a search of the segments.
#[test]
fn what_a_limit_took_does_not_come_back_after_a_kill() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store");
    let (tier, _) = open(&config(&path));
    let short = mortal(1, None, 10, 500);
    let tenants = (0..6).map(|seed| owned(7, seed, 100)).collect::<Vec<_>>();
    let other = owned(8, 0, 100);
    for run in tenants.iter().chain([&short, &other]) {
        assert_eq!(put(&tier, run), Put::Stored);
    }
    tier.set_quota(7, Some(2 * record(100))).expect("set");
    tier.clock().seen(short.terms.expires());
    tier.flush().expect("flushed");
    assert_eq!((tier.stats().expired, tier.stats().quota_evictions), (1, 4));
    for lost_index in [false, true] {
        let image = directory.path().join(format!("image-{lost_index}"));
        crash_image(&path, &image);
        if lost_index {
            fs::remove_dir_all(image.join("index")).expect("removed");
        }
        let (left, report) = open(&config(&image));
        // Not because it is over: its bytes are gone.
        assert_eq!(
            (report.runs, report.rows_dropped.expired),
            (3, 0),
            "{report:?}"
        );
        for run in tenants[..4].iter().chain([&short]) {
            assert!(!left.contains(&run.keys[0]));
        }
        for run in tenants[4..].iter().chain([&other]) {
            assert_eq!(check_key(&left, &run.keys[0]), Some(Ok(())));
        }
    }
}

#[test]
fn a_quota_counts_what_it_evicts_and_needs_somebody() {
    let directory = tempfile::tempdir().expect("a directory");
    let (tier, _) = open(&config(directory.path()));
    for seed in 0..3 {
        assert_eq!(put(&tier, &owned(7, seed, 100)), Put::Stored);
    }
    tier.set_quota(7, Some(2 * record(100))).expect("set");
    let stats = tier.stats();
    assert_eq!((stats.evictions, stats.quota_evictions), (1, 1));
    // What is pinned cannot go: the tenant is told no, and nobody else pays.
    let pins = [1, 2].map(|seed| tier.find(&owned(7, seed, 100).keys[0]).expect("there"));
    assert_eq!(put(&tier, &owned(8, 0, 100)), Put::Stored);
    assert_eq!(
        put(&tier, &owned(7, 9, 100)),
        Put::Refused(Refusal::OverQuota)
    );
    assert_eq!(tier.stats().refused.over_quota, 1);
    drop(pins);
    assert_eq!(put(&tier, &owned(7, 9, 100)), Put::Stored);
    assert!(tier.contains(&owned(8, 0, 100).keys[0]));
    let refused = tier.set_quota(0, Some(1)).expect_err("nobody");
    assert!(refused.to_string().contains("salt"), "{refused}");
}

/// Everything of a directory that could change.
fn picture(path: &Path) -> Vec<(PathBuf, SystemTime, u32, Vec<u8>)> {
    let mut found = Vec::new();
    let mut left = vec![path.to_owned()];
    while let Some(path) = left.pop() {
        let status = fs::metadata(&path).expect("there");
        let bytes = if status.is_dir() {
            let entries = fs::read_dir(&path).expect("readable");
            left.extend(entries.map(|entry| entry.expect("readable").path()));
            Vec::new()
        } else {
            fs::read(&path).expect("readable")
        };
        let modified = status.modified().expect("a time");
        found.push((path, modified, status.permissions().mode(), bytes));
    }
    found.sort();
    found
}

#[test]
fn a_store_that_is_only_read_is_not_changed() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store");
    let (tier, _) = open(&config(&path));
    let root = mortal(1, None, 0, 1000);
    let runs = [
        root.clone(),
        mortal(2, Some(&root), 0, 0),
        mortal(3, None, 0, 0),
    ];
    for run in &runs {
        assert_eq!(put(&tier, run), Put::Stored);
    }
    let brief = mortal(4, None, 10, 14);
    assert_eq!(put(&tier, &brief), Put::Stored);
    tier.flush().expect("saved");
    let killed = directory.path().join("killed");
    crash_image(&path, &killed);
    let only_read = |path: &Path| DiskConfig {
        read_only: true,
        ..config(path)
    };
    assert!(matches!(
        DiskTier::open(&only_read(&path)),
        Err(Error::Locked { .. })
    ));
    tier.close().expect("closed");
    wait_until(brief.terms.expires());
    fs::remove_file(killed.join("LOCK")).expect("removed");
    for path in [&path, &killed] {
        let before = picture(path);
        let (tier, report) = open(&only_read(path));
        assert_eq!(
            (report.runs, report.rows_dropped.expired),
            (3, 1),
            "{report:?}"
        );
        for run in &runs {
            assert_eq!(check_key(&tier, &run.keys[1]), Some(Ok(())));
        }
        let more = mortal(5, None, 0, 0);
        assert_eq!(put(&tier, &more), Put::Refused(Refusal::Unavailable));
        assert_eq!((tier.evict(1), tier.remove(&runs[0].keys)), (0, 0));
        let refused = tier.clear(None).expect_err("only read");
        assert!(refused.to_string().contains("read_only"), "{refused}");
        tier.validate().expect("sound");
        // Others may read at the same time, nobody may write; where there is no lock file, nobody is asked.
        let (other, _) = open(&only_read(path));
        assert_eq!(check_key(&other, &runs[0].keys[0]), Some(Ok(())));
        if path.join("LOCK").exists() {
            assert!(matches!(
                DiskTier::open(&config(path)),
                Err(Error::Locked { .. })
            ));
        }
        tier.flush().expect("nothing to save");
        tier.close().expect("closed");
        assert!(!tier.contains(&runs[0].keys[0]));
        drop(other);
        assert!(picture(path) == before);
    }
    // What is damaged is a miss here too, and stays as it is.
    let segment = path.join("00000001.seg");
    let mut bytes = fs::read(&segment).expect("readable");
    bytes[2 * 4096] ^= 1;
    fs::write(&segment, bytes).expect("written");
    let before = picture(&path);
    let (tier, _) = open(&only_read(&path));
    assert!(check_key(&tier, &runs[0].keys[0]).is_some_and(|outcome| outcome.is_err()));
    assert!(!tier.contains(&runs[0].keys[0]) && tier.stats().dropped.corrupt == 1);
    drop(tier);
    assert!(picture(&path) == before);
    let nothing = DiskTier::open(&only_read(&directory.path().join("none"))).expect_err("refused");
    assert!(matches!(nothing, Error::Format { .. }), "{nothing}");
    assert!(!directory.path().join("none").exists());
}

#[test]
fn a_directory_that_others_can_write_is_refused_unless_told_otherwise() {
    let directory = tempfile::tempdir().expect("a directory");
    let real = directory.path().join("real");
    let run = mortal(1, None, 0, 0);
    let (tier, _) = open(&config(&real));
    assert_eq!(put(&tier, &run), Put::Stored);
    tier.close().expect("closed");
    let link = directory.path().join("link");
    symlink(&real, &link).expect("linked");
    let slash = directory.path().join("link/");
    let open_to_all = directory.path().join("open");
    crash_image(&real, &open_to_all);
    fs::set_permissions(&open_to_all, fs::Permissions::from_mode(0o777)).expect("set");
    for (path, word) in [
        (&link, "symbolic link"),
        (&slash, "symbolic link"),
        (&open_to_all, "everybody"),
    ] {
        for read_only in [true, false] {
            let config = DiskConfig {
                read_only,
                ..config(path)
            };
            let refused = DiskTier::open(&config).expect_err("refused");
            assert!(
                matches!(refused, Error::UnsafeDirectory { .. }),
                "{refused}"
            );
            for word in [word, "allow_unsafe_directory"] {
                assert!(refused.to_string().contains(word), "{refused}");
            }
            let (tier, _) = open(&DiskConfig {
                allow_unsafe_directory: true,
                read_only: true,
                ..config
            });
            assert_eq!(check_key(&tier, &run.keys[0]), Some(Ok(())));
        }
    }
    let status = fs::metadata(&open_to_all).expect("there");
    assert_eq!(
        status.permissions().mode() & 0o777,
        0o777,
        "nothing was touched"
    );
}
