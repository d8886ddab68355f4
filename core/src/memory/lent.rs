use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;
use std::thread;

use super::Region;

/// Memory of a caller's that is written to while a call lasts.
#[derive(Debug)]
pub struct WritableBuffer<'a> {
    base: NonNull<u8>,
    len: usize,
    _memory: PhantomData<&'a mut [u8]>,
}

// SAFETY: it stands for exclusive memory, or for memory that others may access from any thread; both may go to another one.
unsafe impl Send for WritableBuffer<'_> {}

impl WritableBuffer<'_> {
    /// Memory that is not all Rust's.
    ///
    /// # Safety
    /// The `len` bytes from `base` on stay valid for reads and writes as long as the buffer lives. Others may access them
    /// meanwhile, but no Rust reference to them may be used.
    pub unsafe fn from_raw(base: NonNull<u8>, len: usize) -> Self {
        Self {
            base,
            len,
            _memory: PhantomData,
        }
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<'a> From<&'a mut [u8]> for WritableBuffer<'a> {
    fn from(bytes: &'a mut [u8]) -> Self {
        Self {
            len: bytes.len(),
            base: NonNull::from(bytes).cast(),
            _memory: PhantomData,
        }
    }
}

/// Takes the regions back: nobody may have one when the memory is the caller's again.
struct Loan(Vec<Arc<Region>>);

impl Drop for Loan {
    fn drop(&mut self) {
        for region in &self.0 {
            while Arc::strong_count(region) > 1 {
                thread::yield_now();
            }
        }
    }
}

/// Does `work` with buffers as regions. Ends only when nothing has the regions any more.
pub(crate) fn lend<T>(
    buffers: &mut [WritableBuffer<'_>],
    work: impl FnOnce(&[Arc<Region>]) -> T,
) -> T {
    let regions = buffers
        .iter()
        .map(|buffer| Arc::new(Region::lent(buffer.base, buffer.len)));
    let loan = Loan(regions.collect());
    work(&loan.0)
}
