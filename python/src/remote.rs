//! The shared tier: its settings, its account, and how its servers are.

use std::path::PathBuf;
use std::sync::Arc;

use kvlab_core::Error;
use kvlab_core::tier::remote::{
    EncryptionKey, RemoteConfig, RemoteStats, ServerHealth, ServerStats, Values,
};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::argument::{Ttl, expand_path, seconds};
use crate::error::{OrRaise, to_py};
use crate::stats::fields;
use crate::tier::PyTier;

/// Where a key is looked for that no file was given for.
const KEY_VARIABLE: &str = "KVLAB_REMOTE_KEY";

/// Settings of the shared tier, as `open` takes them.
pub(crate) struct RemoteSettings {
    remote: Option<Py<PyAny>>,
    ttl: Ttl,
    timeout: f64,
    prefix: String,
    cluster: bool,
    ca_file: Option<PathBuf>,
    certificate_file: Option<PathBuf>,
    private_key_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
}

impl RemoteSettings {
    /// The keyword arguments of `open` that are not the store's own.
    pub(crate) fn of(keywords: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let mut settings = Self {
            remote: None,
            ttl: Ttl(86_400),
            timeout: 0.25,
            prefix: "kvlab".to_owned(),
            cluster: false,
            ca_file: None,
            certificate_file: None,
            private_key_file: None,
            key_file: None,
        };
        for (name, value) in keywords.into_iter().flatten() {
            let name = name.extract::<String>()?;
            settings.set(&name, &value).map_err(|error| {
                let py = value.py();
                if error.is_instance_of::<PyTypeError>(py) {
                    let why = error.value(py);
                    return PyTypeError::new_err(format!("argument '{name}': {why}"));
                }
                error
            })?;
        }
        Ok(settings)
    }

    fn set(&mut self, name: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let given = || (!value.is_none()).then_some(value);
        match name {
            "remote" => self.remote = given().map(|value| value.clone().unbind()),
            "remote_ttl" => self.ttl = value.extract()?,
            "remote_timeout" => self.timeout = value.extract()?,
            "remote_prefix" => self.prefix = value.extract()?,
            "remote_cluster" => self.cluster = value.extract()?,
            "remote_ca_file" => self.ca_file = expand_path(given())?,
            "remote_certificate_file" => self.certificate_file = expand_path(given())?,
            "remote_private_key_file" => self.private_key_file = expand_path(given())?,
            "remote_key_file" => self.key_file = expand_path(given())?,
            _ => return Err(PyTypeError::new_err("open() has no such argument")),
        }
        Ok(())
    }

    /// The configuration; none without servers.
    pub(crate) fn config(self, py: Python<'_>) -> PyResult<Option<RemoteConfig>> {
        let Some(remote) = self.remote else {
            let files = [
                ("remote_ca_file", self.ca_file),
                ("remote_certificate_file", self.certificate_file),
                ("remote_private_key_file", self.private_key_file),
                ("remote_key_file", self.key_file),
            ];
            let unused = files.into_iter().find_map(|(name, path)| {
                Some(Error::Config {
                    name,
                    value: path?.display().to_string(),
                    remedy: "give remote, too, or leave the file out".to_owned(),
                })
            });
            return unused.map_or(Ok(None), |error| Err(to_py(&error)));
        };
        let key = match (&self.key_file, std::env::var(KEY_VARIABLE)) {
            (Some(path), _) => Some(EncryptionKey::from_file(path).or_raise()?),
            (None, Ok(text)) => Some(EncryptionKey::parse(&text).or_raise()?),
            (None, Err(_)) => None,
        };
        let (urls, own) = match PyTier::of(remote.bind(py))? {
            Some(tier) => (Vec::new(), Some(Arc::new(tier) as Arc<dyn Values>)),
            None => (urls(remote.bind(py))?, None),
        };
        Ok(Some(RemoteConfig {
            urls,
            own,
            cluster: self.cluster,
            prefix: self.prefix,
            timeout: seconds(self.timeout)?,
            ttl_seconds: u64::from(self.ttl.0),
            ca_file: self.ca_file,
            certificate_file: self.certificate_file,
            private_key_file: self.private_key_file,
            encryption_key: key,
            ..RemoteConfig::new("")
        }))
    }
}

/// One URL or several.
fn urls(remote: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
    if let Ok(url) = remote.cast::<PyString>() {
        return Ok(vec![url.to_str()?.to_owned()]);
    }
    remote.extract::<Vec<String>>().map_err(|_| {
        let given = remote.get_type().name();
        let given = given.map_or_else(|_| "another object".to_owned(), |name| name.to_string());
        PyTypeError::new_err(format!(
            "remote is the URL of a server, such as \"redis://localhost:6379\", a list of them, or a kvlab.Tier, not {given}"
        ))
    })
}

/// The shared tier's own account.
pub(crate) fn account<'py>(py: Python<'py>, stats: &RemoteStats) -> PyResult<Bound<'py, PyDict>> {
    let dict = fields!(
        py,
        stats,
        [
            found_blocks,
            missed_blocks,
            lookups,
            lookup_micros,
            reads,
            read_bytes,
            read_micros,
            writes,
            write_bytes,
            write_micros,
            present,
            corrupt,
            gone,
            expired,
            queue_bytes,
            queue_runs
        ]
    );
    let errors = fields!(
        py,
        stats.errors,
        [
            timeouts,
            refused,
            auth,
            protocol,
            wrong_type,
            out_of_memory,
            redirects,
            other
        ]
    );
    dict.set_item("errors", errors)?;
    let refusals = fields!(
        py,
        stats.refusals,
        [
            too_large,
            no_space,
            write_failed,
            queue_full,
            decoded,
            unavailable,
            expired,
            not_persisted
        ]
    );
    dict.set_item("refusals", refusals)?;
    let servers = stats.servers.iter().map(|each| server(py, each));
    dict.set_item("servers", servers.collect::<PyResult<Vec<_>>>()?)?;
    Ok(dict)
}

fn server<'py>(py: Python<'py>, stats: &ServerStats) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("address", &stats.address)?;
    dict.set_item("state", stats.state.name())?;
    dict.set_item("writing", stats.writing.name())?;
    dict.set_item("opened", stats.opened)?;
    dict.set_item("trouble", stats.trouble.as_deref())?;
    Ok(dict)
}

/// How the servers answer now.
pub(crate) fn health<'py>(
    py: Python<'py>,
    servers: &[ServerHealth],
) -> PyResult<Bound<'py, PyDict>> {
    let rows = servers.iter().map(|server| {
        let dict = PyDict::new(py);
        dict.set_item("address", &server.address)?;
        dict.set_item("state", server.state.name())?;
        let latency = server.latency.map(|latency| latency.as_secs_f64() * 1e3);
        dict.set_item("latency_ms", latency)?;
        dict.set_item("used_memory", server.memory.map(|memory| memory.used))?;
        dict.set_item("max_memory", server.memory.map(|memory| memory.limit))?;
        dict.set_item("error", server.error.as_deref())?;
        Ok(dict)
    });
    let rows = rows.collect::<PyResult<Vec<_>>>()?;
    let dict = PyDict::new(py);
    let healthy = servers.iter().all(|server| server.error.is_none());
    dict.set_item("healthy", healthy)?;
    dict.set_item("servers", rows)?;
    Ok(dict)
}
