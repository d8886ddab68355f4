//! Stores of every released format are read; those of a newer one are refused and not touched.
#![expect(clippy::expect_used, reason = "helpers of tests")]

mod disk_support;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use disk_support::{check_key, crash_image, header, namespace, open, source};
use kvlab_core::Error;
use kvlab_core::codec::Codec;
use kvlab_core::config::DiskConfig;
use kvlab_core::run::{RunHeader, Terms};
use kvlab_core::tier::disk::{DiskTier, RowsDropped};
use kvlab_core::tier::{Put, Tier};

const FIXTURES: [(&str, Terms); 2] = [
    (
        include_str!("fixtures/format-1.txt"),
        Terms {
            codec: Codec::Raw,
            tenant: 0,
            ttl_seconds: 0,
            persist: true,
            born: 0,
            decoded: false,
        },
    ),
    (include_str!("fixtures/format-2.txt"), TERMS),
];

/// Terms of the runs in a fixture that is made now.
const TERMS: Terms = Terms {
    codec: Codec::Raw,
    tenant: 0x1234_5678_9abc_def0,
    // Some 136 years.
    ttl_seconds: u32::MAX,
    persist: true,
    born: 1_800_000_000,
    decoded: false,
};

/// Bytes of a line of a fixture; lines of zeroes are left out.
const LINE: usize = 32;

/// What every fixture holds: a run, and one after its last block.
fn runs(terms: Terms) -> [RunHeader; 2] {
    let names = namespace("fixture");
    let first = header(names, names, 1, 2, &[100, 60]);
    let second = header(names, first.keys[1], 2, 1, &[80, 80]);
    [first, second].map(|run| RunHeader { terms, ..run })
}

fn small(path: &Path) -> DiskConfig {
    DiskConfig {
        capacity: 8 << 20,
        free_reserve: 0,
        segment_bytes: 64 << 10,
        ..DiskConfig::new(path)
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Writes the fixture of the format that this code writes; to be run once, when a format is released.
#[test]
#[ignore = "makes a fixture: set KVLAB_FIXTURE to the file to write"]
fn make_a_fixture() {
    let target = std::env::var("KVLAB_FIXTURE").expect("KVLAB_FIXTURE names a file");
    let directory = tempfile::tempdir().expect("a directory");
    let (tier, _) = open(&small(directory.path()));
    for run in &runs(TERMS) {
        assert_eq!(tier.put(run, &source(run)).expect("valid"), Put::Stored);
    }
    tier.close().expect("closed");
    let mut text = String::new();
    for path in files(directory.path()) {
        if path.ends_with("LOCK") {
            continue;
        }
        let name = path.strip_prefix(directory.path()).expect("inside");
        let bytes = fs::read(&path).expect("readable");
        writeln!(text, "file {} {}", name.display(), bytes.len()).expect("text");
        for (line, bytes) in bytes.chunks(LINE).enumerate() {
            if bytes.iter().any(|&byte| byte != 0) {
                write!(text, "{:x} ", line * LINE).expect("text");
                for byte in bytes {
                    write!(text, "{byte:02x}").expect("text");
                }
                text.push('\n');
            }
        }
    }
    fs::write(target, text).expect("written");
}

/// Makes the files of a fixture.
fn unpack(fixture: &str, directory: &Path) {
    let mut bytes = Vec::new();
    let mut lines = fixture.lines().peekable();
    while let Some(line) = lines.next() {
        let words = line.split(' ').collect::<Vec<_>>();
        let ["file", name, size] = words[..] else {
            panic!("{line} begins no file");
        };
        bytes.clear();
        bytes.resize(size.parse().expect("a size"), 0);
        while let Some(line) = lines.next_if(|line| !line.starts_with("file")) {
            let (at, text) = line.split_once(' ').expect("two words");
            let at = usize::from_str_radix(at, 16).expect("an offset");
            for (place, byte) in text.as_bytes().chunks(2).enumerate() {
                let byte = std::str::from_utf8(byte).expect("hexadecimal");
                bytes[at + place] = u8::from_str_radix(byte, 16).expect("hexadecimal");
            }
        }
        let path = directory.join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, &bytes).expect("written");
    }
}

fn check_all(tier: &DiskTier, runs: &[RunHeader]) {
    tier.validate().expect("sound");
    for run in runs {
        for key in &run.keys {
            let (pinned, _) = tier.find(key).expect("stored");
            assert_eq!(pinned.header(), run);
            assert_eq!(check_key(tier, key), Some(Ok(())));
        }
    }
}

#[test]
fn stores_of_every_released_format_are_read_and_go_on() {
    for (fixture, terms) in FIXTURES {
        // As it was closed; after a kill; without its index; without its index and its table of contents.
        for damage in 0..4 {
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("store");
            unpack(fixture, &path);
            if damage > 1 {
                fs::remove_dir_all(path.join("index")).expect("removed");
            }
            if damage > 2 {
                let segment = fs::OpenOptions::new()
                    .write(true)
                    .open(path.join("00000001.seg"));
                segment.and_then(|file| file.set_len(0x7000)).expect("cut");
            }
            let runs = runs(terms);
            let (tier, report) = open(&small(&path));
            assert_eq!((report.runs, report.clean), (2, damage < 2), "{report:?}");
            assert_eq!(report.rows_rebuilt, if damage > 1 { 2 } else { 0 });
            check_all(&tier, &runs);
            let format = fs::read_to_string(path.join("FORMAT")).expect("readable");
            assert!(format.starts_with("kvlab-l3 2 "), "{format}");
            let more = header(runs[0].namespace, runs[1].keys[0], 3, 3, &[5000]);
            assert_eq!(tier.put(&more, &source(&more)).expect("valid"), Put::Stored);
            if damage == 1 {
                let image = directory.path().join("image");
                tier.flush().expect("saved");
                crash_image(&path, &image);
                let (killed, report) = open(&small(&image));
                assert!(
                    !report.clean && report.rows_dropped == RowsDropped::default(),
                    "{report:?}"
                );
                check_all(&killed, &[runs[0].clone(), runs[1].clone(), more.clone()]);
            }
            tier.close().expect("closed");
            let (tier, report) = open(&small(&path));
            assert!(report.clean, "{report:?}");
            check_all(&tier, &[runs[0].clone(), runs[1].clone(), more]);
        }
    }
}

#[test]
fn a_store_of_a_newer_format_is_refused_and_not_touched() {
    let directory = tempfile::tempdir().expect("a directory");
    unpack(FIXTURES[1].0, directory.path());
    fs::write(
        directory.path().join("FORMAT"),
        "kvlab-l3 3 some-other-id\n",
    )
    .expect("written");
    let state = || {
        let files = files(directory.path()).into_iter();
        let files = files.map(|path| {
            let status = fs::metadata(&path).expect("there");
            (
                fs::read(&path).expect("readable"),
                status.modified().expect("a time"),
                path,
            )
        });
        (
            files.collect::<Vec<_>>(),
            fs::metadata(directory.path()).expect("there").permissions(),
        )
    };
    let before = state();
    let refused = DiskTier::open(&small(directory.path())).expect_err("refused");
    assert!(matches!(refused, Error::Format { .. }), "{refused}");
    assert!(refused.to_string().contains("version 3"), "{refused}");
    assert!(state() == before);
}
