//! Columns of a trace, for what is worked out in Python.

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::prefix::PySimTrace;

fn bytes(py: Python<'_>, numbers: impl Iterator<Item = u32>) -> Bound<'_, PyBytes> {
    PyBytes::new(py, &numbers.flat_map(u32::to_ne_bytes).collect::<Vec<u8>>())
}

/// Prompt tokens and sessions, a `u32` a request each.
#[pyfunction]
#[pyo3(signature = (trace))]
pub(crate) fn sim_columns<'py>(
    py: Python<'py>,
    trace: &PySimTrace,
) -> (Bound<'py, PyBytes>, Bound<'py, PyBytes>) {
    let requests = || trace.trace.requests();
    let tokens = requests().map(|request| request.tokens);
    let sessions = requests().map(|request| request.session);
    (bytes(py, tokens), bytes(py, sessions))
}
