//! `PagedAllocator`: the block pool and its sequences.

use std::sync::Arc;

use kvlab_core::block::{PagedAllocator, SequenceId};
use parking_lot::Mutex;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyAssertionError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::error::OrRaise;
use crate::stats;

/// A fixed pool of blocks and the sequences over it, with fork and copy-on-write.
#[pyclass(name = "PagedAllocator", module = "kvlab._core", frozen)]
pub(crate) struct PyPagedAllocator {
    pub(crate) inner: Arc<Mutex<PagedAllocator>>,
}

#[pymethods]
impl PyPagedAllocator {
    #[new]
    #[pyo3(signature = (num_blocks, *, block_tokens=16, block_bytes=0))]
    fn new(num_blocks: usize, block_tokens: usize, block_bytes: usize) -> PyResult<Self> {
        let inner = PagedAllocator::new(num_blocks, block_tokens, block_bytes).or_raise()?;
        Ok(Self {
            inner: Arc::new(Mutex::new(inner)),
        })
    }

    /// A new sequence with room for `tokens` tokens; gives back its id.
    #[pyo3(signature = (tokens=0))]
    fn allocate_sequence(&self, tokens: usize) -> PyResult<u64> {
        Ok(self.inner.lock().allocate_sequence(tokens).or_raise()?.0)
    }

    /// Room for more tokens; gives back how many blocks were added.
    fn append_tokens(&self, sequence: u64, tokens: usize) -> PyResult<usize> {
        let mut inner = self.inner.lock();
        Ok(inner
            .append_tokens(SequenceId(sequence), tokens)
            .or_raise()?
            .added)
    }

    /// Ends a sequence; gives back how many blocks became free.
    fn free_sequence(&self, sequence: u64) -> PyResult<usize> {
        self.inner
            .lock()
            .free_sequence(SequenceId(sequence))
            .or_raise()
    }

    /// A new sequence that shares every block until one of the two writes.
    fn fork(&self, sequence: u64) -> PyResult<u64> {
        Ok(self.inner.lock().fork(SequenceId(sequence)).or_raise()?.0)
    }

    /// Cuts a sequence to its first tokens; gives back how many blocks became free.
    fn truncate(&self, sequence: u64, tokens: usize) -> PyResult<usize> {
        self.inner
            .lock()
            .truncate(SequenceId(sequence), tokens)
            .or_raise()
    }

    /// Writes the bytes of whole tokens at a token position; gives back how many shared blocks were copied for it.
    fn write(
        &self,
        py: Python<'_>,
        sequence: u64,
        position: usize,
        data: PyBuffer<u8>,
    ) -> PyResult<usize> {
        let bytes = data.to_vec(py)?;
        self.inner
            .lock()
            .write(SequenceId(sequence), position, &bytes)
            .or_raise()
    }

    /// The bytes of tokens from a position on.
    fn read<'py>(
        &self,
        py: Python<'py>,
        sequence: u64,
        position: usize,
        tokens: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let inner = self.inner.lock();
        // Asked for first: an absurd number of tokens is an error, not an allocation.
        let held = inner.tokens(SequenceId(sequence)).or_raise()?;
        let mut out = vec![0; tokens.min(held) * inner.token_bytes()];
        inner
            .read(SequenceId(sequence), position, tokens, &mut out)
            .or_raise()?;
        Ok(PyBytes::new(py, &out))
    }

    /// The block ids of a sequence, in token order.
    fn block_table(&self, sequence: u64) -> PyResult<Vec<u32>> {
        let inner = self.inner.lock();
        let blocks = inner.block_table(SequenceId(sequence)).or_raise()?;
        Ok(blocks.iter().map(|block| block.0).collect())
    }

    /// Tokens of a sequence.
    fn tokens(&self, sequence: u64) -> PyResult<usize> {
        self.inner.lock().tokens(SequenceId(sequence)).or_raise()
    }

    /// What is held, as counters.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        stats::pool(py, &self.inner.lock().stats())
    }

    /// Checks pool and sequences against each other; raises `AssertionError` with what is wrong.
    fn validate(&self) -> PyResult<()> {
        self.inner
            .lock()
            .validate()
            .map_err(PyAssertionError::new_err)
    }
}
