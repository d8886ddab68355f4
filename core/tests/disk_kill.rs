//! A process that is killed while it works on a store: a short run of `make torture`.

mod disk_support;
mod torture;

use std::env;
use std::process::Command;

use torture::{Spec, Torture};

const CYCLES: u64 = 20;

/// Not a test of its own: the process that gets killed.
#[test]
fn child() {
    if let Some(spec) = Spec::of_this_process() {
        torture::work(&spec);
    }
}

#[test]
fn what_was_acknowledged_survives_a_kill_and_what_was_deleted_stays_deleted() {
    let directory = tempfile::tempdir().expect("a directory");
    let child = || {
        let mut command = Command::new(env::current_exe().expect("known"));
        command.args(["child", "--exact", "--nocapture"]);
        command
    };
    let mut torture = Torture::new(directory.path(), 1, Box::new(child));
    for _ in 0..CYCLES {
        torture.cycle();
    }
    torture.finish();
    let summary = torture.summary;
    assert!(summary.failures.is_empty(), "{:#?}", summary.failures);
    assert!(
        summary.acknowledged > 0 && summary.right > 0,
        "{}",
        summary.json()
    );
}
