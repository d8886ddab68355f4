//! The process that gets killed: threads that put, read, delete, clear, evict and flush, and say so before and after.

use std::env;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use kvlab_core::config::DiskConfig;
use kvlab_core::tier::disk::DiskTier;
use kvlab_core::tier::{Put, Tier};

use super::{RUNS, Random, THREADS, names, run};
use crate::disk_support::{Shape, check, source};

const SPEC: &str = "KVLAB_TORTURE_CHILD";

/// What a child is told.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) path: PathBuf,
    pub(crate) capacity: u64,
    pub(crate) durable: bool,
    pub(crate) direct: bool,
    pub(crate) seed: u64,
}

impl Spec {
    pub(crate) fn config(&self) -> DiskConfig {
        DiskConfig {
            capacity: self.capacity,
            free_reserve: 0,
            segment_bytes: 512 << 10,
            durable: self.durable,
            direct: self.direct,
            ..DiskConfig::new(&self.path)
        }
    }

    /// Tells a process to be this child.
    pub(crate) fn hand_to(&self, command: &mut Command) {
        let Self {
            capacity,
            durable,
            direct,
            seed,
            path,
        } = self;
        let flags = [*durable, *direct].map(u8::from);
        let text = format!(
            "{capacity} {} {} {seed} {}",
            flags[0],
            flags[1],
            path.display()
        );
        command.env(SPEC, text);
    }

    /// What this process was told to be, if it is a child.
    pub(crate) fn of_this_process() -> Option<Self> {
        let text = env::var(SPEC).ok()?;
        let mut words = text.splitn(5, ' ');
        let mut number = || words.next()?.parse::<u64>().ok();
        let (capacity, durable) = (number()?, number()? == 1);
        let (direct, seed) = (number()? == 1, number()?);
        Some(Self {
            capacity,
            durable,
            direct,
            seed,
            path: words.next()?.into(),
        })
    }
}

/// One line on the pipe, in one call, so that lines of several threads do not mix.
fn say(line: &str) {
    let line = format!("{line}\n");
    std::io::stderr()
        .write_all(line.as_bytes())
        .expect("the parent listens");
}

/// Works on the store until it is killed.
pub(crate) fn work(spec: &Spec) {
    say("open");
    let (tier, _) = DiskTier::open(&spec.config()).expect("the store opens");
    tier.validate().expect("sound");
    say("opened");
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let tier = &tier;
            let seed = spec.seed.wrapping_add(u64::from(thread) << 32);
            scope.spawn(move || {
                let mut random = Random::new(seed);
                loop {
                    step(tier, thread, spec, &mut random);
                }
            });
        }
    });
}

fn step(tier: &DiskTier, thread: u32, spec: &Spec, random: &mut Random) {
    let seed = random.below(u64::from(RUNS)) as u32;
    let tight = spec.capacity < 64 << 20;
    match random.below(100) {
        0..66 => {
            let run = run(thread, seed);
            say(&format!("put {thread} {seed}"));
            let said = match tier.put(&run, &source(&run)).expect("valid") {
                Put::Stored | Put::Present => "stored",
                _ => "refused",
            };
            say(&format!("{said} {thread} {seed}"));
        }
        66..86 => {
            let other = random.below(u64::from(THREADS)) as u32;
            say(&format!("read {thread}"));
            if let Some((pinned, _)) = tier.find(&run(other, seed).keys[0]) {
                // A run that is deleted while it is read may fail, but not with other bytes: `check` panics on those.
                let _ = check(&*pinned, Shape::Pages);
            }
            say(&format!("idle {thread}"));
        }
        86..92 => {
            say(&format!("remove {thread} {seed}"));
            tier.remove(&run(thread, seed).keys);
            say(&format!("removed {thread} {seed}"));
        }
        92..93 => {
            say(&format!("clear {thread}"));
            tier.clear(Some(&names(thread))).expect("cleared");
            say(&format!("cleared {thread}"));
        }
        93..98 if tight => {
            say(&format!("evict {thread}"));
            tier.evict(random.below(200_000));
            say(&format!("idle {thread}"));
        }
        _ => {
            say(&format!("flush {thread}"));
            tier.flush().expect("flushed");
            say(&format!("idle {thread}"));
        }
    }
}
