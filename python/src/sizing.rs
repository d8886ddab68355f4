//! Sizes of KV caches.

use kvlab_core::sizing::{Dtype, Latent, ModelShape, PRESETS};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::OrRaise;

/// KV bytes, weight bytes and where they cross; the fields of `kvlab.sizing.KvSize`.
#[pyfunction]
#[pyo3(signature = (*, layers, kv_heads, head_dim, dtype, batch, seq_len, params, latent=None, memory=None))]
#[expect(
    clippy::too_many_arguments,
    reason = "keyword-only, one for each of the model's numbers"
)]
pub(crate) fn kv_size<'py>(
    py: Python<'py>,
    layers: u32,
    kv_heads: u32,
    head_dim: u32,
    dtype: &str,
    batch: u64,
    seq_len: u64,
    params: Option<u64>,
    latent: Option<(u32, u32)>,
    memory: Option<u64>,
) -> PyResult<Bound<'py, PyDict>> {
    let shape = ModelShape {
        layers,
        kv_heads,
        head_dim,
        latent: latent.map(|(kv_lora_rank, rope_dim)| Latent {
            kv_lora_rank,
            rope_dim,
        }),
        params,
        dtype: Dtype::by_name(dtype).or_raise()?,
    };
    let size = shape.size(batch, seq_len, memory).or_raise()?;
    let dict = PyDict::new(py);
    dict.set_item("kv_bytes_per_token", size.kv_bytes_per_token)?;
    dict.set_item("kv_bytes", size.kv_bytes)?;
    dict.set_item("weight_bytes", size.weight_bytes)?;
    dict.set_item("crossover_tokens", size.crossover_tokens)?;
    dict.set_item("crossover_seq_len", size.crossover_seq_len)?;
    dict.set_item("sequences", size.sequences)?;
    Ok(dict)
}

/// The shapes of published models by name; the fields of `kvlab.sizing.ModelShape`.
#[pyfunction]
pub(crate) fn kv_presets(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let presets = PyDict::new(py);
    for (name, shape) in PRESETS {
        let dict = PyDict::new(py);
        dict.set_item("layers", shape.layers)?;
        dict.set_item("kv_heads", shape.kv_heads)?;
        dict.set_item("head_dim", shape.head_dim)?;
        dict.set_item("dtype", shape.dtype.name())?;
        dict.set_item("params", shape.params)?;
        dict.set_item(
            "latent",
            shape
                .latent
                .map(|latent| (latent.kv_lora_rank, latent.rope_dim)),
        )?;
        presets.set_item(name, dict)?;
    }
    Ok(presets)
}
