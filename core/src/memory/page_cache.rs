use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use super::PAGE;

/// How many bytes of `file` the operating system holds in its page cache, by `mincore`.
///
/// # Errors
/// The system's error, if the file cannot be mapped or queried.
pub fn resident_bytes(file: &File) -> io::Result<u64> {
    let len = usize::try_from(file.metadata()?.len()).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "file larger than memory can map",
        )
    })?;
    if len == 0 {
        return Ok(0);
    }
    // SAFETY: a fresh shared read-only mapping at an address of the kernel's choice; it is never dereferenced.
    let base = unsafe {
        libc::mmap(
            ptr::null_mut(),
            len,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let mut pages = vec![0; len.div_ceil(PAGE)];
    // SAFETY: the mapping is `len` bytes long and `pages` has one entry for each of its pages.
    let status = unsafe { libc::mincore(base, len, pages.as_mut_ptr()) };
    let error = io::Error::last_os_error();
    // SAFETY: unmaps exactly what was mapped above.
    unsafe { libc::munmap(base, len) };
    if status != 0 {
        return Err(error);
    }
    Ok(pages.iter().filter(|page| **page & 1 == 1).count() as u64 * PAGE as u64)
}
