//! What a live store recorded.

use std::path::PathBuf;

use kvlab_core::sim::capture::{self, Requests};
use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::OrRaise;
use crate::stats::fields;

/// Milliseconds, category, tokens in a block, block ids.
type Captured = (u64, u32, u32, Vec<u64>);

/// Reads the requests of a capture, one after the other.
#[pyclass(name = "CaptureRequests", module = "kvlab._core", frozen)]
pub(crate) struct PyCaptureRequests {
    requests: Mutex<Requests>,
}

#[pymethods]
impl PyCaptureRequests {
    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    fn __next__(&self) -> PyResult<Option<Captured>> {
        let Some(request) = self.requests.lock().next() else {
            return Ok(None);
        };
        let request = request.or_raise()?;
        Ok(Some((
            request.time_ms,
            request.category,
            request.block_tokens,
            request.blocks,
        )))
    }
}

/// Opens a capture to read its requests.
#[pyfunction]
pub(crate) fn capture_requests(path: PathBuf) -> PyResult<PyCaptureRequests> {
    let requests = Mutex::new(capture::requests(&path).or_raise()?);
    Ok(PyCaptureRequests { requests })
}

/// Drives L1, L2 and the directory of L3 with a capture.
#[pyfunction]
pub(crate) fn capture_replay(py: Python<'_>, path: PathBuf) -> PyResult<Vec<Bound<'_, PyDict>>> {
    let orders = py.detach(|| capture::replay(&path)).or_raise()?;
    let orders = orders.into_iter().map(|order| {
        let dict = fields!(py, order, [tier, tenant, capacity]);
        dict.set_item("policy", order.policy)?;
        dict.set_item("recorded", order.recorded)?;
        dict.set_item("victims", order.victims)?;
        Ok(dict)
    });
    orders.collect()
}

/// Drives the L1 of each cache of a capture under another policy or in another size.
#[pyfunction]
pub(crate) fn capture_rerun(
    py: Python<'_>,
    path: PathBuf,
    policy: Option<String>,
    l1_blocks: Option<u64>,
) -> PyResult<Vec<Bound<'_, PyDict>>> {
    let rerun = || capture::rerun(&path, policy.as_deref(), l1_blocks);
    let reruns = py.detach(rerun).or_raise()?;
    let reruns = reruns.into_iter().map(|rerun| {
        let dict = fields!(py, rerun, [blocks, requests, block_refs, hits, evictions]);
        dict.set_item("policy", rerun.policy)?;
        dict.set_item("victims", rerun.victims)?;
        Ok(dict)
    });
    reruns.collect()
}
