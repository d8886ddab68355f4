//! The one place where an error of the core becomes a Python exception.
//!
//! The classes live in `kvlab/errors.py`, where they have docstrings and second bases such as `ValueError`
//! and `OSError`; they are imported when the first error is raised.

use kvlab_core::Error;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

/// Turns a result of the core into one that Python understands.
pub(crate) trait OrRaise<T> {
    /// The value, or the exception of `kvlab.errors` that fits the error.
    fn or_raise(self) -> PyResult<T>;
}

impl<T> OrRaise<T> for kvlab_core::Result<T> {
    fn or_raise(self) -> PyResult<T> {
        self.map_err(|error| to_py(&error))
    }
}

/// The exception for an error of the core. Its message is the error's own.
pub(crate) fn to_py(error: &Error) -> PyErr {
    Python::attach(|py| {
        let class = match class_of(py, error) {
            Ok(class) => class,
            Err(missing) => return missing,
        };
        let message = error.to_string();
        match os_code(error) {
            Some(code) => PyErr::from_type(class.clone(), (code, message)),
            None => PyErr::from_type(class.clone(), (message,)),
        }
    })
}

fn class_of<'py>(py: Python<'py>, error: &Error) -> PyResult<&'py Bound<'py, PyType>> {
    macro_rules! class {
        ($name:literal) => {{
            static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
            CLASS.import(py, "kvlab.errors", $name)
        }};
    }
    match error {
        Error::InvalidArgument(_) => class!("InvalidArgumentError"),
        Error::Config { .. } => class!("ConfigError"),
        Error::OutOfBlocks { .. } | Error::OutOfMemory { .. } => class!("CapacityError"),
        Error::UnknownSequence(_) | Error::UnknownBlock(_) => class!("NotFoundError"),
        Error::NotLocked => class!("StateError"),
        Error::Closed => class!("StoreClosedError"),
        Error::Forked { .. } => class!("ForkedProcessError"),
        Error::Locked { .. } => class!("StoreLockedError"),
        Error::Format { .. } => class!("FormatError"),
        Error::ReadOnly(_) => class!("ReadOnlyStoreError"),
        Error::UnsafeDirectory { .. } => class!("UnsafeDirectoryError"),
        Error::Io { .. } => class!("StoreIOError"),
        Error::Timeout { .. } => class!("StoreTimeoutError"),
        Error::Remote { .. } => class!("RemoteError"),
        // The core's enum may grow; what has no class of its own yet is still a KvlabError.
        _ => class!("KvlabError"),
    }
}

/// The operating system's error number, for `OSError.errno`.
fn os_code(error: &Error) -> Option<i32> {
    match error {
        Error::Io { source, .. } => source.raw_os_error(),
        _ => None,
    }
}
