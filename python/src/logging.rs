//! The records of the `log` crate, sent to Python's `logging` under the names `kvlab_core.*`.

use log::{LevelFilter, Log, Metadata, Record};
use pyo3::prelude::*;
use pyo3_log::{Caching, Logger};

/// Forwards a record while there is an interpreter to forward it to. A worker may still log while Python
/// shuts down; attaching to it then would panic in the middle of the worker's work.
struct WhilePythonRuns(Logger);

impl Log for WhilePythonRuns {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let _ = Python::try_attach(|_| self.0.log(record));
        }
    }

    fn flush(&self) {}
}

/// Starts forwarding. Info and above: each record attaches to Python, which the data path must not pay for.
///
/// Loggers are cached, levels are not, so that a level set later counts. A process that has a Rust logger
/// already (a second copy of this module) keeps it.
pub(crate) fn start(py: Python<'_>) -> PyResult<()> {
    let logger = Logger::new(py, Caching::Loggers)?.filter(LevelFilter::Info);
    if log::set_boxed_logger(Box::new(WhilePythonRuns(logger))).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
    Ok(())
}
