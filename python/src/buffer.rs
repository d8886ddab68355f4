//! The buffer protocol, both ways: cache buffers as Python buffers, so that tensors can be made over them without a copy, and
//! items out of a caller's array.
#![expect(
    unsafe_code,
    reason = "the buffer protocol is a raw C structure; every block has its SAFETY note"
)]

use std::cell::Cell;
use std::ffi::c_int;
use std::ptr::NonNull;

use kvlab_core::cache::Lease;
use kvlab_core::memory::WritableBuffer;
use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;

/// The contiguous per-layer memory that a model computes from. Its bytes are writable through the buffer
/// protocol; it goes back to its pool when the last tensor over it is gone.
#[pyclass(name = "CacheBuffer", module = "kvlab._core", frozen)]
pub(crate) struct PyCacheBuffer {
    pub(crate) lease: Lease,
}

#[pymethods]
impl PyCacheBuffer {
    /// Tokens that fit.
    #[getter]
    fn capacity(&self) -> usize {
        self.lease.layout().capacity()
    }

    /// Bytes in all.
    #[getter]
    fn nbytes(&self) -> usize {
        self.lease.layout().bytes()
    }

    /// Byte offsets of K and V of each layer.
    fn offsets(&self) -> Vec<(usize, usize)> {
        let layout = self.lease.layout();
        (0..layout.layers())
            .map(|layer| layout.tensors(layer).into())
            .collect()
    }

    /// Says that committed rows will be overwritten: the buffer does not become resident for them.
    fn forget(&self) {
        self.lease.forget();
    }

    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("the buffer view is null"));
        }
        let (address, len) = {
            let buffer = &slf.get().lease;
            (buffer.region().address(), buffer.layout().bytes())
        };
        // SAFETY: `view` is a valid structure to fill, as the protocol demands of the caller. The memory lives as
        // long as this object, to which the view takes a reference, and has at least `len` bytes. It is only
        // ever accessed by raw copies on the Rust side (see `memory::Region`), so Python may write to it.
        let status = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                address as *mut std::ffi::c_void,
                len as ffi::Py_ssize_t,
                0,
                flags,
            )
        };
        if status == 0 {
            Ok(())
        } else {
            Err(PyErr::fetch(slf.py()))
        }
    }
}

/// The bytes of a contiguous buffer, to be written to; none if it is not contiguous or may not be written.
pub(crate) fn writable(buffer: &PyBuffer<u8>) -> Option<WritableBuffer<'_>> {
    if buffer.readonly() || !buffer.is_c_contiguous() {
        return None;
    }
    // An empty buffer may have no address.
    let base = NonNull::new(buffer.buf_ptr().cast::<u8>()).unwrap_or(NonNull::dangling());
    // SAFETY: the exported memory is alive as long as the buffer is borrowed, contiguous and may be written. The core touches it
    // by raw copies and system calls only, so that it may be looked at from Python meanwhile; no reference to it is made here.
    Some(unsafe { WritableBuffer::from_raw(base, buffer.len_bytes()) })
}

/// The items of a contiguous buffer where they lie; none if it is not contiguous.
pub(crate) fn cells<'a, T: Element>(
    _py: Python<'a>,
    buffer: &'a PyBuffer<T>,
) -> Option<&'a [Cell<T>]> {
    let items = buffer.as_slice_ptr()?;
    // SAFETY: the exported memory is alive as long as the buffer is borrowed, and `as_slice_ptr` checked format, alignment and
    // contiguity. Items are plain numbers in cells: nobody here assumes that they stay as they are.
    Some(unsafe { std::slice::from_raw_parts(items.cast::<Cell<T>>().as_ptr(), items.len()) })
}
