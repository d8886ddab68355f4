//! Opening a store on a cache directory: where the disk tier becomes its L3.

use std::sync::Arc;

use super::{BlockStore, Tiers, WRITERS};
use crate::clock::Clock;
use crate::config::{DiskConfig, StoreConfig};
use crate::cost::CostBook;
use crate::error::Result;
use crate::key::BlockKey;
use crate::run::{RunHeader, RunSource};
use crate::tier::disk::{DiskTier, RecoveryReport};
use crate::tier::remote::RemoteTier;
use crate::tier::{DurableTier, NamespaceUsage, Put, ServerHealth, SharedTier, TierUsage};

/// Beside the disk tier's own files, and under the same lock.
const COSTS_FILE: &str = "COSTS";

impl BlockStore {
    /// Opens a store: L2 unless `config.l2_bytes` is 0, L3 if `config.disk` is given, repaired if it was not closed cleanly, L4 if
    /// `config.remote` is given, whether its servers answer or not.
    ///
    /// # Errors
    /// [`crate::Error::Config`] for settings that cannot be used; what [`DiskTier::open`] gives for a directory that cannot
    /// be; [`crate::Error::Io`] if memory or threads cannot be had.
    pub fn open(config: &StoreConfig) -> Result<Self> {
        Self::open_with(config, WRITERS)
    }

    /// A store that has no threads to write: who queues a run writes it, too.
    ///
    /// # Errors
    /// As [`Self::open`].
    #[cfg(test)]
    pub(crate) fn open_at_once(config: &StoreConfig) -> Result<Self> {
        Self::open_with(config, 0)
    }

    fn open_with(config: &StoreConfig, writers: usize) -> Result<Self> {
        let Some(disk) = &config.disk else {
            let tiers = Tiers {
                l4: open_remote(config, Clock::default())?,
                ..Tiers::default()
            };
            return Self::build(config, tiers, CostBook::in_memory(), writers);
        };
        let costs = disk.path.join(COSTS_FILE);
        let how = format!(
            "{} workers, direct {}, limit {:?}",
            config.io_workers, disk.direct, disk.read_limit
        );
        let read_only = disk.read_only;
        let disk = DiskConfig {
            capture: config.capture.clone(),
            ..disk.clone()
        };
        let (disk, report) = DiskTier::open(&disk)?;
        let l4 = open_remote(config, disk.clock().clone())?;
        let servers = l4.as_ref().map_or_else(Vec::new, |l4| l4.stats().servers);
        let servers = servers.into_iter().map(|server| server.address);
        let servers = servers.collect::<Vec<_>>().join(" ");
        let costs = if read_only {
            CostBook::open_read_only(costs, &how, &servers)
        } else {
            CostBook::open(costs, &how, &servers)
        };
        disk.set_readers(config.io_workers);
        let disk = Arc::new(disk);
        let l3 = Arc::clone(&disk) as Arc<dyn DurableTier>;
        let tiers = Tiers {
            l3: Some(l3),
            disk: Some((disk, report)),
            l4,
        };
        Self::build(config, tiers, costs, writers)
    }

    /// Asks the servers of L4 how they are, for at most their time-out; none without L4.
    ///
    /// # Errors
    /// [`Error::Closed`](crate::Error::Closed), [`Error::Forked`](crate::Error::Forked).
    pub fn remote_health(&self) -> Result<Option<Vec<ServerHealth>>> {
        Ok(self.core()?.l4.as_ref().map(|l4| l4.health()))
    }

    /// What opening found and repaired on disk; none without a disk.
    pub fn recovery(&self) -> Option<&RecoveryReport> {
        self.handle.disk.as_ref().map(|(_, report)| report)
    }

    /// Drops what the operating system caches of L3's files; gives back the bytes that stayed all the same.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), [`Error::Closed`](crate::Error::Closed), [`Error::Forked`](crate::Error::Forked).
    pub fn drop_page_cache(&self) -> Result<u64> {
        self.core()?;
        let disk = self.handle.disk.as_ref();
        disk.map_or(Ok(0), |(tier, _)| tier.drop_page_cache())
    }

    /// The disk tier, for inspection (its files, its page cache, its own statistics); none without a disk.
    pub fn disk(&self) -> Option<&DiskTier> {
        self.handle.disk.as_ref().map(|(disk, _)| disk.as_ref())
    }
}

/// L4, if there is to be one. It expires by the same clock as the tiers here.
fn open_remote(config: &StoreConfig, clock: Clock) -> Result<Option<Arc<dyn SharedTier>>> {
    let Some(remote) = &config.remote else {
        return Ok(None);
    };
    let tier = RemoteTier::open(remote, clock)?;
    Ok(Some(Arc::new(tier)))
}

impl DurableTier for DiskTier {
    fn put_ahead(
        &self,
        header: &RunHeader,
        source: &RunSource,
        admitted: &dyn Fn(),
    ) -> Result<Put> {
        Self::put_ahead(self, header, source, admitted)
    }

    fn clear(&self, namespace: Option<&BlockKey>) -> Result<usize> {
        Self::clear(self, namespace)
    }

    fn flush(&self) -> Result<()> {
        Self::flush(self)
    }

    fn close(&self) -> Result<()> {
        Self::close(self)
    }

    fn clock(&self) -> Clock {
        Self::clock(self).clone()
    }

    fn usage(&self) -> TierUsage {
        let stats = self.stats();
        TierUsage {
            capacity: stats.capacity,
            used: stats.used_bytes,
            runs: stats.runs,
            blocks: stats.blocks,
            evictions: stats.evictions,
            joined_reads: stats.joined_reads,
            memory_waits: stats.memory_waits,
        }
    }

    fn namespaces(&self) -> Vec<NamespaceUsage> {
        Self::namespaces(self)
    }
}
