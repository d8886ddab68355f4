//! Files that fail: at a chosen operation, at random, or when a budget of bytes is used up.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use kvlab_core::memory::Vectors;
use kvlab_core::tier::disk::{Files, IoMode, OpenFile, OpenMode, SystemFiles};

/// What is asked of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    Open,
    Read,
    Write,
    Sync,
    SetSize,
    Preallocate,
    Punch,
    Remove,
}

/// What happens instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// Fewer bytes than asked for.
    Short,
    /// EINTR.
    Interrupted,
    /// EIO.
    Broken,
    /// ENOSPC.
    Full,
    /// It takes a while.
    Slow,
}

/// How often what goes wrong, in a thousand, while `armed`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) armed: bool,
    pub(crate) rates: BTreeMap<(Operation, Fault), u64>,
    /// The nth next operation of a kind, from 1 on, fails so.
    pub(crate) next: BTreeMap<Operation, (u64, Fault)>,
    /// Bytes that may still be written or set aside; a write that is longer is cut, then there is no space.
    pub(crate) budget: Option<u64>,
    /// Bytes of every file that cannot be read.
    pub(crate) bad: Option<Range<u64>>,
}

#[derive(Debug)]
struct State {
    plan: Plan,
    random: u64,
    injected: BTreeMap<(Operation, Fault), u64>,
    calls: BTreeMap<Operation, u64>,
}

/// Files that follow a plan, over the system's.
#[derive(Debug)]
pub(crate) struct FaultyFiles {
    state: Mutex<State>,
}

impl FaultyFiles {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                plan: Plan::default(),
                random: seed | 1,
                injected: BTreeMap::new(),
                calls: BTreeMap::new(),
            }),
        })
    }

    pub(crate) fn plan(&self, change: impl FnOnce(&mut Plan)) {
        change(&mut self.state.lock().expect("unharmed").plan);
    }

    /// How often something was made to fail so.
    pub(crate) fn injected(&self, operation: Operation, fault: Fault) -> u64 {
        let state = self.state.lock().expect("unharmed");
        state
            .injected
            .get(&(operation, fault))
            .copied()
            .unwrap_or(0)
    }

    /// How often an operation was asked for.
    pub(crate) fn calls(&self, operation: Operation) -> u64 {
        let state = self.state.lock().expect("unharmed");
        state.calls.get(&operation).copied().unwrap_or(0)
    }

    /// How often an operation was made to fail with an error that its caller sees.
    pub(crate) fn failed(&self, operation: Operation) -> u64 {
        self.injected(operation, Fault::Broken) + self.injected(operation, Fault::Full)
    }

    /// Fails, or says how many of `len` bytes are to be moved.
    fn attempt(&self, operation: Operation, file: Option<&OpenFile>, len: u64) -> io::Result<u64> {
        let (fault, part) = {
            let mut state = self.state.lock().expect("unharmed");
            *state.calls.entry(operation).or_default() += 1;
            let fault = state.fault(operation, len);
            if let Some(fault) = fault {
                *state.injected.entry((operation, fault)).or_default() += 1;
            }
            (fault, state.random())
        };
        // Direct transfers end on the alignment that was asked for.
        let unit = match file.map(|file| file.mode) {
            Some(IoMode::Direct { offset, .. }) => offset as u64,
            _ => 1,
        };
        match fault {
            None => Ok(len),
            Some(Fault::Short) => Ok((part % len / unit * unit).max(unit).min(len)),
            Some(Fault::Interrupted) => Err(io::ErrorKind::Interrupted.into()),
            Some(Fault::Broken) => Err(io::Error::from_raw_os_error(5)),
            Some(Fault::Full) => {
                let mut state = self.state.lock().expect("unharmed");
                let left = state.plan.budget.as_mut();
                let left = left.map_or(0, |left| std::mem::take(left) / unit * unit);
                // What fits is written, then there is no space.
                if operation == Operation::Write && left > 0 {
                    return Ok(left.min(len));
                }
                Err(io::Error::from_raw_os_error(28))
            }
            Some(Fault::Slow) => {
                thread::sleep(Duration::from_micros(part % 2000));
                Ok(len)
            }
        }
    }
}

impl State {
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn fault(&mut self, operation: Operation, len: u64) -> Option<Fault> {
        if !self.plan.armed {
            return None;
        }
        if let Some((left, fault)) = self.plan.next.get_mut(&operation) {
            *left -= 1;
            if *left == 0 {
                let fault = *fault;
                self.plan.next.remove(&operation);
                return Some(fault);
            }
        }
        if matches!(operation, Operation::Write | Operation::Preallocate)
            && let Some(left) = &mut self.plan.budget
        {
            if *left < len {
                return Some(Fault::Full);
            }
            *left -= len;
        }
        let mut dice = self.random() % 1000;
        for ((of, fault), rate) in &self.plan.rates {
            if *of == operation {
                if dice < *rate {
                    return Some(*fault);
                }
                dice -= rate;
            }
        }
        None
    }
}

impl Files for FaultyFiles {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<OpenFile> {
        self.attempt(Operation::Open, None, 0)?;
        SystemFiles.open(path, mode)
    }

    fn read(&self, file: &OpenFile, offset: u64, into: &Vectors<'_>) -> io::Result<usize> {
        let bytes = self.attempt(Operation::Read, Some(file), into.bytes() as u64)?;
        let state = self.state.lock().expect("unharmed");
        let bad = state.plan.bad.clone().unwrap_or_default();
        drop(state);
        if offset < bad.end && bad.start < offset + bytes {
            return Err(io::Error::from_raw_os_error(5));
        }
        SystemFiles.read(file, offset, &into.first(bytes as usize))
    }

    fn write(&self, file: &OpenFile, offset: u64, from: &Vectors<'_>) -> io::Result<usize> {
        let bytes = self.attempt(Operation::Write, Some(file), from.bytes() as u64)?;
        SystemFiles.write(file, offset, &from.first(bytes as usize))
    }

    fn sync(&self, file: &OpenFile) -> io::Result<()> {
        self.attempt(Operation::Sync, Some(file), 0)?;
        SystemFiles.sync(file)
    }

    fn size(&self, file: &OpenFile) -> io::Result<u64> {
        SystemFiles.size(file)
    }

    fn set_size(&self, file: &OpenFile, len: u64) -> io::Result<()> {
        self.attempt(Operation::SetSize, Some(file), 0)?;
        SystemFiles.set_size(file, len)
    }

    fn preallocate(&self, file: &OpenFile, len: u64) -> io::Result<()> {
        self.attempt(Operation::Preallocate, Some(file), len)?;
        SystemFiles.preallocate(file, len)
    }

    fn punch(&self, file: &OpenFile, offset: u64, len: u64) -> io::Result<bool> {
        self.attempt(Operation::Punch, Some(file), 0)?;
        SystemFiles.punch(file, offset, len)
    }

    fn holes(&self, file: &OpenFile) -> io::Result<Vec<Range<u64>>> {
        SystemFiles.holes(file)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.attempt(Operation::Remove, None, 0)?;
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
