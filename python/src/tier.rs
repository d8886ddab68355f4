//! A Python object as a server of the shared tier.

use std::time::{Duration, Instant};

use kvlab_core::tier::remote::{Answer, Asked, Failure, Got, ServerMemory, Values, ValuesError};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyConnectionError, PyMemoryError, PyPermissionError, PyTimeoutError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyType};

/// An object of `kvlab.Tier`. Its methods are called from the store's threads, one call after the other holding the GIL.
#[derive(Debug)]
pub(crate) struct PyTier {
    object: Py<PyAny>,
    name: String,
}

impl PyTier {
    /// The object as a server, if it is one.
    ///
    /// # Errors
    /// What its `name` raises.
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Option<Self>> {
        static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        let class = CLASS.import(object.py(), "kvlab.tier", "Tier")?;
        if !object.is_instance(class)? {
            return Ok(None);
        }
        Ok(Some(Self {
            object: object.clone().unbind(),
            name: object.getattr("name")?.extract()?,
        }))
    }

    /// Calls with the GIL, which the store's threads do not hold.
    fn with<T>(&self, call: impl FnOnce(&Bound<'_, PyAny>) -> PyResult<T>) -> Answer<T> {
        let answer = Python::try_attach(|py| {
            let object = self.object.bind(py);
            call(object).map_err(|error| self.error(py, &error))
        });
        answer.unwrap_or_else(|| {
            let message = format!("{}: the interpreter has ended", self.name);
            Err(ValuesError::new(Failure::Refused, message))
        })
    }

    fn error(&self, py: Python<'_>, error: &PyErr) -> ValuesError {
        let failure = if error.is_instance_of::<PyTimeoutError>(py) {
            Failure::Timeout
        } else if error.is_instance_of::<PyConnectionError>(py) {
            Failure::Refused
        } else if error.is_instance_of::<PyPermissionError>(py) {
            Failure::Auth
        } else if error.is_instance_of::<PyMemoryError>(py) {
            Failure::OutOfMemory
        } else {
            Failure::Other
        };
        ValuesError::new(failure, format!("{}: {error}", self.name))
    }

    fn as_many<T>(&self, answers: Vec<T>, wanted: usize, method: &str) -> Answer<Vec<T>> {
        if answers.len() == wanted {
            return Ok(answers);
        }
        let message = format!(
            "{}: {method} gave {} answers to {wanted} keys; give one for each, in their order",
            self.name,
            answers.len()
        );
        Err(ValuesError::new(Failure::Protocol, message))
    }
}

impl Values for PyTier {
    fn address(&self) -> &str {
        &self.name
    }

    fn get(
        &self,
        asked: &[Asked],
        _by: Instant,
        take: &mut dyn FnMut(usize, Got<'_>),
    ) -> Answer<()> {
        let values = self.with(|object| {
            let py = object.py();
            let wanted = asked
                .iter()
                .map(|Asked { name, range }| (PyBytes::new(py, name), range.start, range.end));
            let wanted = wanted.collect::<Vec<_>>();
            let values = object.call_method1("get_ranges", (wanted,))?;
            let values = values.extract::<Vec<Option<PyBuffer<u8>>>>()?;
            let copy = |value: PyBuffer<u8>| value.to_vec(py);
            values
                .into_iter()
                .map(|value| value.map(copy).transpose())
                .collect::<PyResult<Vec<_>>>()
        })?;
        for (index, value) in self.as_many(values, asked.len(), "get")?.iter().enumerate() {
            match value.as_deref() {
                Some(bytes) if !bytes.is_empty() => take(index, Got::Bytes(bytes)),
                _ => take(index, Got::Missing),
            }
        }
        Ok(())
    }

    fn put(&self, entries: &[(&[u8], &[u8])], ttl: Duration, _by: Instant) -> Answer<()> {
        self.with(|object| {
            let py = object.py();
            let items = entries
                .iter()
                .map(|(name, value)| (PyBytes::new(py, name), PyBytes::new(py, value)));
            let items = items.collect::<Vec<_>>();
            object.call_method1("put", (items, ttl.as_secs_f64()))?;
            Ok(())
        })
    }

    fn remove(&self, names: &[Vec<u8>], _by: Instant) -> Answer<Vec<bool>> {
        let there = self.with(|object| {
            let names = names.iter().map(|name| PyBytes::new(object.py(), name));
            let names = names.collect::<Vec<_>>();
            object
                .call_method1("remove", (names,))?
                .extract::<Vec<bool>>()
        })?;
        self.as_many(there, names.len(), "remove")
    }

    fn ping(&self, _by: Instant) -> Answer<()> {
        self.with(|object| object.call_method0("ping").map(drop))
    }

    fn memory(&self, _by: Instant) -> Answer<Option<ServerMemory>> {
        Ok(None)
    }
}
