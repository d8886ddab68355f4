//! A process that is killed while it stores runs: everything it had acknowledged is there when the store is opened again.

mod disk_support;

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use disk_support::{check_key, config, header, namespace, open, source};
use kvlab_core::config::DiskConfig;
use kvlab_core::run::RunHeader;
use kvlab_core::tier::{Put, Tier};

const DIRECTORY: &str = "KVLAB_KILL_TEST_DIRECTORY";
const ROUNDS: u32 = 4;

fn small(path: &Path) -> DiskConfig {
    DiskConfig {
        capacity: 256 << 20,
        segment_bytes: 512 << 10,
        ..config(path)
    }
}

fn run(seed: u32) -> RunHeader {
    let names = namespace("kill");
    header(names, names, seed, 2, &[20_000, 9000])
}

/// Not a test of its own: the process that gets killed. It says which runs are stored, until it is killed.
#[test]
fn writer() {
    let Ok(path) = env::var(DIRECTORY) else {
        return;
    };
    let (tier, report) = open(&small(path.as_ref()));
    let mut out = std::io::stderr();
    writeln!(out, "opened {}", report.runs).expect("heard");
    let first = report.runs as u32 * 2;
    for seed in first.. {
        let run = run(seed);
        if tier.put(&run, &source(&run)).expect("valid") == Put::Stored {
            writeln!(out, "stored {seed}").expect("heard");
        }
    }
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store");
    let mut stored = Vec::new();
    for round in 1..=ROUNDS {
        let mut child = Command::new(env::current_exe().expect("known"))
            .args(["writer", "--exact", "--nocapture"])
            .env(DIRECTORY, &path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let target = stored.len() + 37 * round as usize;
        while stored.len() < target {
            let line = lines.next().expect("it goes on").expect("readable");
            let seed = line
                .strip_prefix("stored ")
                .and_then(|seed| seed.parse::<u32>().ok());
            stored.extend(seed);
        }
        child.kill().expect("killed");
        child.wait().expect("over");
        // What it said before it was killed counts, too.
        let rest = lines.map_while(Result::ok);
        stored.extend(rest.filter_map(|line| line.strip_prefix("stored ")?.parse::<u32>().ok()));
        let (tier, report) = open(&small(&path));
        assert!(!report.clean && !report.index_rebuilt, "{report:?}");
        tier.validate().expect("sound");
        for seed in &stored {
            let result = check_key(&tier, &run(*seed).keys[1]);
            assert_eq!(
                result,
                Some(Ok(())),
                "run {seed} of {}: {report:?}",
                stored.len()
            );
        }
        assert_eq!(tier.stats().dropped.corrupt, 0);
    }
}
