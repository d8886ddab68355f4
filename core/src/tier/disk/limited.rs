//! Files that read and write no faster than they are allowed to, for a disk that is shared.

use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::files::{Files, OpenFile, OpenMode};
use crate::config::DiskConfig;
use crate::error::{Error, Result};
use crate::memory::Vectors;

/// The most bytes that one call moves under a limit, so that calls of several threads take turns.
const CALL_BYTES: usize = 1 << 20;

/// A bandwidth: each call takes as long as its bytes take at the full rate, calls of several threads one after the other.
#[derive(Debug)]
struct Bandwidth {
    bytes_per_second: f64,
    /// When the bytes moved so far are paid for.
    paid: Mutex<Instant>,
}

impl Bandwidth {
    fn new(name: &'static str, bytes_per_second: u64) -> Result<Self> {
        if bytes_per_second == 0 {
            return Err(Error::Config {
                name,
                value: "0".to_owned(),
                remedy: "give bytes per second, or none for no limit".to_owned(),
            });
        }
        Ok(Self {
            bytes_per_second: bytes_per_second as f64,
            paid: Mutex::new(Instant::now()),
        })
    }

    /// Does one call and waits until its bytes are paid for. Time in which nothing was moved is not saved up.
    fn spend(&self, call: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
        let start = Instant::now();
        let done = call()?;
        let cost = Duration::from_secs_f64(done as f64 / self.bytes_per_second);
        let due = {
            let mut paid = self.paid.lock();
            *paid = start.max(*paid) + cost;
            *paid
        };
        thread::sleep(due.saturating_duration_since(Instant::now()));
        Ok(done)
    }
}

/// Files with a limit on the bytes a second that are read, written or both. Only the payload of segments counts; what is
/// small (the index, names, holes) does not.
#[derive(Debug)]
pub(super) struct LimitedFiles {
    inner: Arc<dyn Files>,
    read: Option<Bandwidth>,
    write: Option<Bandwidth>,
}

/// The files of a configuration, limited as it says.
pub(super) fn files(config: &DiskConfig) -> Result<Arc<dyn Files>> {
    if config.read_limit.is_none() && config.write_limit.is_none() {
        return Ok(Arc::clone(&config.files));
    }
    let bandwidth = |name, limit: Option<u64>| limit.map(|limit| Bandwidth::new(name, limit));
    Ok(Arc::new(LimitedFiles {
        inner: Arc::clone(&config.files),
        read: bandwidth("l3_read_limit", config.read_limit).transpose()?,
        write: bandwidth("l3_write_limit", config.write_limit).transpose()?,
    }))
}

impl Files for LimitedFiles {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<OpenFile> {
        self.inner.open(path, mode)
    }

    fn read(&self, file: &OpenFile, offset: u64, into: &Vectors<'_>) -> io::Result<usize> {
        let Some(bandwidth) = &self.read else {
            return self.inner.read(file, offset, into);
        };
        bandwidth.spend(|| self.inner.read(file, offset, &into.first(CALL_BYTES)))
    }

    fn write(&self, file: &OpenFile, offset: u64, from: &Vectors<'_>) -> io::Result<usize> {
        let Some(bandwidth) = &self.write else {
            return self.inner.write(file, offset, from);
        };
        bandwidth.spend(|| self.inner.write(file, offset, &from.first(CALL_BYTES)))
    }

    fn sync(&self, file: &OpenFile) -> io::Result<()> {
        self.inner.sync(file)
    }

    fn size(&self, file: &OpenFile) -> io::Result<u64> {
        self.inner.size(file)
    }

    fn set_size(&self, file: &OpenFile, len: u64) -> io::Result<()> {
        self.inner.set_size(file, len)
    }

    fn preallocate(&self, file: &OpenFile, len: u64) -> io::Result<()> {
        self.inner.preallocate(file, len)
    }

    fn punch(&self, file: &OpenFile, offset: u64, len: u64) -> io::Result<bool> {
        self.inner.punch(file, offset, len)
    }

    fn holes(&self, file: &OpenFile) -> io::Result<Vec<Range<u64>>> {
        self.inner.holes(file)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        self.inner.list(directory)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.inner.sync_directory(directory)
    }

    fn free_bytes(&self, directory: &Path) -> io::Result<u64> {
        self.inner.free_bytes(directory)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Bandwidth;

    #[test]
    fn threads_share_a_bandwidth_and_short_calls_cost_less() {
        let bandwidth = Bandwidth::new("limit", 1 << 20).expect("a limit");
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        let done = bandwidth.spend(|| Ok(4096));
                        assert_eq!(done.expect("done"), 4096);
                    }
                });
            }
        });
        // A sleep is never shorter than it was asked to be.
        let paid = Duration::from_secs_f64(20.0 * 4096.0 / f64::from(1 << 20));
        assert!(start.elapsed() >= paid, "{:?}", start.elapsed());
        assert!(
            bandwidth
                .spend(|| Err(std::io::Error::other("broken")))
                .is_err()
        );
        assert!(
            *bandwidth.paid.lock() <= Instant::now(),
            "a failure is free"
        );
    }
}
