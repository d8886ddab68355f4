//! Telling a Python function how far a long call is.

use pyo3::prelude::*;

/// Bytes between two calls.
const STRIDE: u64 = 16 << 20;

/// A function `progress(done, total)`, or none. The first exception it raises ends the reports and is raised at the end.
pub(crate) struct Report {
    function: Option<Py<PyAny>>,
    said: u64,
    failed: Option<PyErr>,
}

impl Report {
    pub(crate) fn new(function: Option<Py<PyAny>>) -> Self {
        Self {
            function,
            said: 0,
            failed: None,
        }
    }

    /// Bytes done and in all; attaches to Python now and then.
    pub(crate) fn say(&mut self, done: u64, total: u64) {
        let due = done >= self.said + STRIDE || done == total;
        if let (Some(function), None, true) = (&self.function, &self.failed, due) {
            self.said = done;
            self.failed = Python::attach(|py| function.call1(py, (done, total)).err());
        }
    }

    /// Raises what the function raised.
    pub(crate) fn end(self) -> PyResult<()> {
        self.failed.map_or(Ok(()), Err)
    }
}
