//! The file operations of the disk tier, one method a system call, so that they can be limited, watched and made to fail.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::platform;
use crate::memory::Vectors;

pub use platform::IoMode;

/// An open segment file.
#[derive(Debug)]
pub struct OpenFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its descriptor.
    pub file: File,
    /// How its bytes are moved.
    pub mode: IoMode,
}

/// How a segment file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenMode {
    /// Make the file, which must not be there yet.
    pub create: bool,
    /// Bypass the page cache if the file system can.
    pub direct: bool,
    /// Do not ask for the right to write.
    pub read_only: bool,
}

/// What the disk tier asks of the file system, for its segments and their directory. [`SystemFiles`] does it; others wrap it.
///
/// Each method is one attempt at one operation: it may move fewer bytes than it was given or be interrupted, as the system
/// call may, and its caller goes on. The index (sled), `FORMAT` and `LOCK` are written past it.
///
/// Every method gives the system's error.
#[expect(
    clippy::missing_errors_doc,
    reason = "said once, above: each gives the system's error"
)]
pub trait Files: fmt::Debug + Send + Sync {
    /// Opens a segment file, for reading and writing unless `mode` says otherwise; a new one is 0600.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<OpenFile>;

    /// Reads once from byte `offset` on; how many bytes came, 0 at the end of the file.
    fn read(&self, file: &OpenFile, offset: u64, into: &Vectors<'_>) -> io::Result<usize>;

    /// Writes once from byte `offset` on; how many bytes went.
    fn write(&self, file: &OpenFile, offset: u64, from: &Vectors<'_>) -> io::Result<usize>;

    /// Puts the file's bytes and its length on stable storage.
    fn sync(&self, file: &OpenFile) -> io::Result<()>;

    /// The file's length in bytes.
    fn size(&self, file: &OpenFile) -> io::Result<u64>;

    /// Cuts or extends the file to `len` bytes.
    fn set_size(&self, file: &OpenFile, len: u64) -> io::Result<()>;

    /// Makes the file `len` bytes long, with the space set aside where the file system can.
    fn preallocate(&self, file: &OpenFile, len: u64) -> io::Result<()>;

    /// Gives `len` bytes from `offset` on back to the file system; they then read as zeroes. False where that is not
    /// supported.
    fn punch(&self, file: &OpenFile, offset: u64, len: u64) -> io::Result<bool>;

    /// The ranges of the file that have no bytes on disk and read as zeroes, in order; none where the file system does not say.
    fn holes(&self, file: &OpenFile) -> io::Result<Vec<Range<u64>>>;

    /// Removes a segment file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory.
    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>>;

    /// Puts the names in a directory on stable storage.
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;

    /// Bytes that an unprivileged process may still write to the file system of a directory.
    fn free_bytes(&self, directory: &Path) -> io::Result<u64>;
}

/// The system's own files.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemFiles;

impl Files for SystemFiles {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<OpenFile> {
        let (file, io_mode) = platform::open_segment(path, mode)?;
        Ok(OpenFile {
            path: path.to_owned(),
            file,
            mode: io_mode,
        })
    }

    fn read(&self, file: &OpenFile, offset: u64, into: &Vectors<'_>) -> io::Result<usize> {
        into.read(&file.file, offset)
    }

    fn write(&self, file: &OpenFile, offset: u64, from: &Vectors<'_>) -> io::Result<usize> {
        from.write(&file.file, offset)
    }

    fn sync(&self, file: &OpenFile) -> io::Result<()> {
        file.file.sync_data()
    }

    fn size(&self, file: &OpenFile) -> io::Result<u64> {
        file.file.metadata().map(|status| status.len())
    }

    fn set_size(&self, file: &OpenFile, len: u64) -> io::Result<()> {
        file.file.set_len(len)
    }

    fn preallocate(&self, file: &OpenFile, len: u64) -> io::Result<()> {
        platform::preallocate(&file.file, len)
    }

    fn punch(&self, file: &OpenFile, offset: u64, len: u64) -> io::Result<bool> {
        platform::punch_hole(&file.file, offset, len)
    }

    fn holes(&self, file: &OpenFile) -> io::Result<Vec<Range<u64>>> {
        platform::holes(&file.file)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        let entries = fs::read_dir(directory)?;
        entries
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect()
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        File::open(directory)?.sync_all()
    }

    fn free_bytes(&self, directory: &Path) -> io::Result<u64> {
        platform::free_bytes(directory)
    }
}
