//! Files that can be read only: a store that is looked at cannot be changed by mistake.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::Path;

use crate::memory::Vectors;
use crate::tier::disk::files::{Files, IoMode, OpenFile, OpenMode, SystemFiles};

/// The system's files without everything that writes.
#[derive(Debug)]
pub(super) struct LookOnly;

fn refuse<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl Files for LookOnly {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<OpenFile> {
        if mode.create {
            return refuse();
        }
        // Through the page cache: another process may be appending, and direct reads would bypass what it has there.
        Ok(OpenFile {
            path: path.to_owned(),
            file: File::open(path)?,
            mode: IoMode::Buffered,
        })
    }

    fn read(&self, file: &OpenFile, offset: u64, into: &Vectors<'_>) -> io::Result<usize> {
        SystemFiles.read(file, offset, into)
    }

    fn size(&self, file: &OpenFile) -> io::Result<u64> {
        SystemFiles.size(file)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        SystemFiles.list(directory)
    }

    fn free_bytes(&self, directory: &Path) -> io::Result<u64> {
        SystemFiles.free_bytes(directory)
    }

    fn write(&self, _: &OpenFile, _: u64, _: &Vectors<'_>) -> io::Result<usize> {
        refuse()
    }

    fn sync(&self, _: &OpenFile) -> io::Result<()> {
        refuse()
    }

    fn set_size(&self, _: &OpenFile, _: u64) -> io::Result<()> {
        refuse()
    }

    fn preallocate(&self, _: &OpenFile, _: u64) -> io::Result<()> {
        refuse()
    }

    fn punch(&self, _: &OpenFile, _: u64, _: u64) -> io::Result<bool> {
        refuse()
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        refuse()
    }

    fn sync_directory(&self, _: &Path) -> io::Result<()> {
        refuse()
    }
}
