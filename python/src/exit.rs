//! What happens to open stores when they are dropped, and when the interpreter ends.

use std::ops::Deref;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use kvlab_core::stack::Store;
use kvlab_core::store::BlockStore;
use parking_lot::Mutex;
use pyo3::prelude::*;

/// How long the end of the interpreter waits for writes, all stores together.
const EXIT_LIMIT: Duration = Duration::from_secs(10);

/// Something whose drop may wait for other threads. They may want to log, which takes the GIL: it is released meanwhile.
#[derive(Debug)]
pub(crate) struct Unlocked<T: Send>(Option<T>);

impl<T: Send> Unlocked<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Some(value))
    }
}

impl<T: Send> Deref for Unlocked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.0 {
            Some(value) => value,
            None => unreachable!("it is emptied by its drop only"),
        }
    }
}

impl<T: Send> Drop for Unlocked<T> {
    fn drop(&mut self) {
        let value = self.0.take();
        // Without an interpreter, the value is dropped with the closure.
        let _ = Python::try_attach(|py| py.detach(|| drop(value)));
    }
}

/// Stores that the end of the interpreter closes if nobody else did.
static STORES: Mutex<Vec<Weak<Store>>> = Mutex::new(Vec::new());
static BLOCK_STORES: Mutex<Vec<Weak<BlockStore>>> = Mutex::new(Vec::new());

/// Has a store closed at the end of the interpreter.
pub(crate) fn close_store(store: &Arc<Store>) {
    remember(&STORES, store);
}

/// Has a block store closed at the end of the interpreter.
pub(crate) fn close_block_store(store: &Arc<BlockStore>) {
    remember(&BLOCK_STORES, store);
}

fn remember<T>(open: &Mutex<Vec<Weak<T>>>, store: &Arc<T>) {
    let mut open = open.lock();
    open.retain(|store| store.strong_count() > 0);
    open.push(Arc::downgrade(store));
}

/// Registers the closing of open stores with `atexit`: threads can still log and end in peace then.
pub(crate) fn register(py: Python<'_>) -> PyResult<()> {
    let close = pyo3::types::PyCFunction::new_closure(py, None, None, |args, _| {
        args.py().detach(close_all);
    })?;
    py.import("atexit")?.call_method1("register", (close,))?;
    Ok(())
}

fn close_all() {
    let stores = std::mem::take(&mut *STORES.lock());
    let block_stores = std::mem::take(&mut *BLOCK_STORES.lock());
    let deadline = Instant::now() + EXIT_LIMIT;
    let left = || deadline.saturating_duration_since(Instant::now());
    let closed = stores
        .iter()
        .filter_map(Weak::upgrade)
        .map(|store| store.close(left()));
    let also = block_stores
        .iter()
        .filter_map(Weak::upgrade)
        .map(|store| store.close(left()));
    for error in closed.chain(also).filter_map(Result::err) {
        // In a forked child the store is its parent's, which is no news.
        if !matches!(error, kvlab_core::Error::Forked { .. }) {
            log::warn!("a store did not close cleanly at the end of the interpreter: {error}");
        }
    }
}
