//! `Store`, what users open, and `BlockStore`, what other engines plug into.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kvlab_core::Error;
use kvlab_core::config::{DiskConfig, StopPolicy, StoreConfig, WritePolicy};
use kvlab_core::key::BlockKey;
use kvlab_core::run::Terms;
use kvlab_core::sim::capture::Capture;
use kvlab_core::stack::Store;
use kvlab_core::store::BlockStore;
use kvlab_core::tier::disk::Scrubbed;
use kvlab_core::tier::{Put, TierId};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyType};

use crate::argument::{ByteSize, Int, Ttl, expand_path, seconds};
use crate::buffer::writable;
use crate::cache::{PyKvLayout, PyPrefetchTicket, PyPrefixCache};
use crate::error::{OrRaise, to_py};
use crate::exit::{Unlocked, close_block_store, close_store};
use crate::progress::Report;
use crate::remote::{self, RemoteSettings};
use crate::stats::{self, fields};

const DRAIN_SECONDS: f64 = 60.0;

/// Settings that `Store` and `BlockStore` share.
#[expect(clippy::struct_excessive_bools, reason = "settings, each by its name")]
struct Settings {
    path: Option<PathBuf>,
    l2: ByteSize,
    l3: ByteSize,
    policy: String,
    write_policy: String,
    durable: bool,
    direct: bool,
    free_reserve: ByteSize,
    read_limit: Option<ByteSize>,
    write_limit: Option<ByteSize>,
    io_workers: Int,
    prefetch_timeout: f64,
    prefetch_policy: String,
    quota: Option<ByteSize>,
    read_only: bool,
    allow_unsafe_directory: bool,
    capture: Option<PathBuf>,
    remote: RemoteSettings,
}

impl Settings {
    fn config(self, py: Python<'_>) -> PyResult<StoreConfig> {
        let io_workers = self.io_workers.get("io_workers")?;
        let disk = self.path.filter(|_| self.l3.0 > 0).map(|path| DiskConfig {
            capacity: self.l3.0,
            free_reserve: self.free_reserve.0,
            direct: self.direct,
            durable: self.durable,
            policy: self.policy.clone(),
            read_limit: self.read_limit.map(|limit| limit.0),
            write_limit: self.write_limit.map(|limit| limit.0),
            quota_per_tenant: self.quota.map(|quota| quota.0),
            read_only: self.read_only,
            allow_unsafe_directory: self.allow_unsafe_directory,
            ..DiskConfig::new(path)
        });
        Ok(StoreConfig {
            l2_bytes: self.l2.0,
            disk,
            write_policy: WritePolicy::by_name(&self.write_policy).or_raise()?,
            policy: self.policy,
            io_workers,
            prefetch_timeout: seconds(self.prefetch_timeout)?,
            prefetch_policy: StopPolicy::by_name(&self.prefetch_policy).or_raise()?,
            remote: self.remote.config(py)?,
            capture: self.capture.map(Capture::start).transpose().or_raise()?,
            ..StoreConfig::default()
        })
    }
}

/// A store: prefix caches that share an L1 budget, over L2 in memory, L3 on disk and L4 on servers that machines share.
#[pyclass(name = "Store", module = "kvlab._core", frozen)]
pub(crate) struct PyStore {
    inner: Unlocked<Arc<Store>>,
}

#[pymethods]
impl PyStore {
    /// Opens a store; without a path it lives in memory only.
    #[classmethod]
    #[pyo3(signature = (
        path=None, *, l1=ByteSize(512 << 20), l2=ByteSize(2 << 30), l3=ByteSize(20 << 30), policy="lru".to_owned(),
        write_policy="write_through".to_owned(), durable=false, direct=true, free_reserve=ByteSize(1 << 30),
        l3_read_limit=None, l3_write_limit=None, io_workers=Int::from(4), prefetch_timeout=30.0, prefetch_policy="best_effort".to_owned(),
        l3_quota_per_salt=None, read_only=false, allow_unsafe_directory=false, capture=None, **remote
    ), text_signature = "(path=None, *, l1=\"512MiB\", l2=\"2GiB\", l3=\"20GiB\", policy=\"lru\", write_policy=\"write_through\", \
        durable=False, direct=True, free_reserve=\"1GiB\", \
        l3_read_limit=None, l3_write_limit=None, io_workers=4, prefetch_timeout=30.0, prefetch_policy=\"best_effort\", \
        l3_quota_per_salt=None, read_only=False, allow_unsafe_directory=False, capture=None, \
        remote=None, remote_ttl=\"1d\", remote_timeout=0.25, remote_prefix=\"kvlab\", remote_cluster=False, \
        remote_ca_file=None, remote_certificate_file=None, remote_private_key_file=None, remote_key_file=None)")]
    #[expect(
        clippy::too_many_arguments,
        clippy::fn_params_excessive_bools,
        reason = "keyword-only settings"
    )]
    fn open(
        cls: &Bound<'_, PyType>,
        path: Option<&Bound<'_, PyAny>>,
        l1: ByteSize,
        l2: ByteSize,
        l3: ByteSize,
        policy: String,
        write_policy: String,
        durable: bool,
        direct: bool,
        free_reserve: ByteSize,
        l3_read_limit: Option<ByteSize>,
        l3_write_limit: Option<ByteSize>,
        io_workers: Int,
        prefetch_timeout: f64,
        prefetch_policy: String,
        l3_quota_per_salt: Option<ByteSize>,
        read_only: bool,
        allow_unsafe_directory: bool,
        capture: Option<&Bound<'_, PyAny>>,
        remote: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let l1_policy = policy.clone();
        let settings = Settings {
            path: expand_path(path)?,
            l2,
            l3,
            policy,
            write_policy,
            durable,
            direct,
            free_reserve,
            read_limit: l3_read_limit,
            write_limit: l3_write_limit,
            io_workers,
            prefetch_timeout,
            prefetch_policy,
            quota: l3_quota_per_salt,
            read_only,
            allow_unsafe_directory,
            capture: expand_path(capture)?,
            remote: RemoteSettings::of(remote)?,
        };
        let config = settings.config(cls.py())?;
        let inner = cls
            .py()
            .detach(|| Store::open(l1.0, &l1_policy, &config))
            .or_raise()?;
        let inner = Arc::new(inner);
        close_store(&inner);
        Ok(Self {
            inner: Unlocked::new(inner),
        })
    }

    /// The prefix cache of a layout; the first call for a layout takes its share of L1.
    #[pyo3(
        signature = (layout, *, l1=None, residents=Int::from(4)),
        text_signature = "($self, layout, *, l1=None, residents=4)"
    )]
    fn prefix_cache(
        &self,
        layout: &PyKvLayout,
        l1: Option<ByteSize>,
        residents: Int,
    ) -> PyResult<PyPrefixCache> {
        let (share, residents) = (l1.map(|size| size.0), residents.get("residents")?);
        let cache = self.inner.prefix_cache(&layout.inner, share, residents);
        Ok(PyPrefixCache {
            inner: Unlocked::new(cache.or_raise()?),
            store: Unlocked::new(Arc::clone(&self.inner)),
        })
    }

    /// The block store below, without L1.
    #[getter]
    fn blocks(&self) -> PyBlockStore {
        PyBlockStore {
            inner: Unlocked::new(Arc::new(self.inner.blocks().clone())),
        }
    }

    /// Pushes what L1 holds ("l1") or L1 and L2 hold ("l2") to the tiers below, and waits until it is there.
    #[pyo3(signature = (tier="l2", *, timeout=60.0))]
    fn evict(&self, py: Python<'_>, tier: &str, timeout: f64) -> PyResult<()> {
        let tier = match tier {
            "l1" => TierId::L1,
            "l2" => TierId::L2,
            _ => {
                return Err(to_py(&Error::invalid(format!(
                    "{tier:?} is no tier to evict from; use \"l1\" or \"l2\""
                ))));
            }
        };
        let timeout = seconds(timeout)?;
        py.detach(|| self.inner.evict(tier, timeout)).or_raise()
    }

    /// Drops the segments' pages from the operating system's cache; gives back the bytes that stayed.
    fn drop_page_cache(&self, py: Python<'_>) -> PyResult<u64> {
        py.detach(|| self.inner.blocks().drop_page_cache())
            .or_raise()
    }

    /// Waits until every commit is in L1, and every accepted write in L3, and in L4 or given up.
    #[pyo3(signature = (timeout=60.0))]
    fn flush(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let timeout = seconds(timeout)?;
        py.detach(|| self.inner.flush(timeout)).or_raise()
    }

    /// Forgets everything in every tier of this machine, for good.
    fn clear(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.clear()).or_raise()
    }

    /// Drains and closes; a second call does nothing.
    #[pyo3(signature = (timeout=60.0))]
    fn close(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let timeout = seconds(timeout)?;
        py.detach(|| self.inner.close(timeout)).or_raise()
    }

    /// What each cache and tier holds and has done.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (caches, below) = self.inner.stats().or_raise()?;
        let dict = stats::store(py, &below)?;
        let caches = caches
            .iter()
            .map(|cache| stats::cache(py, cache))
            .collect::<PyResult<Vec<_>>>()?;
        dict.set_item("caches", caches)?;
        Ok(dict)
    }

    /// How the servers of L4 answer now; None without L4.
    fn remote_health<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        remote_health(py, self.inner.blocks())
    }

    /// What reads and forwards were learnt to cost.
    fn costs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.inner.blocks().check_process().or_raise()?;
        stats::costs(py, &self.inner.blocks().costs().stats())
    }

    /// What opening found on disk; None without L3.
    fn recovery<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        stats::recovery(py, self.inner.blocks().recovery())
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close(py, DRAIN_SECONDS)
    }
}

/// Block key to bytes over L2, L3 and L4, for engines that bring their own keys.
#[pyclass(name = "BlockStore", module = "kvlab._core", frozen)]
pub(crate) struct PyBlockStore {
    inner: Unlocked<Arc<BlockStore>>,
}

#[pymethods]
impl PyBlockStore {
    /// Opens a block store; without a path it lives in memory only.
    #[classmethod]
    #[pyo3(signature = (
        path=None, *, l2=ByteSize(2 << 30), l3=ByteSize(20 << 30), policy="lru".to_owned(),
        write_policy="write_through".to_owned(), durable=false, direct=true, free_reserve=ByteSize(1 << 30),
        l3_read_limit=None, l3_write_limit=None, io_workers=Int::from(4), prefetch_timeout=30.0, prefetch_policy="best_effort".to_owned(),
        l3_quota_per_salt=None, read_only=false, allow_unsafe_directory=false, capture=None, **remote
    ), text_signature = "(path=None, *, l2=\"2GiB\", l3=\"20GiB\", policy=\"lru\", write_policy=\"write_through\", \
        durable=False, direct=True, free_reserve=\"1GiB\", \
        l3_read_limit=None, l3_write_limit=None, io_workers=4, prefetch_timeout=30.0, prefetch_policy=\"best_effort\", \
        l3_quota_per_salt=None, read_only=False, allow_unsafe_directory=False, capture=None, \
        remote=None, remote_ttl=\"1d\", remote_timeout=0.25, remote_prefix=\"kvlab\", remote_cluster=False, \
        remote_ca_file=None, remote_certificate_file=None, remote_private_key_file=None, remote_key_file=None)")]
    #[expect(
        clippy::too_many_arguments,
        clippy::fn_params_excessive_bools,
        reason = "keyword-only settings"
    )]
    fn open(
        cls: &Bound<'_, PyType>,
        path: Option<&Bound<'_, PyAny>>,
        l2: ByteSize,
        l3: ByteSize,
        policy: String,
        write_policy: String,
        durable: bool,
        direct: bool,
        free_reserve: ByteSize,
        l3_read_limit: Option<ByteSize>,
        l3_write_limit: Option<ByteSize>,
        io_workers: Int,
        prefetch_timeout: f64,
        prefetch_policy: String,
        l3_quota_per_salt: Option<ByteSize>,
        read_only: bool,
        allow_unsafe_directory: bool,
        capture: Option<&Bound<'_, PyAny>>,
        remote: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let settings = Settings {
            path: expand_path(path)?,
            l2,
            l3,
            policy,
            write_policy,
            durable,
            direct,
            free_reserve,
            read_limit: l3_read_limit,
            write_limit: l3_write_limit,
            io_workers,
            prefetch_timeout,
            prefetch_policy,
            quota: l3_quota_per_salt,
            read_only,
            allow_unsafe_directory,
            capture: expand_path(capture)?,
            remote: RemoteSettings::of(remote)?,
        };
        let config = settings.config(cls.py())?;
        let inner = cls.py().detach(|| BlockStore::open(&config)).or_raise()?;
        let inner = Arc::new(inner);
        close_block_store(&inner);
        Ok(Self {
            inner: Unlocked::new(inner),
        })
    }

    /// Keeps bytes under a 32-byte key; `parent` is the key of the block before. True if they are kept (or were there).
    /// It is forgotten after `ttl`, and never on disk unless `persist`.
    #[pyo3(signature = (key, data, *, parent=None, ttl=None, persist=true))]
    fn put(
        &self,
        py: Python<'_>,
        key: &[u8],
        data: PyBuffer<u8>,
        parent: Option<&[u8]>,
        ttl: Option<Ttl>,
        persist: bool,
    ) -> PyResult<bool> {
        let terms = Terms {
            ttl_seconds: ttl.map_or(0, |ttl| ttl.0),
            persist,
            ..Terms::default()
        };
        let key = BlockKey::from_slice(key).or_raise()?;
        let parent = parent.map(BlockKey::from_slice).transpose().or_raise()?;
        let bytes = data.to_vec(py)?;
        let put = py
            .detach(|| self.inner.put_bytes_with(key, parent, &bytes, terms))
            .or_raise()?;
        Ok(!matches!(put, Put::Refused(_)))
    }

    /// The bytes of a key; None for a miss or damaged bytes.
    fn get<'py>(&self, py: Python<'py>, key: &[u8]) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let key = BlockKey::from_slice(key).or_raise()?;
        let bytes = py.detach(|| self.inner.get_bytes(&key)).or_raise()?;
        Ok(bytes.map(|bytes| PyBytes::new(py, &bytes)))
    }

    /// The bytes of many keys; None for each miss. Neighbours on disk are read together.
    fn get_many<'py>(
        &self,
        py: Python<'py>,
        keys: Vec<Vec<u8>>,
    ) -> PyResult<Vec<Option<Bound<'py, PyBytes>>>> {
        let keys = block_keys(&keys)?;
        let found = py.detach(|| self.inner.get_many(&keys)).or_raise()?;
        let bytes = |bytes: Option<Vec<u8>>| bytes.map(|bytes| PyBytes::new(py, &bytes));
        Ok(found.into_iter().map(bytes).collect())
    }

    /// Reads many keys into writable buffers; the bytes of each, None for a miss.
    fn get_into(
        &self,
        py: Python<'_>,
        keys: Vec<Vec<u8>>,
        buffers: Vec<PyBuffer<u8>>,
    ) -> PyResult<Vec<Option<usize>>> {
        let keys = block_keys(&keys)?;
        let mut writable = buffers
            .iter()
            .enumerate()
            .map(|(place, buffer)| {
                writable(buffer).ok_or_else(|| {
                    to_py(&Error::invalid(format!(
                        "buffer {place} is read-only or not contiguous; give a bytearray or a writable array of uint8"
                    )))
                })
            })
            .collect::<PyResult<Vec<_>>>()?;
        py.detach(|| self.inner.get_into(&keys, &mut writable))
            .or_raise()
    }

    /// Where each key is: "l2", "l3", "pending" or None. Answered from memory.
    fn lookup(&self, keys: Vec<Vec<u8>>) -> PyResult<Vec<Option<String>>> {
        let keys = block_keys(&keys)?;
        let found = self.inner.lookup(&keys).or_raise()?;
        Ok(found.into_iter().map(stats::lookup).collect())
    }

    /// Whether a key can be read.
    fn __contains__(&self, key: &[u8]) -> PyResult<bool> {
        self.inner
            .contains(&BlockKey::from_slice(key).or_raise()?)
            .or_raise()
    }

    /// Drops blocks for good; gives back how many runs went.
    fn remove(&self, py: Python<'_>, keys: Vec<Vec<u8>>) -> PyResult<usize> {
        let keys = block_keys(&keys)?;
        py.detach(|| self.inner.remove(&keys)).or_raise()
    }

    /// Forgets a namespace, or everything, in every tier; gives back how many runs went.
    #[pyo3(signature = (namespace=None))]
    fn clear(&self, py: Python<'_>, namespace: Option<&[u8]>) -> PyResult<usize> {
        let namespace = namespace.map(BlockKey::from_slice).transpose().or_raise()?;
        py.detach(|| self.inner.clear(namespace.as_ref()))
            .or_raise()
    }

    /// Reads everything in L3 and drops what is damaged; `progress(done, total)` hears of it, in bytes.
    #[pyo3(signature = (progress=None))]
    fn scrub<'py>(
        &self,
        py: Python<'py>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let mut report = Report::new(progress);
        self.inner.check_usable().or_raise()?;
        let found = py.detach(|| match self.inner.disk() {
            Some(disk) => disk.scrub(|done, total| report.say(done, total)),
            None => Ok(Scrubbed::default()),
        });
        report.end()?;
        let found = found.or_raise()?;
        Ok(fields!(py, found, [runs, bytes, dropped]))
    }

    /// Stores what an export holds and L3 does not; `progress(done, total)` hears of it, in bytes.
    #[pyo3(signature = (file, progress=None))]
    fn import_namespace<'py>(
        &self,
        py: Python<'py>,
        file: PathBuf,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let mut report = Report::new(progress);
        self.inner.check_usable().or_raise()?;
        let found = py.detach(|| match self.inner.disk() {
            Some(disk) => disk.import(&file, |done, total| report.say(done, total)),
            None => Err(Error::Config {
                name: "path",
                value: "none".to_owned(),
                remedy: "open the store on a directory to import into it".to_owned(),
            }),
        });
        report.end()?;
        let found = found.or_raise()?;
        let dict = fields!(
            py,
            found,
            [runs, present, expired, refused, damaged, complete]
        );
        dict.set_item("namespace", PyBytes::new(py, &found.namespace.0))?;
        Ok(dict)
    }

    /// Starts to pull blocks from L3 into L2.
    fn prefetch(&self, keys: Vec<Vec<u8>>) -> PyResult<PyPrefetchTicket> {
        let keys = block_keys(&keys)?;
        Ok(PyPrefetchTicket {
            inner: self.inner.prefetch(&keys).or_raise()?,
        })
    }

    /// Waits until every accepted write is in L3, and in L4 or given up.
    #[pyo3(signature = (timeout=60.0))]
    fn flush(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let timeout: Duration = seconds(timeout)?;
        py.detach(|| self.inner.flush(timeout)).or_raise()
    }

    /// Drains and closes; a second call does nothing.
    #[pyo3(signature = (timeout=60.0))]
    fn close(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let timeout: Duration = seconds(timeout)?;
        py.detach(|| self.inner.close(timeout)).or_raise()
    }

    /// What each tier holds and has done.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        stats::store(py, &self.inner.stats().or_raise()?)
    }

    /// How the servers of L4 answer now; None without L4.
    fn remote_health<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        remote_health(py, &self.inner)
    }

    /// What opening found on disk; None without L3.
    fn recovery<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        stats::recovery(py, self.inner.recovery())
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close(py, DRAIN_SECONDS)
    }
}

fn remote_health<'py>(py: Python<'py>, store: &BlockStore) -> PyResult<Option<Bound<'py, PyDict>>> {
    let health = py.detach(|| store.remote_health()).or_raise()?;
    health
        .map(|servers| remote::health(py, &servers))
        .transpose()
}

fn block_keys(keys: &[Vec<u8>]) -> PyResult<Vec<BlockKey>> {
    keys.iter()
        .map(|key| BlockKey::from_slice(key))
        .collect::<kvlab_core::Result<_>>()
        .or_raise()
}
