//! Settings of a shared tier, each with its default.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::cipher::EncryptionKey;
use super::values::Values;
use crate::error::{Error, Result};

/// The longest time to live, in seconds: some 136 years.
const LONGEST_TTL: u64 = u32::MAX as u64;
/// The longest prefix of names, in bytes.
const LONGEST_PREFIX: usize = 64;
/// The longest time-out.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Where the servers are, and how they are used.
#[derive(Clone)]
pub struct RemoteConfig {
    /// `redis://[user:password@]host[:port][/database]`, `rediss://` with TLS, `redis+unix:///path`. Several are independent servers
    /// that share the blocks, or, with [`cluster`](Self::cluster), nodes to find one cluster by.
    pub urls: Vec<String>,
    /// The servers are nodes of one Redis cluster. Default: false.
    pub cluster: bool,
    /// What the names of all values begin with. Default: `kvlab`.
    pub prefix: String,
    /// How long an answer may take, connecting included; the bytes of runs have 20 ns each beside it. Default: 0.25 s.
    pub timeout: Duration,
    /// Seconds that values live whose namespace does not say how long. Default: 86,400, a day.
    pub ttl_seconds: u64,
    /// Payload bytes that may wait to be written before further runs are refused. Default: 256 MiB.
    pub write_queue_bytes: u64,
    /// Connections to each server that are kept while nobody uses them. Default: 8.
    pub connections: usize,
    /// PEM file of the authorities that may sign the certificates of servers with TLS. Default: those that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the certificate that is shown to servers with TLS. Default: none.
    pub certificate_file: Option<PathBuf>,
    /// PEM file of its private key.
    pub private_key_file: Option<PathBuf>,
    /// What payload is encrypted with. Default: nothing.
    pub encryption_key: Option<EncryptionKey>,
    /// Something else that keeps values, instead of the servers of [`urls`](Self::urls). Default: none.
    pub own: Option<Arc<dyn Values>>,
}

impl RemoteConfig {
    /// The defaults for one server.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            urls: vec![url.into()],
            cluster: false,
            prefix: "kvlab".to_owned(),
            timeout: Duration::from_millis(250),
            ttl_seconds: 86_400,
            write_queue_bytes: 256 << 20,
            connections: 8,
            ca_file: None,
            certificate_file: None,
            private_key_file: None,
            encryption_key: None,
            own: None,
        }
    }

    /// Checks everything but the URLs.
    pub(super) fn validate(&self) -> Result<()> {
        if self.urls.is_empty() && self.own.is_none() {
            let remedy = "give the URL of a server, such as redis://localhost:6379".to_owned();
            return refuse("remote", "[]".to_owned(), remedy);
        }
        let plain = self.prefix.bytes().all(|byte| byte.is_ascii_graphic());
        if !plain || self.prefix.is_empty() || self.prefix.len() > LONGEST_PREFIX {
            return refuse(
                "remote_prefix",
                format!("{:?}", self.prefix),
                format!("use 1 to {LONGEST_PREFIX} printable ASCII characters without spaces"),
            );
        }
        if self.timeout < Duration::from_millis(1) || self.timeout > LONGEST_TIMEOUT {
            return refuse(
                "remote_timeout",
                format!("{:?}", self.timeout),
                format!("use 1 ms to {} s", LONGEST_TIMEOUT.as_secs()),
            );
        }
        if self.ttl_seconds == 0 || self.ttl_seconds > LONGEST_TTL {
            return refuse(
                "remote_ttl",
                format!("{} s", self.ttl_seconds),
                format!("use 1 to {LONGEST_TTL} seconds"),
            );
        }
        if self.write_queue_bytes == 0 {
            let remedy = "use the bytes of some runs: 16 MiB or more".to_owned();
            return refuse("remote_write_queue_bytes", "0".to_owned(), remedy);
        }
        let halves = [
            ("remote_certificate_file", &self.certificate_file),
            ("remote_private_key_file", &self.private_key_file),
        ];
        if let [(name, Some(path)), (other, None)] | [(other, None), (name, Some(path))] = halves {
            let remedy = format!("give {other}, too, or leave both out");
            return refuse(name, path.display().to_string(), remedy);
        }
        if self.own.is_some() {
            self.refuse_files_for_tls()?;
        }
        Ok(())
    }

    /// For servers without TLS.
    pub(super) fn refuse_files_for_tls(&self) -> Result<()> {
        let files = [
            ("remote_ca_file", &self.ca_file),
            ("remote_certificate_file", &self.certificate_file),
            ("remote_private_key_file", &self.private_key_file),
        ];
        for (name, path) in files {
            if let Some(path) = path {
                let remedy = "write rediss:// in the URL for TLS, or leave it out".to_owned();
                return refuse(name, path.display().to_string(), remedy);
            }
        }
        Ok(())
    }
}

fn refuse<T>(name: &'static str, value: String, remedy: String) -> Result<T> {
    Err(Error::Config {
        name,
        value,
        remedy,
    })
}

/// Without the URLs, which may have passwords in them.
impl fmt::Debug for RemoteConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteConfig")
            .field("servers", &self.urls.len())
            .field("cluster", &self.cluster)
            .field("prefix", &self.prefix)
            .field("timeout", &self.timeout)
            .field("ttl_seconds", &self.ttl_seconds)
            .field("write_queue_bytes", &self.write_queue_bytes)
            .field("connections", &self.connections)
            .field("ca_file", &self.ca_file)
            .field("certificate_file", &self.certificate_file)
            .field("private_key_file", &self.private_key_file)
            .field("encryption_key", &self.encryption_key)
            .field("own", &self.own)
            .finish()
    }
}
