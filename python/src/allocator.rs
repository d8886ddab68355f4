//! `PagedAllocator`: the block pool and its sequences.

use std::sync::Arc;

use kvlab_core::block::{PagedAllocator, SequenceId};
use parking_lot::Mutex;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyAssertionError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::argument::Int;
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
    #[pyo3(signature = (num_blocks, *, block_tokens=Int::from(16), block_bytes=Int::from(0)), text_signature = "(num_blocks, *, block_tokens=16, block_bytes=0)")]
    fn new(num_blocks: Int, block_tokens: Int, block_bytes: Int) -> PyResult<Self> {
        let num_blocks = num_blocks.get("num_blocks")?;
        let block_tokens = block_tokens.get("block_tokens")?;
        let block_bytes = block_bytes.get("block_bytes")?;
        let inner = PagedAllocator::new(num_blocks, block_tokens, block_bytes).or_raise()?;
        Ok(Self {
            inner: Arc::new(Mutex::new(inner)),
        })
    }

    /// A new sequence with room for `tokens` tokens; gives back its id.
    #[pyo3(signature = (tokens=Int::from(0)), text_signature = "($self, tokens=0)")]
    fn allocate_sequence(&self, tokens: Int) -> PyResult<u64> {
        let tokens = tokens.get("tokens")?;
        Ok(self.inner.lock().allocate_sequence(tokens).or_raise()?.0)
    }

    /// Room for more tokens; gives back how many blocks were added.
    fn append_tokens(&self, sequence: Int, tokens: Int) -> PyResult<usize> {
        let sequence = SequenceId(sequence.get("sequence")?);
        let tokens = tokens.get("tokens")?;
        let mut inner = self.inner.lock();
        Ok(inner.append_tokens(sequence, tokens).or_raise()?.added)
    }

    /// Ends a sequence; gives back how many blocks became free.
    fn free_sequence(&self, sequence: Int) -> PyResult<usize> {
        let sequence = SequenceId(sequence.get("sequence")?);
        self.inner.lock().free_sequence(sequence).or_raise()
    }

    /// A new sequence that shares every block until one of the two writes.
    fn fork(&self, sequence: Int) -> PyResult<u64> {
        let sequence = SequenceId(sequence.get("sequence")?);
        Ok(self.inner.lock().fork(sequence).or_raise()?.0)
    }

    /// Cuts a sequence to its first tokens; gives back how many blocks became free.
    fn truncate(&self, sequence: Int, tokens: Int) -> PyResult<usize> {
        let sequence = SequenceId(sequence.get("sequence")?);
        let tokens = tokens.get("tokens")?;
        self.inner.lock().truncate(sequence, tokens).or_raise()
    }

    /// Writes the bytes of whole tokens at a token position; gives back how many shared blocks were copied for it.
    fn write(
        &self,
        py: Python<'_>,
        sequence: Int,
        position: Int,
        data: PyBuffer<u8>,
    ) -> PyResult<usize> {
        let sequence = SequenceId(sequence.get("sequence")?);
        let position = position.get("position")?;
        let bytes = data.to_vec(py)?;
        self.inner
            .lock()
            .write(sequence, position, &bytes)
            .or_raise()
    }

    /// The bytes of tokens from a position on.
    fn read<'py>(
        &self,
        py: Python<'py>,
        sequence: Int,
        position: Int,
        tokens: Int,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let sequence = SequenceId(sequence.get("sequence")?);
        let position = position.get("position")?;
        let tokens: usize = tokens.get("tokens")?;
        let inner = self.inner.lock();
        // Asked for first: an absurd number of tokens is an error, not an allocation.
        let held = inner.tokens(sequence).or_raise()?;
        let mut out = vec![0; tokens.min(held) * inner.token_bytes()];
        inner
            .read(sequence, position, tokens, &mut out)
            .or_raise()?;
        Ok(PyBytes::new(py, &out))
    }

    /// The block ids of a sequence, in token order.
    fn block_table(&self, sequence: Int) -> PyResult<Vec<u32>> {
        let sequence = SequenceId(sequence.get("sequence")?);
        let inner = self.inner.lock();
        let blocks = inner.block_table(sequence).or_raise()?;
        Ok(blocks.iter().map(|block| block.0).collect())
    }

    /// Tokens of a sequence.
    fn tokens(&self, sequence: Int) -> PyResult<usize> {
        let sequence = SequenceId(sequence.get("sequence")?);
        self.inner.lock().tokens(sequence).or_raise()
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
