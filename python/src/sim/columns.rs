//! Columns of a trace, for what is worked out in Python: waiting times, sessions, windows of time.

use kvlab_core::Error;
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::prefix::PySimTrace;
use crate::error::to_py;

fn bytes<'py, const N: usize>(
    py: Python<'py>,
    numbers: impl Iterator<Item = [u8; N]>,
) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &numbers.flatten().collect::<Vec<u8>>())
}

/// What is known of each request, column by column.
#[pyfunction]
#[pyo3(signature = (trace))]
pub(crate) fn sim_columns<'py>(
    py: Python<'py>,
    trace: &PySimTrace,
) -> PyResult<Bound<'py, PyDict>> {
    let rows = || trace.trace.requests();
    let columns = PyDict::new(py);
    columns.set_item(
        "at_ms",
        bytes(py, rows().map(|row| row.at_ms.to_ne_bytes())),
    )?;
    columns.set_item(
        "blocks",
        bytes(
            py,
            rows().map(|row| (row.blocks.len() as u32).to_ne_bytes()),
        ),
    )?;
    columns.set_item(
        "tokens",
        bytes(py, rows().map(|row| row.tokens.to_ne_bytes())),
    )?;
    columns.set_item(
        "output_tokens",
        bytes(py, rows().map(|row| row.output_tokens.to_ne_bytes())),
    )?;
    columns.set_item(
        "sessions",
        bytes(py, rows().map(|row| row.session.to_ne_bytes())),
    )?;
    columns.set_item(
        "categories",
        bytes(py, rows().map(|row| row.category.to_ne_bytes())),
    )?;
    Ok(columns)
}

/// Tokens of the blocks that each request found.
#[pyfunction]
#[pyo3(signature = (trace, hits))]
pub(crate) fn sim_hit_tokens<'py>(
    py: Python<'py>,
    trace: &PySimTrace,
    hits: PyBuffer<u32>,
) -> PyResult<Bound<'py, PyBytes>> {
    let hits = hits.to_vec(py)?;
    if hits.len() != trace.trace.len() {
        return Err(to_py(&Error::invalid(format!(
            "hits of {} requests, but the trace has {}",
            hits.len(),
            trace.trace.len()
        ))));
    }
    for (index, (row, &hits)) in trace.trace.requests().zip(&hits).enumerate() {
        if hits as usize > row.blocks.len() {
            return Err(to_py(&Error::invalid(format!(
                "request {index} found {hits} blocks, but it has {}",
                row.blocks.len()
            ))));
        }
    }
    let rows = trace.trace.requests().zip(&hits);
    Ok(bytes(
        py,
        rows.map(|(row, &hits)| trace.trace.tokens_of(&row, hits as usize).to_ne_bytes()),
    ))
}
