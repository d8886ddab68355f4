//! The stores. Each is set up as its documentation advises for values of megabytes: what it keeps in memory is at most
//! `MEMORY`, and values are not compressed, since these do not compress.

use std::any::Any;
use std::error::Error;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;

use fjall::{KeyspaceCreateOptions, KvSeparationOptions, PersistMode};
use foyer::{
    BlockEngineConfig, DeviceBuilder, FsDeviceBuilder, HybridCache, HybridCacheBuilder,
    HybridCachePolicy,
};
use redb::{ReadableDatabase, TableDefinition};
use tokio::runtime::Runtime;

pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

const MEMORY: usize = 64 << 20;
const THREADS: usize = 4;

/// Key to value.
pub trait Peer: Sync {
    fn put(&self, key: u64, data: &[u8]) -> Result<()>;
    fn commit(&self, durable: bool) -> Result<()>;
    /// Whether `target` now holds the value.
    fn get(&self, key: u64, target: &mut [u8]) -> Result<bool>;
    fn close(self: Box<Self>) -> Result<()>;
}

/// Reads values from `THREADS` threads; whether all were there.
pub fn get_all(peer: &dyn Peer, mut work: Vec<(u64, &mut [u8])>) -> Result<bool> {
    let share = work.len().div_ceil(THREADS).max(1);
    let results = thread::scope(|scope| {
        let parts = work.chunks_mut(share).map(|part| {
            scope.spawn(move || {
                for (key, target) in part {
                    match peer.get(*key, target) {
                        Ok(true) => {}
                        Ok(false) => return Ok(false),
                        Err(error) => return Err(error.to_string()),
                    }
                }
                Ok(true)
            })
        });
        let parts = parts.collect::<Vec<_>>();
        parts
            .into_iter()
            .map(|part| part.join())
            .collect::<Vec<_>>()
    });
    let mut all = true;
    for result in results {
        all &= result.map_err(|panic| resume(panic))??;
    }
    Ok(all)
}

/// Lets a panic of a reader go on in the thread that asked.
fn resume(panic: Box<dyn Any + Send>) -> String {
    std::panic::resume_unwind(panic)
}

pub fn open(name: &str, directory: &Path) -> Result<Box<dyn Peer>> {
    Ok(match name {
        "sled" => Box::new(Sled::open(directory)?),
        "redb" => Box::new(Redb::open(directory)?),
        "fjall" => Box::new(Fjall::open(directory)?),
        "foyer" => Box::new(Foyer::open(directory)?),
        _ => return Err(format!("no peer is called {name:?}").into()),
    })
}

fn copy(found: &[u8], target: &mut [u8]) -> bool {
    let fits = found.len() == target.len();
    if fits {
        target.copy_from_slice(found);
    }
    fits
}

struct Sled {
    db: sled::Db,
}

impl Sled {
    fn open(directory: &Path) -> Result<Self> {
        let db = sled::Config::new()
            .path(directory)
            .cache_capacity(MEMORY as u64)
            .open()?;
        Ok(Self { db })
    }
}

impl Peer for Sled {
    fn put(&self, key: u64, data: &[u8]) -> Result<()> {
        self.db.insert(key.to_be_bytes(), data)?;
        Ok(())
    }

    fn commit(&self, durable: bool) -> Result<()> {
        if durable {
            self.db.flush()?;
        }
        Ok(())
    }

    fn get(&self, key: u64, target: &mut [u8]) -> Result<bool> {
        let found = self.db.get(key.to_be_bytes())?;
        Ok(found.is_some_and(|value| copy(&value, target)))
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.db.flush()?;
        Ok(())
    }
}

const TABLE: TableDefinition<u64, &[u8]> = TableDefinition::new("values");

struct Redb {
    db: redb::Database,
    open: Mutex<Option<redb::WriteTransaction>>,
}

impl Redb {
    fn open(directory: &Path) -> Result<Self> {
        let db = redb::Database::builder()
            .set_cache_size(MEMORY)
            .create(directory.join("values.redb"))?;
        let begun = db.begin_write()?;
        begun.open_table(TABLE)?;
        begun.commit()?;
        Ok(Self {
            db,
            open: Mutex::new(None),
        })
    }
}

impl Peer for Redb {
    fn put(&self, key: u64, data: &[u8]) -> Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = if let Some(transaction) = open.take() {
            transaction
        } else {
            let mut begun = self.db.begin_write()?;
            begun.set_durability(redb::Durability::None)?;
            begun
        };
        let transaction = open.insert(transaction);
        transaction.open_table(TABLE)?.insert(key, data)?;
        Ok(())
    }

    fn commit(&self, durable: bool) -> Result<()> {
        let open = self
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(transaction) = open {
            transaction.commit()?;
        }
        if durable {
            // An empty commit that is durable makes those before it durable.
            self.db.begin_write()?.commit()?;
        }
        Ok(())
    }

    fn get(&self, key: u64, target: &mut [u8]) -> Result<bool> {
        let table = self.db.begin_read()?.open_table(TABLE)?;
        let found = table.get(key)?;
        Ok(found.is_some_and(|value| copy(value.value(), target)))
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.commit(true)
    }
}

struct Fjall {
    db: fjall::Database,
    values: fjall::Keyspace,
}

impl Fjall {
    fn open(directory: &Path) -> Result<Self> {
        let db = fjall::Database::builder(directory)
            .cache_size(MEMORY as u64)
            .journal_compression(fjall::CompressionType::None)
            .open()?;
        let separation = KvSeparationOptions::default().compression(fjall::CompressionType::None);
        let values = db.keyspace("values", || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(MEMORY as u64)
                .with_kv_separation(Some(separation))
        })?;
        Ok(Self { db, values })
    }
}

impl Peer for Fjall {
    fn put(&self, key: u64, data: &[u8]) -> Result<()> {
        self.values.insert(key.to_be_bytes(), data)?;
        Ok(())
    }

    fn commit(&self, durable: bool) -> Result<()> {
        self.db.persist(if durable {
            PersistMode::SyncData
        } else {
            PersistMode::Buffer
        })?;
        Ok(())
    }

    fn get(&self, key: u64, target: &mut [u8]) -> Result<bool> {
        let found = self.values.get(key.to_be_bytes())?;
        Ok(found.is_some_and(|value| copy(&value, target)))
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.values.rotate_memtable_and_wait()?;
        self.db.persist(PersistMode::SyncAll)?;
        Ok(())
    }
}

/// A cache: it may refuse or drop what it is given. Its queues are made long enough to take a prompt.
struct Foyer {
    runtime: Runtime,
    cache: HybridCache<u64, Vec<u8>>,
}

impl Foyer {
    const CAPACITY: usize = 8 << 30;
    const QUEUE: usize = 256 << 20;

    fn open(directory: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .enable_all()
            .build()?;
        let cache = runtime.block_on(async {
            let device = FsDeviceBuilder::new(directory).with_capacity(Self::CAPACITY);
            #[cfg(target_os = "linux")]
            let device = device.with_direct(true);
            HybridCacheBuilder::new()
                .with_policy(HybridCachePolicy::WriteOnInsertion)
                .memory(MEMORY)
                .with_shards(1)
                .with_weighter(|_: &u64, value: &Vec<u8>| value.len())
                .storage()
                .with_engine_config(
                    BlockEngineConfig::new(device.build()?)
                        .with_block_size(64 << 20)
                        .with_flushers(2)
                        .with_buffer_pool_size(Self::QUEUE)
                        .with_submit_queue_size_threshold(Self::QUEUE),
                )
                .build()
                .await
        })?;
        Ok(Self { runtime, cache })
    }
}

impl Peer for Foyer {
    fn put(&self, key: u64, data: &[u8]) -> Result<()> {
        self.cache.insert(key, data.to_vec());
        Ok(())
    }

    /// It has no sync; the nearest is to wait until its queues are written.
    fn commit(&self, durable: bool) -> Result<()> {
        if durable {
            self.runtime.block_on(self.cache.storage().wait());
        }
        Ok(())
    }

    fn get(&self, key: u64, target: &mut [u8]) -> Result<bool> {
        let found = self
            .runtime
            .block_on(async { self.cache.get(&key).await })?;
        Ok(found.is_some_and(|entry| copy(entry.value(), target)))
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.runtime.block_on(self.cache.close())?;
        Ok(())
    }
}
