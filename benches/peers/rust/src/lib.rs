//! Embedded stores written in Rust, behind a few C functions, so that the bench drives them from the same process and in the
//! same way as everything else. A value goes in from the caller's memory and comes out into the caller's memory.
//!
//! All functions: 0 or a pointer for success; otherwise `peers_error` has the reason, on the same thread.

mod peers;

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int};
use std::path::Path;
use std::slice;

use peers::{Peer, Result};

/// The key was not found, or what was found is not as long as what was asked for.
const MISS: c_int = 1;
const FAILED: c_int = -1;

thread_local! {
    static ERROR: RefCell<CString> = RefCell::default();
}

/// A store, as the caller holds it.
pub struct Handle(Box<dyn Peer>);

fn remember(error: &dyn std::fmt::Display) {
    let text = error.to_string().replace('\0', " ");
    ERROR.with(|slot| *slot.borrow_mut() = CString::new(text).unwrap_or_default());
}

/// Runs `work`; an error or a panic of the peer is remembered.
fn guarded<T>(failed: T, work: impl FnOnce() -> Result<T>) -> T {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(Ok(value)) => value,
        Ok(Err(error)) => {
            remember(&error);
            failed
        }
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            remember(&format!("panic: {}", text.unwrap_or("of another type")));
            failed
        }
    }
}

/// The reason of this thread's last failure; valid until its next.
#[unsafe(no_mangle)]
pub extern "C" fn peers_error() -> *const c_char {
    ERROR.with(|slot| slot.borrow().as_ptr())
}

/// Opens or makes the store `name` in `directory`; null if it fails.
///
/// # Safety
/// Both are strings that end in a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peers_open(name: *const c_char, directory: *const c_char) -> *mut Handle {
    // SAFETY: the caller's promise.
    let (name, directory) = unsafe { (CStr::from_ptr(name), CStr::from_ptr(directory)) };
    guarded(std::ptr::null_mut(), || {
        let peer = peers::open(name.to_str()?, Path::new(directory.to_str()?))?;
        Ok(Box::into_raw(Box::new(Handle(peer))))
    })
}

/// Puts `length` bytes under `key`. They are acknowledged by `peers_commit`.
///
/// # Safety
/// `handle` is open, and `data` has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peers_put(
    handle: *mut Handle,
    key: u64,
    data: *const u8,
    length: usize,
) -> c_int {
    // SAFETY: the caller's promise.
    let (peer, data) = unsafe { (&(*handle).0, slice::from_raw_parts(data, length)) };
    guarded(FAILED, || peer.put(key, data).map(|()| 0))
}

/// Acknowledges what was put since the last time; `durable` waits for stable storage as far as the store can.
///
/// # Safety
/// `handle` is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peers_commit(handle: *mut Handle, durable: c_int) -> c_int {
    // SAFETY: the caller's promise.
    let peer = unsafe { &(*handle).0 };
    guarded(FAILED, || peer.commit(durable != 0).map(|()| 0))
}

/// Where a value goes.
#[repr(C)]
pub struct Target {
    key: u64,
    data: *mut u8,
    length: usize,
}

/// Reads the values of `count` keys, four at a time; `MISS` if one of them is not there in that length.
///
/// # Safety
/// `handle` is open; `targets` has `count` entries, each with room for its length, that nobody else uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peers_get(
    handle: *mut Handle,
    targets: *const Target,
    count: usize,
) -> c_int {
    // SAFETY: the caller's promise.
    let (peer, targets) = unsafe { (&(*handle).0, slice::from_raw_parts(targets, count)) };
    let into = targets.iter().map(|each| {
        // SAFETY: the caller's promise.
        let target = unsafe { slice::from_raw_parts_mut(each.data, each.length) };
        (each.key, target)
    });
    let work = into.collect::<Vec<_>>();
    guarded(FAILED, || {
        let found = peers::get_all(peer.as_ref(), work)?;
        Ok(if found { 0 } else { MISS })
    })
}

/// Closes a store.
///
/// # Safety
/// `handle` came from `peers_open` and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peers_close(handle: *mut Handle) -> c_int {
    // SAFETY: the caller's promise.
    let handle = unsafe { Box::from_raw(handle) };
    guarded(FAILED, || handle.0.close().map(|()| 0))
}
