//! `RadixCache`: the radix tree over a `PagedAllocator`'s blocks.

use std::cell::RefCell;
use std::sync::Arc;

use kvlab_core::Error;
use kvlab_core::block::{BlockId, PagedAllocator};
use kvlab_core::key::BlockKey;
use kvlab_core::policy;
use kvlab_core::radix::{LockId, Match, RadixTree};
use parking_lot::{Mutex, MutexGuard};
use pyo3::exceptions::PyAssertionError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::allocator::PyPagedAllocator;
use crate::argument::Int;
use crate::buffer::cells;
use crate::error::{OrRaise, to_py};
use crate::tokens::{Tokens, read_into, wide};

thread_local! {
    /// Token ids of the call under way: a match allocates nothing.
    static SCRATCH: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

fn with_tokens<T>(
    tokens: &Bound<'_, PyAny>,
    call: impl FnOnce(&[u32]) -> PyResult<T>,
) -> PyResult<T> {
    // Taken out while in use: reading a Python object may call back into here.
    let mut ids = SCRATCH.take();
    let result = read_into(tokens, &mut ids).and_then(|()| call(&ids));
    SCRATCH.set(ids);
    result
}

/// The longest cached prefix of token sequences, over the blocks of one allocator.
#[pyclass(name = "RadixCache", module = "kvlab._core", frozen)]
pub(crate) struct PyRadixCache {
    shared: Arc<Shared>,
}

struct Shared {
    tree: Mutex<RadixTree>,
    // Locked after the tree, never before it.
    allocator: Arc<Mutex<PagedAllocator>>,
}

/// A matched prefix: a place in the tree.
#[pyclass(name = "PrefixMatch", module = "kvlab._core", frozen)]
pub(crate) struct PyPrefixMatch {
    shared: Arc<Shared>,
    tokens: usize,
    // Locked after the tree, never before it.
    place: Mutex<Place>,
}

struct Place {
    found: Match,
    lock: Option<LockId>,
}

impl PyPrefixMatch {
    fn new(shared: &Arc<Shared>, found: Match) -> Self {
        Self {
            shared: Arc::clone(shared),
            tokens: found.tokens(),
            place: Mutex::new(Place { found, lock: None }),
        }
    }

    /// Locks the path in the tree, unless it is locked already.
    fn lock_in(&self, tree: &mut RadixTree) -> PyResult<()> {
        let mut place = self.place.lock();
        if place.lock.is_none() {
            let lock = tree.lock(&place.found).or_raise()?;
            place.lock = Some(lock);
            if self.tokens > 0 {
                place.found = tree.locked(lock).or_raise()?;
            }
        }
        Ok(())
    }
}

fn namespace(bytes: Option<&[u8]>) -> PyResult<BlockKey> {
    bytes.map_or(Ok(BlockKey::default()), |bytes| {
        BlockKey::from_slice(bytes).or_raise()
    })
}

#[pymethods]
impl PyRadixCache {
    #[new]
    #[pyo3(signature = (allocator, *, policy="lru"))]
    fn new(allocator: &PyPagedAllocator, policy: &str) -> PyResult<Self> {
        let stats = allocator.inner.lock().stats();
        let policy = policy::by_name(policy, stats.blocks as u64).or_raise()?;
        let tree = Mutex::new(RadixTree::new(stats.block_tokens, policy).or_raise()?);
        let allocator = Arc::clone(&allocator.inner);
        Ok(Self {
            shared: Arc::new(Shared { tree, allocator }),
        })
    }

    /// The longest prefix in whole blocks; counts as a use. With `lock` it is locked before any other thread can evict it.
    #[pyo3(signature = (tokens, namespace=None, *, lock=false))]
    fn match_prefix(
        &self,
        tokens: &Bound<'_, PyAny>,
        namespace: Option<&[u8]>,
        lock: bool,
    ) -> PyResult<PyPrefixMatch> {
        let namespace = self::namespace(namespace)?;
        let tree = &self.shared.tree;
        let keep = |mut tree: MutexGuard<'_, RadixTree>, found: Match| {
            let found = PyPrefixMatch::new(&self.shared, found);
            if lock {
                found.lock_in(&mut tree)?;
            }
            Ok(found)
        };
        if let Some(buffer) = wide(tokens)? {
            let ids = cells(tokens.py(), &buffer).unwrap_or_default();
            let mut tree = tree.lock();
            let found = tree.match_wide(&namespace, ids).or_raise()?;
            keep(tree, found)
        } else {
            with_tokens(tokens, |ids| {
                let mut tree = tree.lock();
                let found = tree.match_prefix(&namespace, ids);
                keep(tree, found)
            })
        }
    }

    /// As `match_prefix`, and the block that shares the most tokens beyond: (match, block or None, tokens to copy).
    #[pyo3(signature = (tokens, namespace=None))]
    fn match_partial(
        &self,
        tokens: &Bound<'_, PyAny>,
        namespace: Option<&[u8]>,
    ) -> PyResult<(PyPrefixMatch, Option<u32>, usize)> {
        let namespace = self::namespace(namespace)?;
        with_tokens(tokens, |ids| {
            let found = self.shared.tree.lock().match_partial(&namespace, ids);
            let whole = PyPrefixMatch::new(&self.shared, found.whole);
            let (block, tokens) = found
                .partial
                .map_or((None, 0), |part| (Some(part.block), part.tokens));
            Ok((whole, block, tokens))
        })
    }

    /// What a request reuses and what it still has to compute: (blocks to share, tokens of the suffix).
    #[pyo3(signature = (tokens, namespace=None))]
    fn request(
        &self,
        tokens: &Bound<'_, PyAny>,
        namespace: Option<&[u8]>,
    ) -> PyResult<(Vec<u32>, usize)> {
        let namespace = self::namespace(namespace)?;
        with_tokens(tokens, |ids| {
            let mut tree = self.shared.tree.lock();
            // The last token is always computed: its logits are what the caller is after.
            let found = tree.match_prefix(&namespace, &ids[..ids.len().saturating_sub(1)]);
            let mut blocks = Vec::new();
            tree.blocks_of(&found, &mut blocks).or_raise()?;
            Ok((blocks, ids.len() - found.tokens()))
        })
    }

    /// Keeps a prompt whose KV stands in `blocks`; gives back how many of its tokens were there already. The cache takes a
    /// reference to each block that it did not have.
    #[pyo3(signature = (tokens, blocks, namespace=None))]
    fn insert(
        &self,
        tokens: &Bound<'_, PyAny>,
        blocks: Tokens,
        namespace: Option<&[u8]>,
    ) -> PyResult<usize> {
        let namespace = self::namespace(namespace)?;
        let blocks = blocks.0;
        with_tokens(tokens, |ids| {
            let mut tree = self.shared.tree.lock();
            let mut allocator = self.shared.allocator.lock();
            let held = blocks.iter().copied().map(BlockId).collect::<Vec<_>>();
            // Held before the tree sees them: a freed block among them must leave everything as it was.
            allocator.hold(&held).or_raise()?;
            let inserted = tree.insert(&namespace, ids, &blocks);
            let surplus = match &inserted {
                Ok(inserted) => &held[..inserted.duplicates],
                Err(_) => &held[..],
            };
            for block in surplus {
                allocator.let_go(*block).or_raise()?;
            }
            let inserted = inserted.or_raise()?;
            if let Some(displaced) = inserted.displaced {
                allocator.let_go(BlockId(displaced)).or_raise()?;
            }
            Ok(inserted.present)
        })
    }

    /// Gives up so many blocks, least recently used leaves first, or all that may go; gives back how many went.
    fn evict(&self, blocks: Int) -> PyResult<usize> {
        let blocks = blocks.get("blocks")?;
        let mut tree = self.shared.tree.lock();
        let mut evicted = Vec::new();
        let gone = tree.evict(blocks, &mut evicted);
        let mut allocator = self.shared.allocator.lock();
        for block in evicted.iter().flat_map(kvlab_core::radix::Evicted::blocks) {
            allocator.let_go(BlockId(*block)).or_raise()?;
        }
        Ok(gone)
    }

    /// Drops what a namespace holds; locked prefixes stay. Gives back how many blocks went.
    #[pyo3(signature = (namespace=None))]
    fn clear(&self, namespace: Option<&[u8]>) -> PyResult<usize> {
        let namespace = self::namespace(namespace)?;
        let mut tree = self.shared.tree.lock();
        let gone = tree.remove_namespace(&namespace).blocks;
        let mut allocator = self.shared.allocator.lock();
        for block in &gone {
            allocator.let_go(BlockId(*block)).or_raise()?;
        }
        Ok(gone.len())
    }

    /// Nodes, leaves, and blocks: total, evictable, protected.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.shared.tree.lock().stats();
        let dict = PyDict::new(py);
        dict.set_item("nodes", stats.nodes)?;
        dict.set_item("leaves", stats.leaves)?;
        dict.set_item("total_blocks", stats.total_blocks)?;
        dict.set_item("evictable_blocks", stats.evictable_blocks())?;
        dict.set_item("protected_blocks", stats.protected_blocks)?;
        Ok(dict)
    }

    /// Checks the tree and the allocator; raises `AssertionError` with what is wrong.
    fn validate(&self) -> PyResult<()> {
        let tree = self.shared.tree.lock();
        let allocator = self.shared.allocator.lock();
        tree.validate()
            .and_then(|()| allocator.validate())
            .map_err(PyAssertionError::new_err)
    }
}

#[pymethods]
impl PyPrefixMatch {
    /// Tokens that matched, in whole blocks.
    #[getter]
    fn tokens(&self) -> usize {
        self.tokens
    }

    fn __len__(&self) -> usize {
        self.tokens
    }

    /// The matched blocks' ids, in order.
    fn blocks(&self) -> PyResult<Vec<u32>> {
        let mut blocks = Vec::new();
        let tree = self.shared.tree.lock();
        let place = self.place.lock();
        tree.blocks_of(&place.found, &mut blocks).or_raise()?;
        Ok(blocks)
    }

    /// Protects the matched path from eviction until `unlock`.
    fn lock(&self) -> PyResult<()> {
        if self.place.lock().lock.is_some() {
            return Err(to_py(&Error::invalid(
                "the match is locked already; match again for a second lock",
            )));
        }
        self.lock_in(&mut self.shared.tree.lock())
    }

    /// Gives the lock back.
    fn unlock(&self) -> PyResult<()> {
        let lock = self.place.lock().lock.take();
        let lock = lock.ok_or_else(|| to_py(&Error::NotLocked))?;
        self.shared.tree.lock().unlock(lock).or_raise()
    }

    fn __enter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        let shared = &slf.get().shared;
        slf.get().lock_in(&mut shared.tree.lock())?;
        Ok(slf)
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, _error: &Bound<'_, PyAny>) -> PyResult<()> {
        self.unlock()
    }
}

impl Drop for PyPrefixMatch {
    fn drop(&mut self) {
        // A match that is thrown away must not keep its path locked for ever.
        let Some(lock) = self.place.lock().lock.take() else {
            return;
        };
        let unlocked = self.shared.tree.lock().unlock(lock);
        if let Err(error) = unlocked {
            log::error!("a match could not be unlocked: {error}");
        }
    }
}
