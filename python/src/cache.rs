//! `PrefixCache`, its requests and prefetch tickets.

use std::sync::Arc;
use std::time::Duration;

use kvlab_core::Error;
use kvlab_core::cache::{Begin, HitTokens, PrefixCache, Request, Restore};
use kvlab_core::codec::Codec;
use kvlab_core::config::StopPolicy;
use kvlab_core::cost::RestoreMode;
use kvlab_core::key::{BlockKey, tenant_of};
use kvlab_core::layout::{LayerLayout, Layout};
use kvlab_core::run::Terms;
use kvlab_core::stack::Store;
use kvlab_core::store::{Inquiry, PrefetchTicket, ReadFailed};
use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::argument::{ByteSize, Int, Ttl, seconds};
use crate::buffer::PyCacheBuffer;
use crate::codec::PyKvCodec;
use crate::error::OrRaise;
use crate::exit::Unlocked;
use crate::stats;
use crate::tokens::{Tokens, read_into};

/// What a model's KV cache looks like: per layer `(k_heads, k_dim, v_heads, v_dim)`, bytes of an element, tokens of a block.
#[pyclass(name = "KvLayout", module = "kvlab._core", frozen, eq)]
#[derive(Clone, PartialEq)]
pub(crate) struct PyKvLayout {
    pub(crate) inner: Layout,
}

#[pymethods]
impl PyKvLayout {
    #[new]
    #[pyo3(
        signature = (layers, *, element_bytes, block_tokens=Int::from(16)),
        text_signature = "(layers, *, element_bytes, block_tokens=16)"
    )]
    fn new(
        layers: Vec<(Int, Int, Int, Int)>,
        element_bytes: Int,
        block_tokens: Int,
    ) -> PyResult<Self> {
        let layers = layers
            .into_iter()
            .enumerate()
            .map(|(index, (k_heads, k_dim, v_heads, v_dim))| {
                Ok(LayerLayout {
                    k_heads: k_heads.get(&format!("k_heads of layer {index}"))?,
                    k_dim: k_dim.get(&format!("k_dim of layer {index}"))?,
                    v_heads: v_heads.get(&format!("v_heads of layer {index}"))?,
                    v_dim: v_dim.get(&format!("v_dim of layer {index}"))?,
                })
            })
            .collect::<PyResult<Vec<_>>>()?;
        let (element_bytes, block_tokens) = (
            element_bytes.get("element_bytes")?,
            block_tokens.get("block_tokens")?,
        );
        let inner = Layout::new(&layers, element_bytes, block_tokens).or_raise()?;
        Ok(Self { inner })
    }

    /// KV bytes of one token over all layers.
    #[getter]
    fn token_bytes(&self) -> usize {
        self.inner.token_bytes()
    }

    /// Tokens in a block.
    #[getter]
    fn block_tokens(&self) -> usize {
        self.inner.block_tokens()
    }

    /// KV bytes of one block.
    #[getter]
    fn block_bytes(&self) -> usize {
        self.inner.block_bytes()
    }

    /// The bytes that tell this layout from any other: a field of the namespace.
    fn describe(&self) -> Vec<u8> {
        self.inner.describe()
    }
}

/// The prefix cache of one KV layout; namespaces are separate roots in it.
#[pyclass(name = "PrefixCache", module = "kvlab._core", frozen)]
pub(crate) struct PyPrefixCache {
    pub(crate) inner: Unlocked<PrefixCache>,
    /// Open as long as one of its caches is in use.
    pub(crate) store: Unlocked<Arc<Store>>,
}

#[pymethods]
impl PyPrefixCache {
    /// The layout of its blocks and buffers.
    #[getter]
    fn layout(&self) -> PyKvLayout {
        PyKvLayout {
            inner: self.inner.layout().clone(),
        }
    }

    /// Says what is asked of the tiers for a namespace, from now on: how long its blocks live, whether they may be on disk,
    /// how L3 stores them, and how many bytes of L3 all namespaces of a salt may take.
    #[pyo3(signature = (namespace, *, salt="", ttl=None, quota=None, persist=true, codec=None))]
    #[expect(clippy::too_many_arguments, reason = "keyword-only settings")]
    fn set_terms(
        &self,
        py: Python<'_>,
        namespace: &[u8],
        salt: &str,
        ttl: Option<Ttl>,
        quota: Option<ByteSize>,
        persist: bool,
        codec: Option<&PyKvCodec>,
    ) -> PyResult<()> {
        let namespace = BlockKey::from_slice(namespace).or_raise()?;
        let tenant = tenant_of(salt);
        let terms = Terms {
            tenant,
            ttl_seconds: ttl.map_or(0, |ttl| ttl.0),
            persist,
            codec: codec.map_or(Codec::Raw, |codec| codec.inner),
            ..Terms::default()
        };
        if let Some(quota) = quota {
            let blocks = self.store.blocks();
            py.detach(|| blocks.set_quota(tenant, Some(quota.0)))
                .or_raise()?;
        }
        self.inner.set_terms(namespace, terms);
        Ok(())
    }

    /// Starts a request: the longest cached prefix of whole blocks, at most all but the last token, rounded down to `grid` tokens.
    #[pyo3(
        signature = (tokens, namespace, *, grid=Int::from(0), category=Int::from(0), inquiry=None),
        text_signature = "($self, tokens, namespace, *, grid=0, category=0, inquiry=None)"
    )]
    fn begin(
        &self,
        py: Python<'_>,
        tokens: Tokens,
        namespace: &[u8],
        grid: Int,
        category: Int,
        inquiry: Option<&PyInquiry>,
    ) -> PyResult<PyRequest> {
        let options = Begin {
            grid: grid.get("grid")?,
            category: category.get("category")?,
            inquiry: inquiry.map(|inquiry| &*inquiry.inner),
        };
        let namespace = BlockKey::from_slice(namespace).or_raise()?;
        let begin = || self.inner.begin_with(namespace, tokens.0, options);
        // It takes microseconds, unless L4 is asked or a prefetch is waited for.
        let request = if self.inner.store().plan_may_wait() {
            py.detach(begin)
        } else {
            begin()
        };
        let request = request.or_raise()?;
        let prompt_tokens = request.prompt_tokens();
        let found = request.found();
        Ok(PyRequest {
            prompt_tokens,
            found,
            inner: Unlocked::new(Mutex::new(Some(request))),
        })
    }

    /// Asks L4 for what of a prompt is not on this machine, ahead of its request.
    #[pyo3(
        signature = (tokens, namespace, *, grid=Int::from(0)),
        text_signature = "($self, tokens, namespace, *, grid=0)"
    )]
    fn inquire(
        &self,
        py: Python<'_>,
        tokens: Tokens,
        namespace: &[u8],
        grid: Int,
    ) -> PyResult<PyInquiry> {
        let grid = grid.get("grid")?;
        let namespace = BlockKey::from_slice(namespace).or_raise()?;
        let inner = py
            .detach(|| self.inner.inquire(namespace, &tokens.0, grid))
            .or_raise()?;
        Ok(PyInquiry {
            inner: Unlocked::new(inner),
        })
    }

    /// A cache buffer for so many tokens, and for `spare` more where that costs nothing.
    #[pyo3(
        signature = (tokens, *, spare=Int::from(0)),
        text_signature = "($self, tokens, *, spare=0)"
    )]
    fn lease(&self, py: Python<'_>, tokens: Int, spare: Int) -> PyResult<PyCacheBuffer> {
        let (tokens, spare) = (tokens.get("tokens")?, spare.get("spare")?);
        let lease = py
            .detach(|| self.inner.lease_with_spare(tokens, spare))
            .or_raise()?;
        Ok(PyCacheBuffer { lease })
    }

    /// Starts to pull what L3 has of the prompt into L2; `stop` says what a request does that meets it before it is done.
    #[pyo3(signature = (tokens, namespace, *, stop=None))]
    fn prefetch(
        &self,
        tokens: &Bound<'_, PyAny>,
        namespace: &[u8],
        stop: Option<&str>,
    ) -> PyResult<PyPrefetchTicket> {
        let mut ids = Vec::new();
        read_into(tokens, &mut ids)?;
        let namespace = BlockKey::from_slice(namespace).or_raise()?;
        let inner = match stop {
            None => self.inner.prefetch(namespace, &ids),
            Some(stop) => {
                let stop = StopPolicy::by_name(stop).or_raise()?;
                self.inner.prefetch_with(namespace, &ids, stop)
            }
        };
        let inner = inner.or_raise()?;
        Ok(PyPrefetchTicket { inner })
    }

    /// What the tiers know of a prompt, under this namespace and others, and what a request would restore of it; counts as
    /// no use.
    #[pyo3(
        signature = (tokens, namespace, model, *, grid=Int::from(0)),
        text_signature = "($self, tokens, namespace, model, *, grid=0)"
    )]
    fn explain<'py>(
        &self,
        py: Python<'py>,
        tokens: Tokens,
        namespace: &[u8],
        model: &[u8],
        grid: Int,
    ) -> PyResult<Bound<'py, PyDict>> {
        let namespace = BlockKey::from_slice(namespace).or_raise()?;
        let model = BlockKey::from_slice(model).or_raise()?;
        let grid = grid.get("grid")?;
        let found = py.detach(|| {
            let found = self.inner.explain(namespace, &tokens.0)?;
            let choice = self.inner.foresee(&found, tokens.0.len(), &model, grid);
            Ok((found, choice))
        });
        let (found, choice) = found.or_raise()?;
        let dict = stats::explanation(py, &found)?;
        dict.set_item("choice", stats::choice(py, &choice)?)?;
        Ok(dict)
    }

    /// Gives up L1 blocks to the tiers below (all that may go, by default); gives back how many went.
    #[pyo3(signature = (blocks=None))]
    fn evict(&self, py: Python<'_>, blocks: Option<Int>) -> PyResult<usize> {
        let blocks = blocks.map_or(Ok(usize::MAX), |blocks| blocks.get("blocks"))?;
        py.detach(|| self.inner.evict(blocks)).or_raise()
    }

    /// Waits until every commit is in L1 and every accepted write in L3.
    #[pyo3(signature = (timeout=60.0))]
    fn flush(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let timeout = seconds(timeout)?;
        py.detach(|| self.inner.flush(timeout)).or_raise()
    }

    /// What L1 and the cache buffers hold.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        stats::cache(py, &self.inner.stats())
    }

    /// Checks pool, sequences, tree and counters against each other; raises `AssertionError` with what is wrong.
    fn validate(&self) -> PyResult<()> {
        self.inner
            .validate()
            .map_err(pyo3::exceptions::PyAssertionError::new_err)
    }
}

/// What L4 has of a prompt that is not on this machine.
#[pyclass(name = "Inquiry", module = "kvlab._core", frozen)]
pub(crate) struct PyInquiry {
    inner: Unlocked<Inquiry>,
}

#[pymethods]
impl PyInquiry {
    /// How many blocks.
    #[getter]
    fn blocks(&self) -> usize {
        self.inner.blocks()
    }
}

/// A request: its path in L1 is locked until it is closed.
#[pyclass(name = "Request", module = "kvlab._core", frozen)]
pub(crate) struct PyRequest {
    prompt_tokens: usize,
    found: HitTokens,
    inner: Unlocked<Mutex<Option<Request>>>,
}

impl PyRequest {
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&mut Request) -> kvlab_core::Result<T> + Send,
    ) -> PyResult<T> {
        py.detach(|| match self.inner.lock().as_mut() {
            Some(request) => call(request),
            None => Err(Error::Closed),
        })
        .or_raise()
    }
}

#[pymethods]
impl PyRequest {
    /// The prompt's length in tokens.
    #[getter]
    fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// Tokens found: (l1, l2, l3, l4).
    #[getter]
    fn found(&self) -> (usize, usize, usize, usize) {
        stats::hits(self.found)
    }

    /// Decides how much of what was found is restored; `model` is 32 bytes that stand for what a forward's time depends on.
    fn choose<'py>(
        &self,
        py: Python<'py>,
        restore: &str,
        model: &[u8],
    ) -> PyResult<Bound<'py, PyDict>> {
        let mode = RestoreMode::by_name(restore).or_raise()?;
        let model = BlockKey::from_slice(model).or_raise()?;
        let choice = self.with(py, |request| Ok(request.choose(mode, &model)))?;
        stats::choice(py, &choice)
    }

    /// Notes how long a forward of this request took.
    fn computed(
        &self,
        py: Python<'_>,
        model: &[u8],
        tokens: Int,
        context: Int,
        seconds: f64,
    ) -> PyResult<()> {
        let model = BlockKey::from_slice(model).or_raise()?;
        let (tokens, context) = (tokens.get("tokens")?, context.get("context")?);
        let time = crate::argument::seconds(seconds)?;
        self.with(py, |request| {
            request.computed(&model, tokens, context, time);
            Ok(())
        })
    }

    /// Notes how a restore went on beside a forward.
    fn overlapped(&self, py: Python<'_>, read: f64, computed: f64, waited: f64) -> PyResult<()> {
        let (read, computed, waited) = (seconds(read)?, seconds(computed)?, seconds(waited)?);
        self.with(py, |request| {
            request.overlapped(read, computed, waited);
            Ok(())
        })
    }

    /// Begins to bring what was found into the buffer, first layers first.
    fn start_restore(&self, py: Python<'_>, buffer: &PyCacheBuffer) -> PyResult<PyRestore> {
        let restore = self.with(py, |request| request.start_restore(&buffer.lease))?;
        Ok(PyRestore {
            tokens: restore.tokens(),
            inner: Unlocked::new(Mutex::new(Some(restore))),
        })
    }

    /// Brings what was found into the buffer; waits until it is there and verified.
    fn restore<'py>(
        &self,
        py: Python<'py>,
        buffer: &PyCacheBuffer,
    ) -> PyResult<Bound<'py, PyDict>> {
        let restored = self.with(py, |request| request.restore(&buffer.lease))?;
        stats::restored(py, &restored)
    }

    /// Takes over the buffer of a resident sequence that has what was found, or more of it: (buffer, tokens).
    #[pyo3(signature = (capacity, *, cut=true))]
    fn take_resident(
        &self,
        py: Python<'_>,
        capacity: Int,
        cut: bool,
    ) -> PyResult<Option<(PyCacheBuffer, usize)>> {
        let capacity = capacity.get("capacity")?;
        let taken = self.with(py, |request| request.take_resident(capacity, cut))?;
        Ok(taken.map(|(lease, tokens)| (PyCacheBuffer { lease }, tokens)))
    }

    /// Hands over tokens whose KV stands in the buffer, to be kept in L1 and below.
    #[pyo3(signature = (tokens, buffer, *, resident=false))]
    fn commit(
        &self,
        py: Python<'_>,
        tokens: Tokens,
        buffer: &PyCacheBuffer,
        resident: bool,
    ) -> PyResult<()> {
        self.with(py, |request| {
            if resident {
                request.commit_resident(tokens.0, &buffer.lease)
            } else {
                request.commit(tokens.0, &buffer.lease)
            }
        })
    }

    /// Waits until the last commit is in L1; False if the time ran out.
    #[pyo3(signature = (timeout=60.0))]
    fn wait_committed(&self, py: Python<'_>, timeout: f64) -> PyResult<bool> {
        let timeout = seconds(timeout)?;
        self.with(py, |request| Ok(request.wait_committed(timeout)))
    }

    /// A second request on the same blocks; None if they were given up under memory pressure.
    #[pyo3(signature = (timeout=60.0))]
    fn fork(&self, py: Python<'_>, timeout: f64) -> PyResult<Option<Self>> {
        let timeout = seconds(timeout)?;
        let forked = self.with(py, |request| request.fork(timeout))?;
        Ok(forked.map(|request| Self {
            prompt_tokens: request.prompt_tokens(),
            found: request.found(),
            inner: Unlocked::new(Mutex::new(Some(request))),
        }))
    }

    /// The block ids of this request's sequence now, and its tokens.
    fn sequence(&self, py: Python<'_>) -> PyResult<(Vec<u32>, usize)> {
        self.with(py, |request| {
            let (blocks, tokens) = request.sequence();
            Ok((blocks.into_iter().map(|block| block.0).collect(), tokens))
        })
    }

    /// Gives up the lock and the sequence; a second call does nothing.
    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.inner.lock().take()));
    }
}

/// A restore under way; what has not begun is given up when it is dropped.
#[pyclass(name = "Restore", module = "kvlab._core", frozen)]
pub(crate) struct PyRestore {
    tokens: HitTokens,
    inner: Unlocked<Mutex<Option<Restore>>>,
}

#[pymethods]
impl PyRestore {
    /// Tokens that will stand in the buffer if nothing fails: (l1, l2, l3, l4).
    #[getter]
    fn tokens(&self) -> (usize, usize, usize, usize) {
        stats::hits(self.tokens)
    }

    /// Whether any of it is still on its way from the tiers below.
    #[getter]
    fn under_way(&self, py: Python<'_>) -> bool {
        py.detach(|| {
            let restore = self.inner.lock();
            restore.as_ref().is_some_and(Restore::is_under_way)
        })
    }

    /// Waits until a layer of all tokens is there; False if it will not come.
    #[pyo3(
        signature = (layer, timeout=60.0),
        text_signature = "($self, layer, timeout=60.0)"
    )]
    fn wait_layer(&self, py: Python<'_>, layer: Int, timeout: f64) -> PyResult<bool> {
        let (layer, limit) = (layer.get("layer")?, seconds(timeout)?);
        py.detach(|| match self.inner.lock().as_mut() {
            None => Err(Error::Closed),
            Some(restore) => match restore.wait_layer(layer, limit) {
                Ok(()) => Ok(true),
                Err(ReadFailed::Timeout) => Err(Error::Timeout {
                    what: "a layer to be restored",
                    seconds: timeout,
                }),
                Err(_) => Ok(false),
            },
        })
        .or_raise()
    }

    /// Waits until nothing is under way any more; says what stands in the buffer.
    fn finish<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let restored = py
            .detach(|| self.inner.lock().take().map(Restore::finish))
            .ok_or(Error::Closed)
            .or_raise()?;
        stats::restored(py, &restored)
    }
}

/// What a prefetch has done so far.
#[pyclass(name = "PrefetchTicket", module = "kvlab._core", frozen)]
pub(crate) struct PyPrefetchTicket {
    pub(crate) inner: PrefetchTicket,
}

#[pymethods]
impl PyPrefetchTicket {
    /// Blocks and bytes wanted and loaded so far.
    fn progress<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        stats::prefetch(py, &self.inner.progress())
    }

    /// Waits until all is loaded or given up; False if the time ran out.
    #[pyo3(signature = (timeout=60.0))]
    fn wait(&self, py: Python<'_>, timeout: f64) -> PyResult<bool> {
        let timeout: Duration = seconds(timeout)?;
        Ok(py.detach(|| self.inner.wait(timeout)))
    }

    /// Stops it; what was loaded loses its pin.
    fn cancel(&self, py: Python<'_>) {
        py.detach(|| self.inner.cancel());
    }
}
