//! Token ids from Python: any one-dimensional buffer of integers at once, other sequences item by item.

use kvlab_core::Error;
use pyo3::buffer::{Element, PyBuffer, PyUntypedBuffer};
use pyo3::exceptions::{PyOverflowError, PyTypeError};
use pyo3::prelude::*;

use crate::buffer::cells;
use crate::error::to_py;

/// Ids that are checked and narrowed together.
const STRETCH: usize = 256;

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
    let tokens = cells(py, buffer)
        .ok_or_else(|| to_py(&Error::invalid("the buffer of token ids is not contiguous")))?;
    out.reserve(tokens.len());
    // Stretch by stretch, so that the second loop finds them at hand; the compiler vectorises both.
    for (index, stretch) in tokens.chunks(STRETCH).enumerate() {
        let bits = stretch
            .iter()
            .fold(0, |bits, token| bits | widen(token.get()));
        if bits >> 32 != 0 {
            let ids = stretch.iter().map(|token| widen(token.get()));
            let wrong = ids.enumerate().find(|(_, id)| u32::try_from(*id).is_err());
            let (inside, id) = wrong.unwrap_or((0, bits));
            return Err(out_of_range(index * STRETCH + inside, id));
        }
        out.extend(stretch.iter().map(|token| widen(token.get()) as u32));
    }
    Ok(())
}

fn out_of_range(index: usize, token: impl std::fmt::Display) -> PyErr {
    to_py(&Error::invalid(format!(
        "token {index} is {token}: token ids are between 0 and {}",
        u32::MAX
    )))
}
