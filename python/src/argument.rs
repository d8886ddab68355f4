//! Arguments that Python may give in more than one form.

use kvlab_core::Error;
use kvlab_core::config::parse_size;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyInt, PyString};

use crate::error::{OrRaise, to_py};

/// A number of bytes, given as an `int` or as a human size such as `"2GiB"`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ByteSize(pub(crate) u64);

impl<'py> FromPyObject<'_, 'py> for ByteSize {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(text) = object.cast::<PyString>() {
            return parse_size(text.to_str()?).or_raise().map(Self);
        }
        if object.is_instance_of::<PyInt>() && !object.is_instance_of::<PyBool>() {
            return object.extract::<u64>().map(Self).map_err(|_| {
                to_py(&Error::invalid(format!(
                    "{} bytes is not a size; give a whole number between 0 and 2^64 - 1",
                    &*object
                )))
            });
        }
        Err(PyTypeError::new_err(format!(
            "a size is an int or a string such as \"2GiB\", not {}",
            object.get_type().name()?
        )))
    }
}

/// A time limit in seconds.
///
/// Raises `InvalidArgumentError` for a negative or endless one.
pub(crate) fn seconds(value: f64) -> PyResult<std::time::Duration> {
    std::time::Duration::try_from_secs_f64(value).map_err(|_| {
        to_py(&Error::invalid(format!(
            "a timeout of {value} s cannot be waited for; give seconds from 0 up"
        )))
    })
}
