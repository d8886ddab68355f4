//! Token ids from Python: any one-dimensional buffer of integers at once, other sequences item by item.

use kvlab_core::Error;
use pyo3::buffer::{Element, PyBuffer, PyUntypedBuffer};
use pyo3::exceptions::{PyOverflowError, PyTypeError};
use pyo3::prelude::*;

use crate::buffer::items;
use crate::error::to_py;

/// Token ids as the core wants them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tokens(pub(crate) Vec<u32>);

impl<'py> FromPyObject<'_, 'py> for Tokens {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let mut out = Vec::new();
        read_into(&object, &mut out)?;
        Ok(Self(out))
    }
}

/// Reads token ids into `out`, which is cleared first.
///
/// Raises `TypeError` for what holds no integers, `InvalidArgumentError` for a wrong dtype or shape or an id out of range.
pub(crate) fn read_into(object: &Bound<'_, PyAny>, out: &mut Vec<u32>) -> PyResult<()> {
    out.clear();
    if let Some(buffer) = row(object)? {
        return from_buffer(object.py(), buffer, out);
    }
    for (index, item) in object.try_iter()?.enumerate() {
        let item = item?;
        match item.extract::<u32>() {
            Ok(token) => out.push(token),
            Err(error) if error.is_instance_of::<PyOverflowError>(object.py()) => {
                return Err(out_of_range(index, &item));
            }
            Err(_) => {
                return Err(PyTypeError::new_err(format!(
                    "token {index} is {item}, not an integer token id"
                )));
            }
        }
    }
    Ok(())
}

/// The ids of an int64 array or tensor where they lie; none for anything else.
pub(crate) fn wide(object: &Bound<'_, PyAny>) -> PyResult<Option<PyBuffer<i64>>> {
    match row(object)? {
        Some(buffer) if is_wide(&buffer) => buffer.into_typed().map(Some),
        _ => Ok(None),
    }
}

/// The buffer of what has one; one row.
fn row(object: &Bound<'_, PyAny>) -> PyResult<Option<PyUntypedBuffer>> {
    let buffer = if let Ok(buffer) = PyUntypedBuffer::get(object) {
        buffer
    } else if let Ok(array) = object.call_method0("numpy") {
        // A tensor has no buffer of its own, but shares its memory with an array.
        PyUntypedBuffer::get(&array)?
    } else {
        return Ok(None);
    };
    if buffer.dimensions() != 1 || !buffer.is_c_contiguous() {
        return Err(to_py(&Error::invalid(format!(
            "token ids must be one contiguous row, got shape {:?} and strides {:?} in bytes; pass ids[0] or a contiguous copy",
            buffer.shape(),
            buffer.strides()
        ))));
    }
    Ok(Some(buffer))
}

fn is_wide(buffer: &PyUntypedBuffer) -> bool {
    buffer.item_size() == 8 && matches!(item_format(buffer), b"q" | b"l")
}

/// The format of an item, without the mark of native byte order.
fn item_format(buffer: &PyUntypedBuffer) -> &[u8] {
    match buffer.format().to_bytes() {
        [b'<' | b'=' | b'@', format @ ..] | format => format,
    }
}

fn from_buffer(py: Python<'_>, buffer: PyUntypedBuffer, out: &mut Vec<u32>) -> PyResult<()> {
    let format = buffer.format().to_string_lossy().into_owned();
    match (
        format.trim_start_matches(['<', '=', '@']),
        buffer.item_size(),
    ) {
        ("q" | "l", 8) => narrow(py, &buffer.into_typed::<i64>()?, out, |token| token),
        ("i" | "l", 4) => narrow(py, &buffer.into_typed::<i32>()?, out, i64::from),
        ("I" | "L", 4) => narrow(py, &buffer.into_typed::<u32>()?, out, i64::from),
        ("H", 2) => narrow(py, &buffer.into_typed::<u16>()?, out, i64::from),
        _ => Err(to_py(&Error::invalid(format!(
            "token ids must be int64, int32, uint32 or uint16, got a buffer of format {format:?}; convert it first"
        )))),
    }
}

fn narrow<T: Element>(
    py: Python<'_>,
    buffer: &PyBuffer<T>,
    out: &mut Vec<u32>,
    widen: impl Fn(T) -> i64,
) -> PyResult<()> {
    let contiguous = || to_py(&Error::invalid("the buffer of token ids is not contiguous"));
    // One pass that the compiler can vectorise: the range is checked once, over the bits of all ids.
    let mut bits = 0_i64;
    out.extend(items(py, buffer).ok_or_else(contiguous)?.map(|item| {
        let token = widen(item);
        bits |= token;
        token as u32
    }));
    if bits >> 32 == 0 {
        return Ok(());
    }
    out.clear();
    let mut tokens = items(py, buffer)
        .ok_or_else(contiguous)?
        .map(widen)
        .enumerate();
    let wrong = tokens.find(|(_, token)| u32::try_from(*token).is_err());
    let (index, token) = wrong.unwrap_or((0, bits));
    Err(out_of_range(index, token))
}

fn out_of_range(index: usize, token: impl std::fmt::Display) -> PyErr {
    to_py(&Error::invalid(format!(
        "token {index} is {token}: token ids are between 0 and {}",
        u32::MAX
    )))
}
