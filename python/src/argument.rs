//! Arguments that Python may give in more than one form.

use std::path::PathBuf;

use kvlab_core::Error;
use kvlab_core::config::{parse_seconds, parse_size};
use pyo3::exceptions::{PyOverflowError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyInt, PyString};

use crate::error::{OrRaise, to_py};

/// A path, by Python's own rules for `~` and path-like objects.
pub(crate) fn expand_path(path: Option<&Bound<'_, PyAny>>) -> PyResult<Option<PathBuf>> {
    let Some(path) = path else {
        return Ok(None);
    };
    let os_path = path.py().import("os.path")?;
    os_path
        .call_method1("expanduser", (path,))?
        .extract()
        .map(Some)
}

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

/// A time to live in seconds, given as an `int` or as a human duration such as `"7d"`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ttl(pub(crate) u32);

impl<'py> FromPyObject<'_, 'py> for Ttl {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let is_number = object.is_instance_of::<PyInt>() && !object.is_instance_of::<PyBool>();
        if !is_number && !object.is_instance_of::<PyString>() {
            return Err(PyTypeError::new_err(format!(
                "a time to live is an int (seconds) or a string such as \"7d\", not {}",
                object.get_type().name()?
            )));
        }
        let text = object.str()?;
        parse_seconds(text.to_str()?).or_raise().map(Self)
    }
}

/// An integer of Python, of whatever size: what cannot be is an error that names the parameter, not an `OverflowError`.
#[derive(Clone, Debug)]
pub(crate) struct Int(Result<u64, String>);

impl<'py> FromPyObject<'_, 'py> for Int {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match object.extract::<u64>() {
            Ok(value) => Ok(Self(Ok(value))),
            Err(error) if error.is_instance_of::<PyOverflowError>(object.py()) => {
                Ok(Self(Err(object.to_string())))
            }
            Err(error) => Err(error),
        }
    }
}

impl From<u64> for Int {
    fn from(value: u64) -> Self {
        Self(Ok(value))
    }
}

impl Int {
    /// The number, if it is within what `T` holds.
    ///
    /// Raises `InvalidArgumentError` that names the parameter, the value and the range.
    pub(crate) fn get<T: TryFrom<u64> + Limit>(self, name: &str) -> PyResult<T> {
        let value = self
            .0
            .and_then(|value| T::try_from(value).map_err(|_| value.to_string()));
        value.map_err(|value| {
            to_py(&Error::invalid(format!(
                "{name} = {value} cannot be; give a whole number from 0 to {}",
                T::LARGEST
            )))
        })
    }
}

/// The largest value of a type, to be named in an error.
pub(crate) trait Limit {
    /// That value.
    const LARGEST: u64;
}

impl Limit for u32 {
    const LARGEST: u64 = Self::MAX as u64;
}

impl Limit for u64 {
    const LARGEST: u64 = Self::MAX;
}

impl Limit for usize {
    const LARGEST: u64 = Self::MAX as u64;
}

/// Waiting longer than this, 31 years, is waiting for ever; a clock can still count it.
const FOREVER: f64 = 1e9;

/// A time limit in seconds.
///
/// Raises `InvalidArgumentError` for a negative one, or what is no number.
pub(crate) fn seconds(value: f64) -> PyResult<std::time::Duration> {
    // Not `min`, which would take FOREVER for what is no number.
    let limit = if value > FOREVER { FOREVER } else { value };
    std::time::Duration::try_from_secs_f64(limit).map_err(|_| {
        to_py(&Error::invalid(format!(
            "a timeout of {value} s cannot be waited for; give 0 or more seconds"
        )))
    })
}
