//! Damaged, missing and foreign files: always a miss that is counted, never wrong bytes, never a panic.
#![expect(clippy::expect_used, reason = "helpers of tests")]

mod disk_support;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use disk_support::{Shape, check, check_key, config, crash_image, header, namespace, open, source};
use kvlab_core::Error;
use kvlab_core::run::RunHeader;
use kvlab_core::tier::disk::DiskTier;
use kvlab_core::tier::{Put, ReadFailure, Tier};
use proptest::prelude::*;

const SLICES: &[u32] = &[5000, 4096, 100];
/// Header page, then slices padded to pages: 8192 + 4096 + 4096.
const RECORD: u64 = 4096 + 16384;

/// A closed store of `count` root runs; they lie one after the other in one segment.
fn filled(path: &Path, count: u32) -> Vec<RunHeader> {
    let (tier, _) = open(&config(path));
    let names = namespace("one");
    let runs: Vec<_> = (0..count)
        .map(|seed| header(names, names, seed, 2, SLICES))
        .collect();
    for run in &runs {
        assert_eq!(tier.put(run, &source(run)).expect("valid"), Put::Stored);
    }
    tier.close().expect("closed");
    runs
}

fn segment_file(path: &Path) -> PathBuf {
    path.join("00000001.seg")
}

fn flip(file: &Path, offset: u64, bit: u8) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(file)
        .expect("there");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("inside");
    file.write_all_at(&[byte[0] ^ (1 << bit)], offset)
        .expect("written");
}

/// How many runs can be read; every byte that is read is right.
fn readable(tier: &DiskTier, runs: &[RunHeader]) -> usize {
    let sound = runs.iter().filter(|run| {
        let results = run.keys.iter().map(|key| check_key(tier, key));
        results.filter(|result| *result != Some(Ok(()))).count() == 0
    });
    sound.count()
}

#[test]
fn one_flipped_bit_costs_one_run() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = directory.path().join("store");
    let runs = filled(&store, 3);
    let second = 4096 + RECORD;
    // Magic, checksum, version, serial, namespace, a key, a slice's row, unused header bytes, payload of each slice.
    let header_bytes = [0, 9, 16, 33, 90, 150, 210, 4000];
    let payload_bytes = [4096, 4096 + 4999, 4096 + 8192, 4096 + 12288 + 99];
    for (number, at) in header_bytes.into_iter().chain(payload_bytes).enumerate() {
        for direct in [false, true] {
            let copy = directory.path().join(format!("{number}-{direct}"));
            crash_image(&store, &copy);
            flip(&segment_file(&copy), second + at, (number % 8) as u8);
            let config = kvlab_core::config::DiskConfig {
                direct,
                ..config(&copy)
            };
            let (tier, report) = open(&config);
            assert!(report.clean);
            let result = check_key(&tier, &runs[1].keys[0]);
            assert_eq!(result, Some(Err(ReadFailure::Corrupt)), "byte {at}");
            assert!(!tier.contains(&runs[1].keys[1]), "the whole run is gone");
            assert_eq!(tier.stats().dropped.corrupt, 1);
            assert_eq!(readable(&tier, &runs), 2);
            tier.validate().expect("sound");
            let put = tier.put(&runs[1], &source(&runs[1])).expect("valid");
            assert_eq!((put, readable(&tier, &runs)), (Put::Stored, 3));
            tier.close().expect("closed");
            let (tier, report) = open(&config);
            assert_eq!((report.runs, readable(&tier, &runs)), (3, 3));
        }
    }
}

/// A write that went astray: every byte is sound, only not where it belongs.
#[test]
fn records_in_each_others_places_are_not_taken_for_what_was_written_there() {
    let directory = tempfile::tempdir().expect("a directory");
    for direct in [false, true] {
        let store = directory.path().join(format!("direct-{direct}"));
        let runs = filled(&store, 3);
        let mut bytes = fs::read(segment_file(&store)).expect("read");
        let (first, rest) = bytes[4096..].split_at_mut(RECORD as usize);
        first.swap_with_slice(&mut rest[..RECORD as usize]);
        fs::write(segment_file(&store), bytes).expect("written");
        let (tier, report) = open(&kvlab_core::config::DiskConfig {
            direct,
            ..config(&store)
        });
        assert!(report.clean);
        let found = runs.iter().map(|run| check_key(&tier, &run.keys[0]));
        let corrupt = Some(Err(ReadFailure::Corrupt));
        assert_eq!(found.collect::<Vec<_>>(), [corrupt, corrupt, Some(Ok(()))]);
        assert_eq!(tier.stats().dropped.corrupt, 2);
        tier.validate().expect("sound");
    }
}

#[test]
fn a_lost_or_ruined_index_is_rebuilt_from_the_segments() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = directory.path().join("store");
    let runs = filled(&store, 5);
    for (case, sealed) in [
        ("deleted", true),
        ("garbage", true),
        ("deleted", false),
        ("emptied", true),
    ] {
        let copy = directory.path().join(format!("{case}-{sealed}"));
        crash_image(&store, &copy);
        let index = copy.join("index");
        match case {
            "garbage" => {
                for entry in fs::read_dir(&index).expect("there") {
                    let path = entry.expect("readable").path();
                    if path.is_file() {
                        fs::write(&path, vec![0xa5; 9000]).expect("written");
                    }
                }
            }
            "emptied" => {
                fs::remove_dir_all(&index).expect("removed");
                fs::create_dir(&index).expect("made");
            }
            _ => fs::remove_dir_all(&index).expect("removed"),
        }
        if !sealed {
            // Without its table of contents the segment is searched page by page.
            let file = OpenOptions::new().write(true).open(segment_file(&copy));
            let file = file.expect("there");
            let len = file.metadata().expect("known").len();
            file.set_len(len - 4096).expect("cut");
        }
        let (tier, report) = open(&config(&copy));
        assert!(report.index_rebuilt, "{case}: {report:?}");
        assert_eq!(
            (report.rows_rebuilt, report.runs, report.blocks),
            (5, 5, 10)
        );
        assert!(report.index_moved.is_none_or(|path| path.exists()));
        assert_eq!(readable(&tier, &runs), 5);
        tier.validate().expect("sound");
        tier.close().expect("closed");
        let (tier, report) = open(&config(&copy));
        assert!(report.clean && !report.index_rebuilt);
        assert_eq!(readable(&tier, &runs), 5);
    }
}

#[test]
fn missing_cut_and_foreign_segments_lose_only_their_own_runs() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = directory.path().join("store");
    let runs = filled(&store, 4);
    let open_copy = |name: &str, damage: &dyn Fn(&Path)| {
        let copy = directory.path().join(name);
        crash_image(&store, &copy);
        damage(&copy);
        let (tier, report) = open(&config(&copy));
        tier.validate().expect("sound");
        // The damaged store takes and keeps new runs.
        let names = namespace("one");
        let new = header(names, names, 99, 1, SLICES);
        assert_eq!(tier.put(&new, &source(&new)).expect("valid"), Put::Stored);
        assert_eq!(check_key(&tier, &new.keys[0]), Some(Ok(())));
        (readable(&tier, &runs), report)
    };
    let (left, report) = open_copy("missing", &|copy| {
        fs::remove_file(segment_file(copy)).expect("removed");
    });
    assert_eq!((left, report.rows_dropped.no_segment), (0, 4));
    for (cut, expected) in [
        (0, 0),
        (4096, 0),
        (4096 + RECORD, 1),
        (4096 + 2 * RECORD + 5, 2),
        (4096 + 4 * RECORD, 4),
    ] {
        let (left, report) = open_copy(&format!("cut-{cut}"), &|copy| {
            let file = OpenOptions::new().write(true).open(segment_file(copy));
            file.expect("there").set_len(cut).expect("cut");
        });
        assert_eq!(
            (left, report.rows_dropped.no_segment),
            (expected, 4 - expected),
            "{cut}"
        );
    }
    let (left, report) = open_copy("foreign", &|copy| {
        let other = copy.with_extension("other");
        filled(&other, 2);
        fs::copy(segment_file(&other), segment_file(copy)).expect("copied");
        fs::write(copy.join("notes.txt"), "mine").expect("written");
    });
    assert_eq!(
        (
            left,
            report.foreign_segments,
            report.rows_dropped.no_segment
        ),
        (0, 1, 4)
    );
    assert!(segment_file(&directory.path().join("foreign")).exists());
    assert!(directory.path().join("foreign/notes.txt").exists());
}

#[test]
fn a_newer_or_foreign_directory_is_refused_and_untouched() {
    let directory = tempfile::tempdir().expect("a directory");
    let newer = directory.path().join("newer");
    fs::create_dir(&newer).expect("made");
    fs::write(newer.join("FORMAT"), "kvlab-l3 3 00000000000000aa\n").expect("written");
    let foreign = directory.path().join("foreign");
    fs::create_dir(&foreign).expect("made");
    fs::write(foreign.join("thesis.tex"), "\\end").expect("written");
    for (path, word) in [(&newer, "version 3"), (&foreign, "thesis.tex")] {
        let refused = DiskTier::open(&config(path)).expect_err("refused");
        assert!(matches!(refused, Error::Format { .. }), "{refused}");
        assert!(refused.to_string().contains(word), "{refused}");
        assert_eq!(fs::read_dir(path).expect("there").count(), 1);
    }
    let file = directory.path().join("file");
    File::create(&file).expect("made");
    assert!(matches!(
        DiskTier::open(&config(&file)),
        Err(Error::Io { .. })
    ));
}

#[test]
fn what_the_user_deletes_stays_deleted_after_a_kill() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = directory.path().join("store");
    let (tier, _) = open(&config(&store));
    let names = [namespace("one"), namespace("two")];
    let runs: Vec<_> = (0..6)
        .map(|seed| {
            header(
                names[seed as usize % 2],
                names[seed as usize % 2],
                seed,
                2,
                SLICES,
            )
        })
        .collect();
    for run in &runs {
        assert_eq!(tier.put(run, &source(run)).expect("valid"), Put::Stored);
    }
    // The same block in a second run: both go.
    let mut twin = header(names[0], names[0], 0, 3, SLICES);
    twin.keys[2] = runs[1].keys[0];
    twin.keys[2].0[0] ^= 1;
    assert_eq!(tier.put(&twin, &source(&twin)).expect("valid"), Put::Stored);
    tier.validate().expect("sound");
    let (pinned, _) = tier.find(&runs[0].keys[0]).expect("stored");
    assert_eq!(tier.remove(&[runs[0].keys[1]]), 2);
    assert_eq!(tier.clear(Some(&names[1])).expect("cleared"), 3);
    tier.validate().expect("sound");
    // To the reader it is gone, which is no damage.
    assert_eq!(check(&*pinned, Shape::Pages), Err(ReadFailure::Gone));
    for without_index in [false, true] {
        let copy = directory.path().join(format!("killed-{without_index}"));
        crash_image(&store, &copy);
        if without_index {
            fs::remove_dir_all(copy.join("index")).expect("removed");
        }
        let (tier, report) = open(&config(&copy));
        assert_eq!(report.runs, 2, "{report:?}");
        assert_eq!(
            report.rows_dropped,
            kvlab_core::tier::disk::RowsDropped::default()
        );
        assert_eq!(readable(&tier, &[runs[2].clone(), runs[4].clone()]), 2);
    }
    drop(pinned);
    tier.validate().expect("sound");
    assert_eq!(tier.stats().dropped.corrupt, 0);
    assert_eq!(tier.clear(None).expect("cleared"), 2);
    assert_eq!((tier.stats().runs, tier.stats().live_bytes), (0, 0));
}

/// A kill in the middle of a write may leave a header and a part of its payload. Such a record does not stand in the way of the
/// run's being stored again: what is acknowledged then is there.
#[test]
fn a_record_that_a_kill_cut_short_is_stored_anew() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = directory.path().join("store");
    let (tier, _) = open(&config(&store));
    let names = namespace("one");
    let runs = [0, 1, 2].map(|seed| header(names, names, seed, 2, SLICES));
    for run in &runs {
        assert_eq!(tier.put(run, &source(run)).expect("valid"), Put::Stored);
    }
    for without_index in [false, true] {
        for pages in 1..RECORD / 4096 {
            let copy = directory.path().join("killed");
            crash_image(&store, &copy);
            if without_index {
                fs::remove_dir_all(copy.join("index")).expect("removed");
            }
            let segment = OpenOptions::new().write(true).open(segment_file(&copy));
            let rest = vec![0; (RECORD - pages * 4096) as usize];
            let written = 4096 + 2 * RECORD + pages * 4096;
            segment
                .expect("there")
                .write_all_at(&rest, written)
                .expect("written");
            let (tier, report) = open(&config(&copy));
            assert_eq!(report.runs, 2, "{pages} pages: {report:?}");
            assert_eq!(readable(&tier, &runs), 2);
            assert_eq!(
                tier.put(&runs[2], &source(&runs[2])).expect("valid"),
                Put::Stored
            );
            assert_eq!(readable(&tier, &runs), 3);
            drop(tier);
            fs::remove_dir_all(copy).expect("removed");
        }
    }
}

/// All files of a store that are not empty, in order.
fn files_of(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in [path.to_owned(), path.join("index")] {
        let entries = fs::read_dir(folder).expect("there");
        let files = entries.map(|entry| entry.expect("readable").path());
        found.extend(files.filter(|path| {
            path.metadata()
                .is_ok_and(|status| status.is_file() && status.len() > 0)
        }));
    }
    found.sort();
    found
}

/// Opens a damaged store: what it has is right, it takes the runs anew, and they are there when it is opened again. A store
/// that is refused is left as it is.
fn recovers(path: &Path, runs: &[RunHeader]) -> usize {
    let before = files_of(path).len();
    let (tier, _) = match DiskTier::open(&config(path)) {
        Ok(opened) => opened,
        Err(error) => {
            assert!(matches!(error, Error::Format { .. }), "{error}");
            assert_eq!(files_of(path).len(), before, "{error}");
            return 0;
        }
    };
    tier.validate().expect("sound");
    let left = readable(&tier, runs);
    assert_eq!(tier.stats().runs, left, "what could not be read is gone");
    for run in runs {
        let put = tier.put(run, &source(run)).expect("valid");
        assert!(matches!(put, Put::Stored | Put::Present), "{put:?}");
    }
    assert_eq!(readable(&tier, runs), runs.len());
    tier.close().expect("closed");
    let (tier, _) = open(&config(path));
    assert_eq!(readable(&tier, runs), runs.len());
    left
}

#[test]
fn every_file_cut_at_every_page_border_is_survived() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = directory.path().join("store");
    let runs = filled(&store, 2);
    for file in files_of(&store) {
        let len = file.metadata().expect("known").len();
        // sled's files are long and empty towards their end.
        let borders = (0..len.div_ceil(4096)).map(|page| page * 4096);
        let step = if len > 20 * 4096 { 23 } else { 1 };
        let cuts = borders.step_by(step).chain([1, 4097, len - 1]);
        for cut in cuts.filter(|cut| *cut < len) {
            let copy = directory.path().join("copy");
            crash_image(&store, &copy);
            let name = file.strip_prefix(&store).expect("inside");
            let damaged = OpenOptions::new().write(true).open(copy.join(name));
            damaged.expect("there").set_len(cut).expect("cut");
            recovers(&copy, &runs);
            fs::remove_dir_all(copy).expect("removed");
        }
    }
}

#[test]
fn a_bit_of_the_format_file_is_noticed_and_one_of_the_lock_does_not_matter() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = directory.path().join("store");
    let runs = filled(&store, 2);
    let text = fs::read(store.join("FORMAT")).expect("there");
    for at in 0..text.len() - 1 {
        flip(&store.join("FORMAT"), at as u64, (at % 8) as u8);
        let refused = DiskTier::open(&config(&store));
        // A flipped letter may differ in case only, or be another kind of white space.
        if let Ok((tier, _)) = refused {
            assert_eq!(readable(&tier, &runs), 2, "byte {at}");
        } else {
            assert!(matches!(refused, Err(Error::Format { .. })), "byte {at}");
        }
        fs::write(store.join("FORMAT"), &text).expect("written");
    }
    for at in 0..8 {
        flip(&store.join("LOCK"), at, (at % 8) as u8);
        assert_eq!(recovers(&store, &runs), 2);
    }
}

#[test]
fn the_segments_of_another_store_are_not_taken_for_its_own() {
    let directory = tempfile::tempdir().expect("a directory");
    let [one, other] = ["one", "other"].map(|name| directory.path().join(name));
    let runs = filled(&one, 3);
    let names = namespace("other");
    let (tier, _) = open(&config(&other));
    let foreign = header(names, names, 7, 2, SLICES);
    assert_eq!(
        tier.put(&foreign, &source(&foreign)).expect("valid"),
        Put::Stored
    );
    tier.close().expect("closed");
    // Under an id of its own, and half a segment over one of ours.
    fs::copy(segment_file(&other), one.join("00000002.seg")).expect("copied");
    let ours = OpenOptions::new()
        .write(true)
        .open(segment_file(&one))
        .expect("there");
    let theirs = fs::read(segment_file(&other)).expect("there");
    ours.write_all_at(&theirs[4096..8192], 4096)
        .expect("written");
    fs::remove_dir_all(one.join("index")).expect("removed");
    let (tier, report) = open(&config(&one));
    assert_eq!((report.foreign_segments, report.runs), (1, 2));
    assert_eq!(check_key(&tier, &foreign.keys[0]), None);
    assert_eq!(readable(&tier, &runs), 2);
    drop(tier);
    assert!(one.join("00000002.seg").exists());
    recovers(&one, &runs);
}

#[test]
fn counters_that_went_back_give_nothing_out_twice() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = directory.path().join("store");
    let runs = filled(&store, 3);
    let index = sled::open(store.join("index")).expect("opened");
    let meta = index.open_tree("meta").expect("there");
    for (name, value) in [
        ("clock", 0_u64),
        ("next_segment", 0),
        ("checkpoint", 0),
        ("clean", 0),
    ] {
        meta.insert(name, &value.to_le_bytes()).expect("set");
    }
    drop(meta);
    drop(index);
    let (tier, report) = open(&config(&store));
    assert_eq!((report.runs, readable(&tier, &runs)), (3, 3));
    let names = namespace("one");
    let more: Vec<_> = (10..40)
        .map(|seed| header(names, names, seed, 2, SLICES))
        .collect();
    for run in &more {
        assert_eq!(tier.put(run, &source(run)).expect("valid"), Put::Stored);
    }
    tier.close().expect("closed");
    let (tier, report) = open(&config(&store));
    assert_eq!(
        (report.runs, report.rows_dropped),
        (33, kvlab_core::tier::disk::RowsDropped::default())
    );
    assert_eq!(readable(&tier, &runs) + readable(&tier, &more), 33);
}

#[test]
fn children_of_a_lost_run_are_reclaimed_or_found_again_with_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = directory.path().join("store");
    let (tier, _) = open(&config(&store));
    let names = namespace("one");
    let parent = header(names, names, 1, 2, SLICES);
    let child = header(names, parent.keys[1], 2, 2, SLICES);
    for run in [&parent, &child] {
        assert_eq!(tier.put(run, &source(run)).expect("valid"), Put::Stored);
    }
    assert_eq!(tier.remove(&[parent.keys[0]]), 1);
    // No request asks for it any more: it is a leaf like others, and stays until its turn.
    assert!(tier.contains(&child.keys[0]));
    let orphan = header(names, parent.keys[1], 3, 2, SLICES);
    let refused = tier.put(&orphan, &source(&orphan)).expect("valid");
    assert_eq!(
        refused,
        Put::Refused(kvlab_core::tier::Refusal::ParentMissing)
    );
    tier.close().expect("closed");
    let (tier, _) = open(&config(&store));
    assert_eq!(
        tier.put(&parent, &source(&parent)).expect("valid"),
        Put::Stored
    );
    assert_eq!(readable(&tier, &[parent.clone(), child.clone()]), 2);
    // With its parent there it is the child again that goes first.
    tier.evict(1);
    assert!(tier.contains(&parent.keys[0]) && !tier.contains(&child.keys[0]));
    tier.validate().expect("sound");
}

proptest! {
    #![proptest_config(disk_support::cases(16))]

    /// Any damage anywhere in any file: the store opens or refuses with an error, and what it reads is right.
    #[test]
    fn random_damage_never_gives_wrong_bytes(
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..8_u8), 1..6),
        in_segments in any::<bool>(),
    ) {
        let directory = tempfile::tempdir().expect("a directory");
        let store = directory.path().join("store");
        let runs = filled(&store, 4);
        let folder = if in_segments { store.clone() } else { store.join("index") };
        let files = fs::read_dir(folder).expect("there").map(|entry| entry.expect("readable").path());
        let mut files: Vec<_> = files
            .filter(|path| path.metadata().is_ok_and(|status| status.is_file() && status.len() > 0))
            .filter(|path| !in_segments || path.extension().is_some_and(|end| end == "seg"))
            .collect();
        files.sort();
        for (file, at, bit) in hits {
            let file = file.get(&files);
            let len = file.metadata().expect("known").len() as usize;
            flip(file, at.index(len) as u64, bit);
        }
        if let Ok((tier, _)) = DiskTier::open(&config(&store)) {
            let found = readable(&tier, &runs);
            tier.validate().expect("sound");
            prop_assert_eq!(tier.stats().runs, found, "what could not be read is gone");
        }
    }
}
