//! What can be named.

use pyo3::prelude::*;

/// The policies that the tiers can use.
#[pyfunction]
pub(crate) fn sim_live_policies() -> Vec<&'static str> {
    kvlab_core::policy::live_names().collect()
}
