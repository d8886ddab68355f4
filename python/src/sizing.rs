//! Sizes of KV caches.

use kvlab_core::sizing::{Dtype, Latent, ModelShape, PRESETS};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::argument::Int;
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
    layers: Int,
    kv_heads: Int,
    head_dim: Int,
    dtype: &str,
    batch: Int,
    seq_len: Int,
    params: Option<Int>,
    latent: Option<(Int, Int)>,
    memory: Option<Int>,
) -> PyResult<Bound<'py, PyDict>> {
    let latent = latent
        .map(|(kv_lora_rank, rope_dim)| {
            PyResult::Ok(Latent {
                kv_lora_rank: kv_lora_rank.get("kv_lora_rank of latent")?,
                rope_dim: rope_dim.get("rope_dim of latent")?,
            })
        })
        .transpose()?;
    let shape = ModelShape {
        layers: layers.get("layers")?,
        kv_heads: kv_heads.get("kv_heads")?,
        head_dim: head_dim.get("head_dim")?,
        latent,
        params: params.map(|params| params.get("params")).transpose()?,
        dtype: Dtype::by_name(dtype).or_raise()?,
    };
    let memory = memory.map(|memory| memory.get("memory")).transpose()?;
    let (batch, seq_len) = (batch.get("batch")?, seq_len.get("seq_len")?);
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
