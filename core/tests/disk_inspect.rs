//! Looking at a store, checking it, and carrying a namespace to another one.
#![expect(clippy::expect_used, reason = "helpers of tests")]

mod disk_support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use disk_support::{check_key, config, header, namespace, open, slice_bytes, source};
use kvlab_core::Error;
use kvlab_core::codec::{Codec, Element};
use kvlab_core::key::BlockKey;
use kvlab_core::run::{RunHeader, Terms};
use kvlab_core::tier::disk::inspect::{export, inspect, verify};
use kvlab_core::tier::{Put, Tier};
use proptest::prelude::*;

/// Chains of runs of up to 3 blocks, each chain in one of two namespaces.
fn runs(chains: &[(bool, Vec<usize>)]) -> Vec<RunHeader> {
    let mut all = Vec::new();
    for (seed, (second, lengths)) in chains.iter().enumerate() {
        let names = namespace(if *second { "two" } else { "one" });
        let mut parent = names;
        for (depth, &blocks) in lengths.iter().enumerate() {
            let slices = &[5000, 4096, 100 + depth as u32];
            let run = header(names, parent, seed as u32, blocks, slices);
            parent = *run.keys.last().expect("a run has keys");
            all.push(run);
        }
    }
    all
}

fn chains() -> impl Strategy<Value = Vec<(bool, Vec<usize>)>> {
    prop::collection::vec(
        (any::<bool>(), prop::collection::vec(1..4_usize, 1..4)),
        1..5,
    )
}

fn store(path: &Path, runs: &[RunHeader]) {
    let (tier, _) = open(&config(path));
    for run in runs {
        assert_eq!(tier.put(run, &source(run)).expect("valid"), Put::Stored);
    }
    tier.close().expect("closed");
}

/// Every file with its bytes and the time of its last change.
fn files(path: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(path).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            let changed = fs::metadata(&path).and_then(|status| status.modified());
            let bytes = fs::read(&path).expect("readable");
            all.insert(path, (bytes, changed.expect("a time")));
        }
    }
    all
}

/// Inverts bytes in the payload of a run; gives back whether it was found.
fn damage(path: &Path, run: &RunHeader) {
    let wanted = slice_bytes(run, 0);
    for (file, (mut bytes, _)) in files(path) {
        let at = bytes.windows(64).position(|window| window == &wanted[..64]);
        if let Some(at) = at {
            bytes[at] ^= 1;
            fs::write(&file, bytes).expect("written");
            return;
        }
    }
    panic!("the run is not there");
}

fn blocks<'a>(runs: impl IntoIterator<Item = &'a RunHeader>) -> usize {
    runs.into_iter().map(|run| run.keys.len()).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn a_sound_store_is_described_and_left_alone(chains in chains(), held: bool) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("store");
        let runs = runs(&chains);
        store(&path, &runs);
        let tier = held.then(|| open(&config(&path)).0);
        let before = files(&path);
        let found = inspect(&path).expect("a store");
        let checked = verify(&path, |_, _| {}).expect("a store");
        prop_assert!(files(&path) == before, "something was changed");
        prop_assert_eq!(found.holder.is_some(), held);
        prop_assert!(checked.is_sound(), "{:?}", checked);
        prop_assert_eq!((checked.records, checked.blocks), (runs.len(), blocks(&runs)));
        for name in ["one", "two"].map(namespace) {
            let own = runs.iter().filter(|run| run.namespace == name).collect::<Vec<_>>();
            let report = found.namespaces.iter().find(|report| report.namespace == name);
            prop_assert_eq!(report.map_or(0, |report| report.runs), own.len());
            prop_assert_eq!(report.map_or(0, |report| report.blocks), blocks(own.iter().copied()));
            let bytes = own.iter().map(|run| run.payload_bytes()).sum::<u64>();
            prop_assert_eq!(report.map_or(0, |report| report.payload_bytes), bytes);
        }
        let index = found.index.expect("readable");
        prop_assert_eq!((index.rows, index.rows_without_record), (runs.len(), 0));
        prop_assert_eq!((index.records_without_row, index.damaged_rows), (0, 0));
        prop_assert_eq!(index.clean, !held);
        let records = found.segments.iter().map(|segment| segment.records).sum::<usize>();
        prop_assert_eq!(records, runs.len());
        drop(tier);
    }

    #[test]
    fn a_check_names_what_is_damaged_and_a_scrub_drops_it(chains in chains(), pick: prop::sample::Index) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("store");
        let runs = runs(&chains);
        store(&path, &runs);
        let hurt = &runs[pick.index(runs.len())];
        damage(&path, hurt);
        let checked = verify(&path, |_, _| {}).expect("a store");
        prop_assert!(!checked.is_sound());
        prop_assert_eq!(checked.damaged.len(), 1);
        prop_assert_eq!((checked.damaged[0].slice, checked.damaged[0].blocks), (0, hurt.keys.len()));
        prop_assert_eq!(checked.damaged[0].namespace, hurt.namespace);
        let (tier, _) = open(&config(&path));
        let (mut last, mut total) = (0, 0);
        let scrubbed = tier.scrub(|done, all| (last, total) = (done, all)).expect("open");
        prop_assert_eq!((scrubbed.runs, scrubbed.dropped), (runs.len(), 1));
        prop_assert_eq!(last, total);
        prop_assert!(!tier.contains(&hurt.keys[0]));
        prop_assert_eq!(tier.validate(), Ok(()));
        tier.close().expect("closed");
        let again = verify(&path, |_, _| {}).expect("a store");
        prop_assert!(again.is_sound(), "{:?}", again);
    }

    #[test]
    fn what_is_exported_is_imported_with_its_bytes_or_left_out_for_a_counted_reason(
        chains in chains(),
        hurt: Option<prop::sample::Index>,
        cut: Option<prop::sample::Index>,
    ) {
        let directory = tempfile::tempdir().expect("a directory");
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        let runs = runs(&chains);
        store(&from, &runs);
        let hurt = hurt.map(|pick| &runs[pick.index(runs.len())]);
        if let Some(hurt) = hurt {
            damage(&from, hurt);
        }
        let name = namespace("one");
        let own = runs.iter().filter(|run| run.namespace == name).count();
        let file = directory.path().join("one.kvlab");
        let exported = export(&from, &name, &file, |_, _| {}).expect("written");
        prop_assert_eq!(exported.runs + exported.damaged + exported.unreachable, own);
        prop_assert_eq!(fs::metadata(&file).expect("there").len(), exported.bytes);
        if let Some(cut) = cut {
            let len = 4096 + cut.index(exported.bytes as usize - 4096) as u64;
            let file = fs::OpenOptions::new().write(true).open(&file).expect("there");
            file.set_len(len).expect("cut");
        }
        let (tier, _) = open(&config(&to));
        let imported = tier.import(&file, |_, _| {}).expect("an export");
        prop_assert_eq!(imported.namespace, name);
        prop_assert_eq!(imported.complete, cut.is_none());
        if cut.is_none() {
            prop_assert_eq!(imported.runs, exported.runs);
        }
        prop_assert_eq!((imported.present, imported.refused, imported.damaged), (0, 0, 0));
        let there = runs.iter().filter(|run| tier.contains(&run.keys[0])).collect::<Vec<_>>();
        prop_assert_eq!(there.len(), imported.runs);
        for run in there {
            prop_assert!(run.namespace == name && hurt != Some(run));
            prop_assert_eq!(check_key(&tier, &run.keys[0]), Some(Ok(())));
        }
        let again = tier.import(&file, |_, _| {}).expect("an export");
        prop_assert_eq!((again.runs, again.present), (0, imported.runs));
        prop_assert_eq!(tier.validate(), Ok(()));
    }
}

#[test]
fn encoded_runs_travel_as_they_are() {
    let directory = tempfile::tempdir().expect("a directory");
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    let names = namespace("int8");
    let mut run = header(names, names, 1, 2, &[64 * 4 * 20, 64 * 4 * 3]);
    run.terms = Terms {
        codec: Codec::Int8 {
            element: Element::F32,
            group: 64,
        },
        ..Terms::default()
    };
    store(&from, std::slice::from_ref(&run));
    let file = directory.path().join("file");
    export(&from, &names, &file, |_, _| {}).expect("written");
    let (tier, _) = open(&config(&to));
    assert_eq!(tier.import(&file, |_, _| {}).expect("an export").runs, 1);
    tier.close().expect("closed");
    let payload = |path: &Path| {
        let bytes = fs::read(path.join("00000001.seg")).expect("there");
        bytes[8192..8192 + 64 * 20 + 4 * 20].to_vec()
    };
    assert!(payload(&from).iter().any(|&byte| byte != 0));
    assert_eq!(payload(&from), payload(&to));
    assert!(verify(&to, |_, _| {}).expect("a store").is_sound());
}

#[test]
fn uses_are_counted_by_namespace_and_across_reopening() {
    let directory = tempfile::tempdir().expect("a directory");
    let runs = runs(&[(false, vec![2, 1]), (true, vec![3])]);
    store(directory.path(), &runs);
    let hits = || {
        let found = inspect(directory.path()).expect("a store");
        let namespaces = found.namespaces.iter();
        let hits = namespaces.map(|found| (found.namespace, found.hits));
        hits.collect::<BTreeMap<_, _>>()
    };
    let (one, two) = (namespace("one"), namespace("two"));
    assert_eq!(hits(), BTreeMap::from([(one, 0), (two, 0)]));
    for round in 1..3 {
        let (tier, _) = open(&config(directory.path()));
        for run in &runs[..2] {
            assert!(tier.find(&run.keys[0]).is_some());
        }
        assert!(tier.find(&runs[0].keys[1]).is_some());
        tier.flush().expect("saved");
        assert_eq!(hits(), BTreeMap::from([(one, 3 * round), (two, 0)]));
        tier.close().expect("closed");
    }
    assert_eq!(hits(), BTreeMap::from([(one, 6), (two, 0)]));
}

#[test]
fn what_is_no_store_or_no_export_is_refused_by_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let refused = |result: Result<(), Error>| match result {
        Err(Error::Format { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    let missing = refused(inspect(directory.path()).map(|_| ()));
    assert!(missing.contains("not a kvlab store"), "{missing}");
    let (tier, _) = open(&config(&directory.path().join("store")));
    let file = directory.path().join("file");
    for (bytes, says) in [
        (vec![], "not an export"),
        (vec![0; 8192], "not an export"),
        ([&b"KVLABEXP"[..], &[0; 4088]].concat(), "damaged"),
    ] {
        fs::write(&file, bytes).expect("written");
        let reason = refused(tier.import(&file, |_, _| {}).map(|_| ()));
        assert!(reason.contains(says), "{reason}");
    }
}

#[test]
fn a_store_in_ruins_can_still_be_looked_at() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store");
    let runs = runs(&[(false, vec![2, 2]), (true, vec![1])]);
    store(&path, &runs);
    for (name, garbage) in [("conf", "nonsense"), ("db", "more of it"), ("snap", "")] {
        for (file, _) in files(&path.join("index")) {
            let is = file
                .file_name()
                .is_some_and(|is| is.to_string_lossy().contains(name));
            if is {
                fs::write(&file, garbage).expect("written");
            }
        }
    }
    fs::write(path.join("000000ff.seg"), b"no segment").expect("written");
    let found = inspect(&path).expect("a store");
    assert_eq!(found.unreadable.len(), 1);
    let stored = found.namespaces.iter().map(|name| name.runs).sum::<usize>();
    assert_eq!(stored, runs.len());
    let checked = verify(&path, |_, _| {}).expect("a store");
    assert!(!checked.is_sound());
    assert_eq!((checked.records, checked.damaged.len()), (3, 0));
    let keys: Vec<BlockKey> = found.namespaces.iter().map(|name| name.namespace).collect();
    assert!(keys.contains(&namespace("one")) && keys.contains(&namespace("two")));
}
