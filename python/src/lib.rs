//! `kvlab._core`: the Rust core as a Python extension module.
//!
//! Every function here takes buffers and plain values, makes one call into `kvlab_core`, and turns its
//! errors into the exceptions of `kvlab.errors`. Long waits, I/O and large copies release the GIL.

#![expect(
    clippy::needless_pass_by_value,
    reason = "arguments are extracted from Python objects and belong to the call"
)]

mod allocator;
mod argument;
mod buffer;
mod cache;
mod codec;
mod error;
mod exit;
mod inspect;
mod logging;
mod progress;
mod radix;
mod remote;
mod sim;
mod sizing;
mod stats;
mod store;
mod tier;
mod tokens;

use pyo3::prelude::*;

/// The Rust core of kvlab. Private: use the names that `kvlab` exports.
#[pymodule]
mod _core {
    use pyo3::prelude::*;
    use pyo3::types::PyDict;

    #[pymodule_export]
    use crate::allocator::PyPagedAllocator;
    use crate::argument::{ByteSize, Ttl};
    #[pymodule_export]
    use crate::buffer::PyCacheBuffer;
    #[pymodule_export]
    use crate::cache::{
        PyInquiry, PyKvLayout, PyPrefetchTicket, PyPrefixCache, PyRequest, PyRestore,
    };
    #[pymodule_export]
    use crate::codec::PyKvCodec;
    #[pymodule_export]
    use crate::inspect::{export_namespace, inspect_store, verify_store};
    #[pymodule_export]
    use crate::radix::{PyPrefixMatch, PyRadixCache};
    #[pymodule_export]
    use crate::sim::capture::{PyCaptureRequests, capture_replay, capture_requests, capture_rerun};
    #[pymodule_export]
    use crate::sim::catalogue::sim_live_policies;
    #[pymodule_export]
    use crate::sim::columns::sim_columns;
    #[pymodule_export]
    use crate::sim::page::{
        sim_page_policies, sim_schemes, sim_tier_preset, sim_tier_presets, simulate_pages,
    };
    #[pymodule_export]
    use crate::sim::policy::PyPolicyContext;
    #[pymodule_export]
    use crate::sim::prefix::{
        PySimTrace, PySimTraceBuilder, sim_lru_curve, sim_policies, sim_replay, sim_replay_tiers,
    };
    #[pymodule_export]
    use crate::sizing::{kv_presets, kv_size};
    #[pymodule_export]
    use crate::store::{PyBlockStore, PyStore};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::logging::start(module.py())?;
        crate::exit::register(module.py())?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }

    /// What this extension was built as: version, profile, operating system, processor.
    #[pyfunction]
    fn build_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
        let info = PyDict::new(py);
        info.set_item("version", env!("CARGO_PKG_VERSION"))?;
        let profile = if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        };
        info.set_item("profile", profile)?;
        info.set_item("os", std::env::consts::OS)?;
        info.set_item("arch", std::env::consts::ARCH)?;
        Ok(info)
    }

    /// Reads a size in bytes: an int, or a string such as "512MiB" or "1.5GB".
    #[pyfunction]
    #[pyo3(signature = (size, /))]
    fn parse_size(size: ByteSize) -> u64 {
        size.0
    }

    /// Reads a time to live in seconds: an int, or a string such as "15min" or "7d".
    #[pyfunction]
    #[pyo3(signature = (ttl, /))]
    fn parse_ttl(ttl: Ttl) -> u32 {
        ttl.0
    }
}
