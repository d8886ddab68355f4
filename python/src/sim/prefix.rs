//! Traces of requests, and their replay in prefix and flat mode.

use std::ops::ControlFlow;
use std::sync::Arc;

use kvlab_core::Error;
use kvlab_core::config::WritePolicy;
use kvlab_core::cost::RestoreMode;
use kvlab_core::sim::prefix::tiers::{CostModel, ReadCost, TiersConfig, replay_tiers};
use kvlab_core::sim::prefix::{self, Config, Mode};
use kvlab_core::sim::trace::{BlockTokens, Request, Requests, Trace, TraceBuilder};
use parking_lot::Mutex;
use pyo3::buffer::{Element, PyUntypedBuffer};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::error::{OrRaise, to_py};

/// A column that is read at once: a contiguous row of numbers of the very type.
struct Column<T>(Vec<T>);

impl<'py, T: Element> FromPyObject<'_, 'py> for Column<T> {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let buffer = PyUntypedBuffer::get(&object)?;
        // An empty array has no memory, so that no alignment fits it.
        if buffer.item_count() == 0 {
            return Ok(Self(Vec::new()));
        }
        buffer.into_typed()?.to_vec(object.py()).map(Self)
    }
}

/// Requests with dense block ids.
#[pyclass(name = "SimTrace", module = "kvlab._core", frozen)]
pub(crate) struct PySimTrace {
    pub(super) trace: Arc<Trace>,
}

/// Collects requests, chunk by chunk.
#[pyclass(name = "SimTraceBuilder", module = "kvlab._core", frozen)]
pub(crate) struct PySimTraceBuilder {
    /// None once finished.
    inner: Mutex<Option<TraceBuilder>>,
}

impl PySimTraceBuilder {
    fn with<T>(
        &self,
        call: impl FnOnce(&mut TraceBuilder) -> kvlab_core::Result<T>,
    ) -> PyResult<T> {
        match self.inner.lock().as_mut() {
            Some(builder) => call(builder).or_raise(),
            None => Err(finished()),
        }
    }
}

fn finished() -> PyErr {
    to_py(&Error::invalid(
        "the trace was finished already; start a new builder",
    ))
}

#[pymethods]
impl PySimTraceBuilder {
    #[new]
    fn new() -> Self {
        Self {
            inner: Mutex::new(Some(TraceBuilder::new())),
        }
    }

    /// Appends requests.
    #[pyo3(signature = (at_ms, counts, ids, tokens, output_tokens, sessions, categories, *, runs=false))]
    #[expect(clippy::too_many_arguments, reason = "one for each column")]
    fn push(
        &self,
        py: Python<'_>,
        at_ms: Column<f64>,
        counts: Column<u32>,
        ids: Column<u64>,
        tokens: Column<u32>,
        output_tokens: Column<u32>,
        sessions: Column<u32>,
        categories: Column<u32>,
        runs: bool,
    ) -> PyResult<()> {
        py.detach(|| {
            let requests = Requests {
                at_ms: &at_ms.0,
                counts: &counts.0,
                ids: &ids.0,
                tokens: &tokens.0,
                output_tokens: &output_tokens.0,
                sessions: &sessions.0,
                categories: &categories.0,
            };
            self.with(|builder| {
                if runs {
                    builder.push_runs(&requests)
                } else {
                    builder.push(&requests)
                }
            })
        })
    }

    /// Ends it, with blocks of `block_tokens` tokens, 0 if that is not known.
    fn finish(&self, block_tokens: u32) -> PyResult<PySimTrace> {
        self.end(match block_tokens {
            0 => BlockTokens::Even,
            tokens => BlockTokens::Fixed(tokens),
        })
    }

    /// Ends it, with a length for each block id; blocks that are not named have none.
    fn finish_with_lengths(&self, ids: Column<u64>, lengths: Column<u32>) -> PyResult<PySimTrace> {
        let each = self.with(|builder| {
            if ids.0.len() != lengths.0.len() {
                return Err(Error::invalid(format!(
                    "{} lengths are given for {} ids",
                    lengths.0.len(),
                    ids.0.len()
                )));
            }
            let mut each = vec![0; builder.unique_blocks()];
            for (&id, &length) in ids.0.iter().zip(&lengths.0) {
                if let Some(dense) = builder.dense(id) {
                    each[dense as usize] = length;
                }
            }
            Ok(each)
        })?;
        self.end(BlockTokens::Each(each))
    }
}

impl PySimTraceBuilder {
    fn end(&self, block_tokens: BlockTokens) -> PyResult<PySimTrace> {
        let builder = self.inner.lock().take().ok_or_else(finished)?;
        let trace = builder.finish(block_tokens).or_raise()?;
        Ok(PySimTrace {
            trace: Arc::new(trace),
        })
    }
}

#[pymethods]
impl PySimTrace {
    #[getter]
    fn requests(&self) -> usize {
        self.trace.len()
    }

    #[getter]
    fn block_refs(&self) -> u64 {
        self.trace.block_refs()
    }

    #[getter]
    fn unique_blocks(&self) -> usize {
        self.trace.unique_blocks()
    }

    #[getter]
    fn tokens(&self) -> u64 {
        self.trace.total_tokens()
    }

    /// Dense ids of a request.
    fn blocks(&self, request: usize) -> PyResult<Vec<u32>> {
        Ok(self.request(request)?.blocks.to_vec())
    }

    /// Prompt tokens of a request.
    fn tokens_of(&self, request: usize) -> PyResult<u32> {
        Ok(self.request(request)?.tokens)
    }

    /// The same trace with an id for each node of its prefix tree.
    fn prefix_ids(&self, py: Python<'_>) -> Self {
        let trace = py.detach(|| self.trace.prefix_ids().into_owned());
        Self {
            trace: Arc::new(trace),
        }
    }

    /// A part of its blocks.
    #[pyo3(signature = (rate, *, seed=0))]
    fn sampled(&self, py: Python<'_>, rate: f64, seed: u64) -> PyResult<Self> {
        let trace = py.detach(|| self.trace.sampled(rate, seed)).or_raise()?;
        Ok(Self {
            trace: Arc::new(trace),
        })
    }
}

impl PySimTrace {
    fn request(&self, index: usize) -> PyResult<Request<'_>> {
        if index >= self.trace.len() {
            return Err(to_py(&Error::invalid(format!(
                "request {index} of {}: they are numbered from 0",
                self.trace.len()
            ))));
        }
        Ok(self.trace.request(index))
    }
}

/// The names of the policies of a mode.
#[pyfunction]
#[pyo3(signature = (mode))]
pub(crate) fn sim_policies(mode: &str) -> PyResult<Vec<&'static str>> {
    Ok(prefix::policies(Mode::by_name(mode).or_raise()?))
}

/// Runs a replay without the GIL, which tells `progress` how far it is; what that raises ends it.
fn told<T: Send>(
    py: Python<'_>,
    trace: &PySimTrace,
    progress: Option<Py<PyAny>>,
    replay: impl FnOnce(
        &Trace,
        &mut (dyn FnMut(usize) -> ControlFlow<()> + Send),
    ) -> kvlab_core::Result<T>
    + Send,
) -> PyResult<T> {
    let total = trace.trace.len();
    let mut raised = None;
    let outcome = py.detach(|| {
        replay(&trace.trace, &mut |done| {
            let Some(function) = &progress else {
                return ControlFlow::Continue(());
            };
            match Python::attach(|py| function.call1(py, (done, total))) {
                Ok(_) => ControlFlow::Continue(()),
                Err(error) => {
                    raised = Some(error);
                    ControlFlow::Break(())
                }
            }
        })
    });
    raised.map_or_else(|| outcome.or_raise(), Err)
}

/// Replays a trace.
#[pyfunction]
#[pyo3(signature = (trace, *, mode, policy, capacity_blocks, progress=None))]
pub(crate) fn sim_replay<'py>(
    py: Python<'py>,
    trace: &PySimTrace,
    mode: &str,
    policy: &str,
    capacity_blocks: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let config = Config {
        mode: Mode::by_name(mode).or_raise()?,
        policy: policy.to_owned(),
        capacity: capacity_blocks,
    };
    let outcome = told(py, trace, progress, |trace, report| {
        prefix::replay(trace, &config, report)
    })?;
    let counts = PyDict::new(py);
    counts.set_item("requests", outcome.requests)?;
    counts.set_item("block_refs", outcome.block_refs)?;
    counts.set_item("unique_blocks", outcome.unique_blocks)?;
    counts.set_item("hits", outcome.hits)?;
    counts.set_item("tokens", outcome.tokens)?;
    counts.set_item("hit_tokens", outcome.hit_tokens)?;
    counts.set_item("recomputed_cost", outcome.recomputed_cost)?;
    counts.set_item("evictions", outcome.evictions)?;
    counts.set_item("refused", outcome.refused)?;
    counts.set_item("peak_blocks", outcome.peak_blocks)?;
    counts.set_item("nanoseconds", outcome.nanoseconds)?;
    let hits = outcome.hits_by_request.iter();
    let hits: Vec<u8> = hits.flat_map(|hits| hits.to_ne_bytes()).collect();
    counts.set_item("hits_by_request", PyBytes::new(py, &hits))?;
    Ok(counts)
}

/// What a simulated server's work costs, as Python has it.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Costs {
    prefill: [f64; 3],
    decode: f64,
    token_bytes: u64,
    read: [(f64, f64, usize); 3],
    overlap: f64,
    concurrency: usize,
}

impl From<Costs> for CostModel {
    fn from(costs: Costs) -> Self {
        Self {
            prefill: costs.prefill,
            decode: costs.decode,
            token_bytes: costs.token_bytes,
            read: costs.read.map(|(latency, bandwidth, transfers)| ReadCost {
                latency,
                bandwidth,
                transfers,
            }),
            overlap: costs.overlap,
            concurrency: costs.concurrency,
        }
    }
}

/// Replays a trace over three tiers.
#[pyfunction]
#[pyo3(signature = (trace, *, capacities, policies, write_policy, restore, costs, progress=None))]
#[expect(clippy::too_many_arguments, reason = "they have names")]
pub(crate) fn sim_replay_tiers<'py>(
    py: Python<'py>,
    trace: &PySimTrace,
    capacities: [Option<usize>; 3],
    policies: [String; 3],
    write_policy: &str,
    restore: &str,
    costs: Costs,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let config = TiersConfig {
        capacities,
        policies,
        write: WritePolicy::by_name(write_policy).or_raise()?,
        restore: RestoreMode::by_name(restore).or_raise()?,
        costs: costs.into(),
    };
    let outcome = told(py, trace, progress, |trace, report| {
        replay_tiers(trace, &config, report)
    })?;
    let counts = PyDict::new(py);
    counts.set_item("requests", outcome.requests)?;
    counts.set_item("block_refs", outcome.block_refs)?;
    counts.set_item("tokens", outcome.tokens)?;
    counts.set_item("hits", outcome.hits)?;
    counts.set_item("recomputed_tokens", outcome.recomputed_tokens)?;
    counts.set_item("left_alone", outcome.left_alone)?;
    counts.set_item("evictions", outcome.evictions)?;
    counts.set_item("stored", outcome.stored)?;
    counts.set_item("refused", outcome.refused)?;
    counts.set_item("lost", outcome.lost)?;
    counts.set_item("peak_blocks", outcome.peak_blocks)?;
    counts.set_item("bytes_read", outcome.bytes_read)?;
    counts.set_item("bytes_written", outcome.bytes_written)?;
    counts.set_item("queued", outcome.queued)?;
    counts.set_item("first_token", outcome.first_token)?;
    counts.set_item("makespan", outcome.makespan)?;
    Ok(counts)
}

/// Hits of LRU at each of these capacities.
#[pyfunction]
#[pyo3(signature = (trace, *, mode, capacities))]
pub(crate) fn sim_lru_curve(
    py: Python<'_>,
    trace: &PySimTrace,
    mode: &str,
    capacities: Vec<usize>,
) -> PyResult<Vec<u64>> {
    let mode = Mode::by_name(mode).or_raise()?;
    Ok(py.detach(|| prefix::stack_curve(&trace.trace, mode).hits_at(&capacities)))
}
