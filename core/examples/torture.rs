//! The crash harness: kills a process that works on a store, opens the store again and checks every block, many times.
//!
//! `torture [--cycles N] [--seed N] [--directory PATH]` prints a JSON summary; it fails if a block was lost, wrong or came
//! back from the dead.
#![expect(clippy::expect_used, reason = "a tool for developers")]

#[path = "../tests/disk_support/mod.rs"]
mod disk_support;
#[path = "../tests/torture/mod.rs"]
mod torture;

use std::env;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use torture::{Spec, Torture};

const PROGRESS_EVERY: u64 = 50;

struct Arguments {
    cycles: u64,
    seed: u64,
    directory: Option<PathBuf>,
}

fn arguments() -> Result<Arguments, String> {
    let mut found = Arguments {
        cycles: 1000,
        seed: 1,
        directory: None,
    };
    let mut words = env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words
            .next()
            .ok_or_else(|| format!("{word} needs a value"))?;
        let number = || {
            value
                .parse::<u64>()
                .map_err(|_| format!("{word}: {value} is not a number"))
        };
        match word.as_str() {
            "--cycles" => found.cycles = number()?,
            "--seed" => found.seed = number()?,
            "--directory" => found.directory = Some(value.into()),
            _ => return Err(format!("{word} is unknown: --cycles, --seed, --directory")),
        }
    }
    Ok(found)
}

fn main() -> ExitCode {
    if let Some(spec) = Spec::of_this_process() {
        torture::work(&spec);
        return ExitCode::FAILURE;
    }
    let mut out = std::io::stdout();
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(reason) => {
            writeln!(out, "{reason}").expect("heard");
            return ExitCode::FAILURE;
        }
    };
    let parent = arguments.directory.unwrap_or_else(env::temp_dir);
    let directory = tempfile::tempdir_in(parent).expect("a directory");
    let child = || Command::new(env::current_exe().expect("known"));
    let mut torture = Torture::new(directory.path(), arguments.seed, Box::new(child));
    let start = Instant::now();
    for cycle in 1..=arguments.cycles {
        torture.cycle();
        if cycle.is_multiple_of(PROGRESS_EVERY) {
            let summary = &torture.summary;
            let seconds = start.elapsed().as_secs();
            writeln!(
                std::io::stderr(),
                "{cycle} of {} kills, {} runs checked, {} failures, {seconds} s",
                arguments.cycles,
                summary.runs_checked,
                summary.failures.len()
            )
            .expect("heard");
        }
    }
    torture.finish();
    let summary = torture.summary;
    for failure in &summary.failures {
        writeln!(std::io::stderr(), "{failure}").expect("heard");
    }
    writeln!(out, "{}", summary.json()).expect("heard");
    if summary.failures.is_empty() {
        return ExitCode::SUCCESS;
    }
    let kept = directory.keep();
    let what = "the stores are kept, as they were found (failed-*) and as they are now";
    writeln!(std::io::stderr(), "{}: {what}", kept.display()).expect("heard");
    ExitCode::FAILURE
}
