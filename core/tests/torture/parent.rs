//! The process that kills, opens the store again, and compares it with what it was told.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use kvlab_core::tier::disk::DiskTier;

use super::{RUNS, Random, Spec, THREADS, run};
use crate::disk_support::{check_key, crash_image};

/// Everything fits: nothing is evicted, so whatever was acknowledged must be there.
const AMPLE: u64 = 256 << 20;
/// A third of the runs fit.
const TIGHT: u64 = 4 << 20;
/// How long a child may work, in microseconds.
const LONGEST_MICROS: u64 = 300_000;
/// How long a recovering process may live that is to be killed while it recovers, in microseconds.
const LONGEST_RECOVERY_MICROS: u64 = 20_000;
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);

/// What the parent knows of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// Acknowledged, and not touched since.
    Stored,
    /// Never stored, or deleted and acknowledged.
    Absent,
    /// A put or delete was under way when the process was killed.
    Either,
}

/// What was done and found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Summary {
    pub(crate) cycles: u64,
    /// Kills, by what was going on: recovery, or what each thread was in.
    pub(crate) kills: BTreeMap<String, u64>,
    pub(crate) acknowledged: u64,
    pub(crate) deleted: u64,
    pub(crate) verifications: u64,
    pub(crate) index_deleted: u64,
    pub(crate) runs_checked: u64,
    pub(crate) right: u64,
    /// Acknowledged runs that are a miss because the store was too small for all.
    pub(crate) misses_evicted: u64,
    /// Runs whose put or delete was interrupted, and that are a miss.
    pub(crate) misses_in_flight: u64,
    /// Runs that were deleted or never stored, and are a miss.
    pub(crate) misses_deleted: u64,
    pub(crate) rows_rebuilt: u64,
    pub(crate) rows_dropped: u64,
    pub(crate) segments_scanned: u64,
    /// Must stay empty: lost, wrong or resurrected runs, runs that are there and cannot be read, and what a child complained of.
    pub(crate) failures: Vec<String>,
}

impl Summary {
    pub(crate) fn json(&self) -> String {
        let kills = self.kills.iter();
        let kills = kills.map(|(phase, count)| format!("\"{phase}\": {count}"));
        let numbers = [
            ("cycles", self.cycles),
            ("acknowledged", self.acknowledged),
            ("deleted", self.deleted),
            ("verifications", self.verifications),
            ("index_deleted", self.index_deleted),
            ("runs_checked", self.runs_checked),
            ("right", self.right),
            ("misses_evicted", self.misses_evicted),
            ("misses_in_flight", self.misses_in_flight),
            ("misses_deleted", self.misses_deleted),
            ("rows_rebuilt", self.rows_rebuilt),
            ("rows_dropped", self.rows_dropped),
            ("segments_scanned", self.segments_scanned),
            ("failures", self.failures.len() as u64),
        ];
        let numbers = numbers.map(|(name, count)| format!("  \"{name}\": {count}"));
        format!(
            "{{\n{},\n  \"kills\": {{{}}}\n}}",
            numbers.join(",\n"),
            kills.collect::<Vec<_>>().join(", ")
        )
    }
}

/// A store under torture.
struct Victim {
    path: PathBuf,
    capacity: u64,
    known: Vec<Known>,
    /// What children said since it was last looked at, with the cycle: the story of a failure.
    said: Vec<(u64, String)>,
}

/// The harness.
pub(crate) struct Torture {
    victims: [Victim; 2],
    random: Random,
    /// Makes the command that runs a child.
    child: Box<dyn Fn() -> Command>,
    pub(crate) summary: Summary,
}

impl Torture {
    pub(crate) fn new(directory: &Path, seed: u64, child: Box<dyn Fn() -> Command>) -> Self {
        let victim = |name: &str, capacity| Victim {
            path: directory.join(name),
            capacity,
            known: vec![Known::Absent; (THREADS * RUNS) as usize],
            said: Vec::new(),
        };
        Self {
            victims: [victim("ample", AMPLE), victim("tight", TIGHT)],
            random: Random::new(seed),
            child,
            summary: Summary::default(),
        }
    }

    /// One life of a child, its death, and most times a look at what is left.
    pub(crate) fn cycle(&mut self) {
        let which = usize::from(self.random.below(2) == 1);
        let victim = &mut self.victims[which];
        let spec = Spec {
            path: victim.path.clone(),
            capacity: victim.capacity,
            durable: self.random.below(2) == 1,
            direct: self.random.below(2) == 1,
            seed: self.random.next(),
        };
        let in_recovery = self.random.below(4) == 0;
        let micros = self.random.below(if in_recovery {
            LONGEST_RECOVERY_MICROS
        } else {
            LONGEST_MICROS
        });
        let mut command = (self.child)();
        spec.hand_to(&mut command);
        let lines = live_and_die(command, in_recovery, Duration::from_micros(micros));
        victim.learn(&lines, &mut self.summary);
        self.summary.cycles += 1;
        // Without a look the next child finds what this one left.
        if self.random.below(3) > 0 {
            let without_index = self.random.below(6) == 0;
            self.verify(which, without_index);
        }
    }

    /// Looks at both stores.
    pub(crate) fn finish(&mut self) {
        self.verify(0, false);
        self.verify(1, true);
    }

    fn verify(&mut self, which: usize, without_index: bool) {
        let (victim, summary) = (&mut self.victims[which], &mut self.summary);
        let (path, index) = (&victim.path, victim.path.join("index"));
        if without_index && index.exists() {
            fs::remove_dir_all(index).expect("removed");
            summary.index_deleted += 1;
        }
        let failures = summary.failures.len();
        let image = path.with_extension("image");
        crash_image(path, &image);
        let spec = Spec {
            path: path.clone(),
            capacity: victim.capacity,
            durable: false,
            direct: self.random.below(2) == 1,
            seed: 0,
        };
        let (tier, report) = match DiskTier::open(&spec.config()) {
            Ok(opened) => opened,
            Err(error) => return summary.failures.push(error.to_string()),
        };
        summary.verifications += 1;
        summary.rows_rebuilt += report.rows_rebuilt as u64;
        let dropped = report.rows_dropped;
        summary.rows_dropped +=
            (dropped.damaged + dropped.no_segment + dropped.no_record + dropped.overlapping) as u64;
        summary.segments_scanned += report.segments_scanned as u64;
        summary.failures.extend(tier.validate().err());
        for (number, known) in (0..).zip(&victim.known) {
            let (thread, seed) = (number / RUNS, number % RUNS);
            summary.runs_checked += 1;
            // Wrong bytes panic.
            let found = check_key(&tier, &run(thread, seed).keys[1]);
            let tight = victim.capacity == TIGHT;
            match (known, found) {
                (Known::Stored | Known::Either, Some(Ok(()))) => summary.right += 1,
                (Known::Stored, None) if tight => summary.misses_evicted += 1,
                (Known::Absent, None) => summary.misses_deleted += 1,
                (Known::Either, None) => summary.misses_in_flight += 1,
                (known, found) => summary.failures.push(format!(
                    "cycle {}: run {seed} of thread {thread} in {}: {known:?}, found {found:?}, {report:?}, after {:?}",
                    summary.cycles,
                    path.display(),
                    victim.said.iter().filter(|(_, line)| {
                        let (of, ours) = (format!(" {thread} {seed}"), format!("clear {thread}"));
                        line.ends_with(&of) || line.ends_with(&ours)
                    }).collect::<Vec<_>>(),
                )),
            }
        }
        let stats = tier.stats();
        if stats.used_bytes > stats.capacity {
            summary.failures.push(format!("too large: {stats:?}"));
        }
        if let Err(error) = tier.close() {
            summary.failures.push(error.to_string());
        }
        if summary.failures.len() == failures {
            fs::remove_dir_all(image).expect("removed");
        } else {
            let kept = path.with_extension(format!("failed-{}", summary.cycles));
            fs::rename(image, kept).expect("kept");
        }
        victim.said.clear();
    }
}

/// Lets a child live for a while, kills it, and gives back all that it said.
fn live_and_die(mut command: Command, in_recovery: bool, life: Duration) -> Vec<String> {
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("started");
    let pipe = BufReader::new(child.stderr.take().expect("piped"));
    let (opened, wait) = mpsc::channel();
    let wanted = if in_recovery { "open" } else { "opened" };
    let reader = std::thread::spawn(move || {
        let mut lines = Vec::new();
        for line in pipe.lines().map_while(Result::ok) {
            if line == wanted {
                // Nobody waits any more after a timeout.
                let _ = opened.send(());
            }
            lines.push(line);
        }
        lines
    });
    // A child that ends or hangs says so in its lines.
    let _ = wait.recv_timeout(OPEN_TIMEOUT);
    std::thread::sleep(life);
    child.kill().expect("killed");
    child.wait().expect("over");
    reader.join().expect("read")
}

impl Victim {
    fn learn(&mut self, lines: &[String], summary: &mut Summary) {
        let mut phases = vec!["start"];
        // What a run was before the put that is under way.
        let mut before = [Known::Absent; THREADS as usize];
        for line in lines {
            self.said.push((summary.cycles, line.clone()));
            let mut words = line.split(' ');
            let word = words.next().unwrap_or_default();
            let mut number = || words.next().and_then(|word| word.parse::<u32>().ok());
            let (thread, seed) = (number(), number());
            let range = |thread: u32| (thread * RUNS) as usize..((thread + 1) * RUNS) as usize;
            let of = |thread: u32, seed: u32| (thread * RUNS + seed) as usize;
            let phase = match (word, thread, seed) {
                ("open", None, None) => {
                    phases = vec!["recovery"];
                    continue;
                }
                ("opened", None, None) => {
                    phases = vec!["idle"; THREADS as usize];
                    continue;
                }
                ("read", Some(_), None) => "read",
                ("evict", Some(_), None) => "evict",
                ("flush", Some(_), None) => "flush",
                ("idle", Some(_), None) => "idle",
                ("put", Some(thread), Some(seed)) => {
                    let known = &mut self.known[of(thread, seed)];
                    before[thread as usize] = *known;
                    // In a small store it may have been evicted, and is written anew.
                    if *known == Known::Absent || self.capacity == TIGHT {
                        *known = Known::Either;
                    }
                    "put"
                }
                ("stored", Some(thread), Some(seed)) => {
                    self.known[of(thread, seed)] = Known::Stored;
                    summary.acknowledged += 1;
                    "idle"
                }
                ("refused", Some(thread), Some(seed)) => {
                    self.known[of(thread, seed)] = before[thread as usize];
                    "idle"
                }
                ("remove", Some(thread), Some(seed)) => {
                    let known = &mut self.known[of(thread, seed)];
                    if *known == Known::Stored {
                        *known = Known::Either;
                    }
                    "remove"
                }
                ("removed", Some(thread), Some(seed)) => {
                    self.known[of(thread, seed)] = Known::Absent;
                    summary.deleted += 1;
                    "idle"
                }
                ("clear", Some(thread), None) => {
                    for known in &mut self.known[range(thread)] {
                        if *known == Known::Stored {
                            *known = Known::Either;
                        }
                    }
                    "clear"
                }
                ("cleared", Some(thread), None) => {
                    self.known[range(thread)].fill(Known::Absent);
                    summary.deleted += 1;
                    "idle"
                }
                _ => {
                    summary.failures.push(format!("a child said: {line}"));
                    continue;
                }
            };
            if let Some(at) = thread.and_then(|thread| phases.get_mut(thread as usize)) {
                *at = phase;
            }
        }
        for phase in phases {
            *summary.kills.entry(phase.to_owned()).or_default() += 1;
        }
    }
}
