//! Runs of one chain that are written at the same time: whichever bytes are there first, they become visible in order.
#![allow(clippy::expect_used, reason = "helpers of tests")]

mod disk_support;

use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use disk_support::{check_key, config, header, namespace, open, source};
use kvlab_core::memory::Vectors;
use kvlab_core::run::RunHeader;
use kvlab_core::tier::disk::{DiskTier, Files, OpenFile, OpenMode, SystemFiles};
use kvlab_core::tier::{Put, Refusal, Tier};
use parking_lot::{Condvar, Mutex};

#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
enum Gate {
    #[default]
    Open,
    /// The next write stops.
    Armed,
    Holding,
    /// The write that was held fails.
    Failing,
}

/// The system's files, of which one write can be held.
#[derive(Debug, Default)]
struct Held {
    gate: Mutex<Gate>,
    changed: Condvar,
}

impl Held {
    fn set(&self, gate: Gate) {
        *self.gate.lock() = gate;
        self.changed.notify_all();
    }

    fn wait_holding(&self) {
        let mut gate = self.gate.lock();
        while *gate != Gate::Holding {
            self.changed.wait(&mut gate);
        }
    }
}

impl Files for Held {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<OpenFile> {
        SystemFiles.open(path, mode)
    }

    fn read(&self, file: &OpenFile, offset: u64, into: &Vectors<'_>) -> io::Result<usize> {
        SystemFiles.read(file, offset, into)
    }

    fn write(&self, file: &OpenFile, offset: u64, from: &Vectors<'_>) -> io::Result<usize> {
        let mut gate = self.gate.lock();
        if *gate == Gate::Armed {
            *gate = Gate::Holding;
            self.changed.notify_all();
            while *gate == Gate::Holding {
                self.changed.wait(&mut gate);
            }
            if *gate == Gate::Failing {
                *gate = Gate::Open;
                return Err(io::Error::other("held back, then failed"));
            }
        }
        drop(gate);
        SystemFiles.write(file, offset, from)
    }

    fn sync(&self, file: &OpenFile) -> io::Result<()> {
        SystemFiles.sync(file)
    }

    fn size(&self, file: &OpenFile) -> io::Result<u64> {
        SystemFiles.size(file)
    }

    fn set_size(&self, file: &OpenFile, len: u64) -> io::Result<()> {
        SystemFiles.set_size(file, len)
    }

    fn preallocate(&self, file: &OpenFile, len: u64) -> io::Result<()> {
        SystemFiles.preallocate(file, len)
    }

    fn punch(&self, file: &OpenFile, offset: u64, len: u64) -> io::Result<bool> {
        SystemFiles.punch(file, offset, len)
    }

    fn holes(&self, file: &OpenFile) -> io::Result<Vec<Range<u64>>> {
        SystemFiles.holes(file)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        SystemFiles.remove(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        SystemFiles.list(directory)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        SystemFiles.sync_directory(directory)
    }

    fn free_bytes(&self, directory: &Path) -> io::Result<u64> {
        SystemFiles.free_bytes(directory)
    }
}

/// A parent of one page, and its child: longer than what is written in one call, and its last slice not of whole pages.
fn family() -> (RunHeader, RunHeader) {
    let space = namespace("ahead");
    let parent = header(space, space, 1, 2, &[4096]);
    let child = header(space, parent.keys[1], 2, 2, &[3 << 20, (3 << 20) + 1024]);
    (parent, child)
}

fn tier(path: &Path, files: &Arc<Held>) -> DiskTier {
    let mut config = config(path);
    config.files = Arc::clone(files) as Arc<dyn Files>;
    config.segment_bytes = 16 << 20;
    open(&config).0
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} never came about");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Puts the parent, whose write is held, and then the child; ends the hold by `end`. What became of both.
fn race(tier: &DiskTier, files: &Held, end: Gate) -> (Put, Put) {
    let (parent, child) = family();
    let admitted = AtomicBool::new(false);
    // Room is made before the write that is to be held.
    let other = header(namespace("other"), namespace("other"), 1, 1, &[100]);
    assert_eq!(tier.put(&other, &source(&other)).expect("put"), Put::Stored);
    std::thread::scope(|scope| {
        files.set(Gate::Armed);
        let first = scope.spawn(|| {
            let told = || admitted.store(true, Ordering::SeqCst);
            tier.put_ahead(&parent, &source(&parent), &told)
        });
        files.wait_holding();
        assert!(
            admitted.load(Ordering::SeqCst),
            "told before it was written"
        );
        let second = scope.spawn(|| tier.put_ahead(&child, &source(&child), &|| ()));
        std::thread::sleep(Duration::from_millis(30));
        assert!(!second.is_finished(), "it waits for its parent");
        assert!(!tier.contains(&parent.keys[0]) && !tier.contains(&child.keys[0]));
        files.set(end);
        let put = |thread: std::thread::ScopedJoinHandle<'_, kvlab_core::Result<Put>>| {
            thread.join().expect("ends").expect("put")
        };
        (put(first), put(second))
    })
}

#[test]
fn a_child_becomes_visible_after_its_parent() {
    let directory = tempfile::tempdir().expect("a directory");
    let files = Arc::new(Held::default());
    let tier_ = tier(directory.path(), &files);
    assert_eq!(race(&tier_, &files, Gate::Open), (Put::Stored, Put::Stored));
    let (parent, child) = family();
    tier_.validate().expect("sound");
    drop(tier_);
    let again = tier(directory.path(), &files);
    for run in [&parent, &child] {
        assert!(
            check_key(&again, &run.keys[0]) == Some(Ok(())),
            "the bytes came back as they were"
        );
    }
}

#[test]
fn a_child_is_refused_with_its_parent_and_leaves_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let files = Arc::new(Held::default());
    let tier_ = tier(directory.path(), &files);
    let refused = (
        Put::Refused(Refusal::WriteFailed),
        Put::Refused(Refusal::ParentMissing),
    );
    assert_eq!(race(&tier_, &files, Gate::Failing), refused);
    tier_.validate().expect("sound");
    let (parent, child) = family();
    until("the end of both", || tier_.stats().pinned == 0);
    assert_eq!(tier_.stats().runs, 1, "the one that made room");
    drop(tier_);
    let again = tier(directory.path(), &files);
    assert!(!again.contains(&parent.keys[0]) && !again.contains(&child.keys[0]));
    assert_eq!(
        again.put(&parent, &source(&parent)).expect("put"),
        Put::Stored
    );
    assert_eq!(
        again.put(&child, &source(&child)).expect("put"),
        Put::Stored
    );
}
