//! What a live store recorded.

use std::path::PathBuf;

use kvlab_core::config::WritePolicy;
use kvlab_core::sim::capture::{self, Otherwise, Requests};
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

/// Drives the L1 of each cache of a capture, and tiers below it, under another policy or in other sizes.
#[pyfunction]
#[pyo3(signature = (path, *, policy, l1_blocks, l2_blocks, l3_blocks, write_policy, run_blocks))]
#[expect(clippy::too_many_arguments, reason = "they have names")]
pub(crate) fn capture_rerun<'py>(
    py: Python<'py>,
    path: PathBuf,
    policy: Option<String>,
    l1_blocks: Option<u64>,
    l2_blocks: Option<u64>,
    l3_blocks: Option<u64>,
    write_policy: &str,
    run_blocks: Option<usize>,
) -> PyResult<Vec<Bound<'py, PyDict>>> {
    let default = Otherwise::default();
    let otherwise = Otherwise {
        policy,
        l1_blocks,
        l2_blocks,
        l3_blocks,
        write: WritePolicy::by_name(write_policy).or_raise()?,
        run_blocks: run_blocks.unwrap_or(default.run_blocks),
    };
    let rerun = || capture::rerun(&path, &otherwise);
    let reruns = py.detach(rerun).or_raise()?;
    let reruns = reruns.into_iter().map(|rerun| {
        let dict = fields!(
            py,
            rerun,
            [
                blocks, requests, block_refs, hits, l2_hits, l3_hits, evictions
            ]
        );
        dict.set_item("policy", rerun.policy)?;
        dict.set_item("victims", rerun.victims)?;
        Ok(dict)
    });
    reruns.collect()
}
