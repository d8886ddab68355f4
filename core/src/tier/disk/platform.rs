//! The few system calls that differ between platforms, each with a plain fallback.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::files::OpenMode;
use rustix::fs::{FlockOperation, flock, statvfs};

/// How the bytes of a segment file are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoMode {
    /// Through the page cache; any alignment.
    Buffered,
    /// Past the page cache; memory, file offsets and lengths keep these alignments, in bytes.
    Direct {
        /// Alignment of memory addresses.
        memory: usize,
        /// Alignment of file offsets and lengths.
        offset: usize,
    },
}

/// Opens a segment file, past the page cache if that is wanted and the file system can.
pub(super) fn open_segment(path: &Path, mode: OpenMode) -> io::Result<(File, IoMode)> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(!mode.read_only)
        .create_new(mode.create)
        .mode(0o600);
    if mode.direct
        && let Some(opened) = open_direct(path, &options)
    {
        return Ok(opened);
    }
    options.open(path).map(|file| (file, IoMode::Buffered))
}

#[cfg(target_os = "linux")]
fn open_direct(path: &Path, options: &OpenOptions) -> Option<(File, IoMode)> {
    use crate::memory::PAGE;
    use rustix::fs::{AtFlags, OFlags, StatxFlags, statx};

    let mut options = options.clone();
    options.custom_flags(OFlags::DIRECT.bits().cast_signed());
    // A file system may refuse the flag only after the file was made: the buffered open must then find it gone.
    let existed = path.exists();
    let Ok(file) = options.open(path) else {
        if !existed {
            // Nothing to remove is the usual case, and the open that follows reports all else.
            let _ = std::fs::remove_file(path);
        }
        return None;
    };
    let mode = match statx(&file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(status) if status.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => {
            let (memory, offset) = (
                status.stx_dio_mem_align as usize,
                status.stx_dio_offset_align as usize,
            );
            let usable = |align: usize| align > 0 && align <= PAGE;
            (usable(memory) && usable(offset)).then_some(IoMode::Direct { memory, offset })
        }
        // An older kernel does not say: 512 is what it asks for at least.
        _ => Some(IoMode::Direct {
            memory: 512,
            offset: 512,
        }),
    };
    if mode.is_none() {
        rustix::fs::fcntl_setfl(&file, OFlags::empty()).ok()?;
    }
    Some((file, mode.unwrap_or(IoMode::Buffered)))
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_path: &Path, _options: &OpenOptions) -> Option<(File, IoMode)> {
    None
}

/// Makes `file` `len` bytes long, with the space set aside where the file system can.
pub(super) fn preallocate(file: &File, len: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, len) {
        Ok(()) => return Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
        Err(error) => return Err(error.into()),
    }
    file.set_len(len)
}

/// Gives a range back to the file system; it then reads as zeroes. False where that is not supported.
pub(super) fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<bool> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        match fallocate(
            file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            offset,
            len,
        ) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (file, offset, len);
        Ok(false)
    }
}

/// The ranges of a file that have no bytes on disk, in order; none where the file system does not say.
pub(super) fn holes(file: &File) -> io::Result<Vec<Range<u64>>> {
    let mut holes = Vec::new();
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{SeekFrom, seek};
        use rustix::io::Errno;
        let size = file.metadata()?.len();
        let mut at = 0;
        while at < size {
            let start = match seek(file, SeekFrom::Hole(at)) {
                Ok(start) => start,
                Err(Errno::INVAL | Errno::OPNOTSUPP) => break,
                Err(error) => return Err(error.into()),
            };
            if start >= size {
                break;
            }
            at = match seek(file, SeekFrom::Data(start)) {
                Ok(data) => data,
                // There is none behind.
                Err(Errno::NXIO) => size,
                Err(error) => return Err(error.into()),
            };
            holes.push(start..at);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, &mut holes);
    Ok(holes)
}

/// Asks the system to forget what its page cache holds of a file.
pub(super) fn drop_cached(file: &File) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?;
    #[cfg(not(target_os = "linux"))]
    let _ = file;
    Ok(())
}

/// Bytes that an unprivileged process may still write to the file system of `path`.
pub(super) fn free_bytes(path: &Path) -> io::Result<u64> {
    let status = statvfs(path)?;
    Ok(status.f_bavail.saturating_mul(status.f_frsize))
}

/// Takes the lock of an open file, `shared` with others that only read or for itself; false if another open file description
/// holds it otherwise.
pub(super) fn try_lock(file: &File, shared: bool) -> io::Result<bool> {
    let operation = if shared {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    match flock(file, operation) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
