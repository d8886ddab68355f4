//! L4: blocks on Redis or Valkey servers that several machines share.
//!
//! What lies there: a value for each run, the record of L3, and an entry for each block that leads to its run. A lookup asks for the
//! entries of all blocks, then for the headers of the runs: two round trips. Runs may be cut differently by different machines.
//!
//! **Nothing that is read is believed.** A header has to be whole, of this format and key, and to hold the block; each slice has its
//! checksum. Anything else is a miss, and is counted.
//!
//! **Nobody waits for a server that is not well.** A lookup and its reads have one time-out together; after one that did not come in it, or a few connections that
//! were refused, the server is left alone, and a thread looks whether it is well again. Of several servers the others stand in.

mod breaker;
mod cipher;
mod config;
mod known;
mod names;
mod patience;
mod read;
mod read_together;
mod redis;
mod shards;
mod stats;
mod value;
mod values;
mod write;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::{PinnedRun, Put, SharedTier};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::key::BlockKey;
use crate::run::{RunHeader, RunSource};
use cipher::Cipher;
use shards::Shards;
use write::Queue;

pub use self::redis::RedisValues;
pub use breaker::BreakerState;
pub use cipher::EncryptionKey;
pub use config::RemoteConfig;
pub use stats::{RemoteErrors, RemoteRefusals, RemoteStats, ServerHealth, ServerStats};
pub use values::{Answer, Asked, Failure, Got, ServerMemory, Values, ValuesError};

#[derive(Debug)]
struct Inner {
    shards: Shards,
    queue: Arc<Queue>,
    prefix: String,
    /// How long values live whose namespace does not say.
    ttl: Duration,
    key: Option<EncryptionKey>,
    clock: Clock,
}

/// Runs on servers that several machines share.
#[derive(Debug)]
pub struct RemoteTier {
    inner: Arc<Inner>,
}

impl RemoteTier {
    /// Opens the tier on the servers of a configuration. That none of them answers is no error: they are used once they do.
    ///
    /// # Errors
    /// [`Error::Config`] for a setting or URL that cannot be used, [`Error::Io`] if there can be no thread.
    pub fn open(config: &RemoteConfig, clock: Clock) -> Result<Self> {
        config.validate()?;
        if let Some(own) = &config.own {
            return Self::over(vec![Box::new(Arc::clone(own))], config, clock);
        }
        let servers = RedisValues::all(config)?.into_iter();
        let servers = servers.map(|values| Box::new(values) as Box<dyn Values>);
        Self::over(servers.collect(), config, clock)
    }

    /// Opens the tier over other servers of values; the URLs of the configuration are left alone.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn over(
        servers: Vec<Box<dyn Values>>,
        config: &RemoteConfig,
        clock: Clock,
    ) -> Result<Self> {
        config.validate()?;
        let ttl = Duration::from_secs(config.ttl_seconds);
        let queue = Arc::new(Queue::new(config.write_queue_bytes));
        let inner = Arc::new(Inner {
            shards: Shards::new(servers, config.timeout, ttl, Arc::clone(&queue)),
            queue,
            prefix: config.prefix.clone(),
            ttl,
            key: config.encryption_key.clone(),
            clock,
        });
        let tier = Self { inner };
        // Who does not answer is left alone from the start.
        tier.health();
        let inner = Arc::clone(&tier.inner);
        thread::Builder::new()
            .name("kvlab-remote".to_owned())
            .spawn(move || inner.work())
            .map_err(|error| Error::io("starting the thread of the remote tier", error))?;
        Ok(tier)
    }
}

impl Inner {
    /// What encrypts the payload of a namespace, if there is a key.
    fn cipher(&self, namespace: &BlockKey) -> Option<Cipher> {
        let cipher = Cipher::new(self.key.as_ref()?, namespace);
        cipher.inspect_err(|error| log::error!("{error}")).ok()
    }
}

impl SharedTier for RemoteTier {
    fn find(&self, keys: &[BlockKey]) -> Vec<Option<(Arc<dyn PinnedRun>, usize)>> {
        self.inner.find(keys)
    }

    fn knows(&self, key: &BlockKey) -> bool {
        self.inner.queue.has(key) || self.inner.shards.known.has(key)
    }

    fn admits(&self, header: &RunHeader) -> Put {
        self.inner.admits(header)
    }

    fn share(&self, header: RunHeader, source: RunSource) -> Result<Put> {
        self.inner.share(header, source)
    }

    fn remove(&self, keys: &[BlockKey]) -> Result<usize> {
        self.inner.remove(keys)
    }

    fn forget(&self, namespace: Option<&BlockKey>) {
        self.inner.forget(namespace);
    }

    fn flush(&self, timeout: Duration) -> bool {
        self.inner.queue.drain(Instant::now() + timeout)
    }

    fn close(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let drained = self.inner.queue.drain(deadline);
        self.inner.stop(deadline) && drained
    }

    /// Whether or not a server is left alone now.
    fn health(&self) -> Vec<ServerHealth> {
        self.inner.shards.health()
    }

    fn stats(&self) -> RemoteStats {
        let (queue_bytes, queue_runs) = self.inner.queue.backlog();
        RemoteStats {
            queue_bytes,
            queue_runs,
            servers: self.inner.shards.stats(),
            ..self.inner.shards.counters.picture()
        }
    }
}

impl Drop for RemoteTier {
    /// What still waits is dropped; the thread ends after the run that it is at.
    fn drop(&mut self) {
        self.inner.stop(Instant::now());
    }
}
