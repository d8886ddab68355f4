use std::io;
use std::ptr::{self, NonNull};

use super::Checksum;
use crate::error::{Error, Result};

/// The unit of alignment of every region and of direct I/O, in bytes.
pub const PAGE: usize = 4096;

/// `len` rounded up to whole pages.
pub const fn page_align(len: usize) -> usize {
    len.div_ceil(PAGE) * PAGE
}

/// Regions at least this long, in bytes, ask for huge pages: first touches, copies and checksums cost less, and the disk gets
/// few long pieces of memory instead of many pages.
#[cfg(target_os = "linux")]
const HUGE_PAGE: usize = 2 << 20;

/// Page-aligned anonymous memory of fixed size, or memory that a caller lent, that is only ever touched through copies.
///
/// A region is shared between threads of this crate, I/O system calls and foreign code (a tensor over a cache
/// buffer), so no Rust reference to its bytes is ever made: every access is a bounds-checked raw copy. Two accesses
/// that overlap in time give unspecified *bytes*, never anything worse; who may touch which bytes when is settled above
/// (block reference counts, leases, run pins), and payload that crossed a disk is verified by checksum.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    len: usize,
    /// Whether the mapping ends with the region; else the memory is a caller's.
    owned: bool,
}

// SAFETY: the memory lives until the region's drop, being its own or lent for as long; all access is by raw copy inside bounds.
unsafe impl Send for Region {}
// SAFETY: as above; no references into the mapping exist, so sharing the handle cannot break aliasing rules.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `len` bytes of zeroed memory, rounded up to whole pages; pages are committed when first touched.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `len` is 0 or absurd, [`Error::Io`] if the system refuses the mapping.
    pub fn new(len: usize) -> Result<Self> {
        if len == 0 || len > isize::MAX as usize - PAGE {
            return Err(Error::invalid(format!(
                "a memory region of {len} bytes cannot be made"
            )));
        }
        let len = page_align(len);
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(Error::io(
                format!("mapping {len} bytes of memory"),
                io::Error::last_os_error(),
            ));
        }
        #[cfg(target_os = "linux")]
        if len >= HUGE_PAGE {
            // SAFETY: the range is the mapping made above. It is advice: without huge pages there are small ones.
            unsafe { libc::madvise(base, len, libc::MADV_HUGEPAGE) };
        }
        let base = NonNull::new(base.cast::<u8>())
            .ok_or_else(|| Error::invalid("the system mapped memory at address 0"))?;
        Ok(Self {
            base,
            len,
            owned: true,
        })
    }

    /// Memory of a caller's, who keeps it valid for reads and writes for as long as the region lives.
    pub(super) fn lent(base: NonNull<u8>, len: usize) -> Self {
        Self {
            base,
            len,
            owned: false,
        }
    }

    /// Size in bytes, a multiple of [`PAGE`] unless it is a caller's memory.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true; here because `len` is.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Touches every page once, so that later copies pay no page faults.
    pub fn prefault(&self) {
        for offset in (0..self.len).step_by(PAGE) {
            // SAFETY: `offset` is inside the mapping; writing back the byte that was read changes nothing.
            unsafe {
                let at = self.base.as_ptr().add(offset);
                ptr::write_volatile(at, ptr::read_volatile(at));
            }
        }
    }

    /// The address of the first byte, for foreign code that keeps the region alive for as long as it uses it.
    pub fn address(&self) -> usize {
        self.base.as_ptr() as usize
    }

    /// Copies bytes at `offset` out.
    ///
    /// # Panics
    /// If the range is not inside the region; callers check sizes where they enter the crate.
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        self.check(offset, out.len());
        // SAFETY: the range was checked; `out` is exclusive and cannot overlap the mapping.
        unsafe {
            ptr::copy_nonoverlapping(self.base.as_ptr().add(offset), out.as_mut_ptr(), out.len());
        }
    }

    /// Copies `bytes` in at `offset`.
    ///
    /// # Panics
    /// If the range is not inside the region.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        self.check(offset, bytes.len());
        // SAFETY: the range was checked; `bytes` cannot overlap the mapping, to which no reference exists.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.as_ptr().add(offset), bytes.len());
        }
    }

    /// Zeroes a range.
    ///
    /// # Panics
    /// If the range is not inside the region.
    pub fn zero(&self, offset: usize, len: usize) {
        self.check(offset, len);
        // SAFETY: the range was checked.
        unsafe { ptr::write_bytes(self.base.as_ptr().add(offset), 0, len) }
    }

    /// Copies `len` bytes from `source` at `from` to this region at `to`; the ranges may overlap.
    ///
    /// # Panics
    /// If a range is not inside its region.
    pub fn copy_from(&self, to: usize, source: &Region, from: usize, len: usize) {
        self.check(to, len);
        source.check(from, len);
        // SAFETY: both ranges were checked; `copy` allows them to overlap.
        unsafe {
            ptr::copy(
                source.base.as_ptr().add(from),
                self.base.as_ptr().add(to),
                len,
            );
        }
    }

    /// Feeds a range to a running checksum.
    ///
    /// # Panics
    /// If the range is not inside the region.
    pub fn hash_into(&self, checksum: &mut Checksum, offset: usize, len: usize) {
        self.check(offset, len);
        // SAFETY: the range was checked. The slice lives for this call only, over a range that the caller has pinned
        // against writers (a leased buffer, a pinned run, a worker's own spare memory).
        let bytes = unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(offset), len) };
        checksum.update(bytes);
    }

    pub(super) fn pointer(&self, offset: usize, len: usize) -> *mut u8 {
        self.check(offset, len);
        // SAFETY: the range was checked.
        unsafe { self.base.as_ptr().add(offset) }
    }

    fn check(&self, offset: usize, len: usize) {
        assert!(
            offset <= self.len && len <= self.len - offset,
            "range {offset}+{len} is outside a region of {} bytes",
            self.len
        );
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.owned {
            // SAFETY: the mapping was made by `new` with this length and is unmapped once.
            unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
        }
    }
}
