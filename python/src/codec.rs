//! `KvCodec`: how L3 stores the KV of a layout.

use kvlab_core::Error;
use kvlab_core::codec::{Codec, Element};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::argument::Int;
use crate::cache::PyKvLayout;
use crate::error::OrRaise;

/// How L3 stores the KV of a layout: `exact`, or `int8`.
#[pyclass(name = "KvCodec", module = "kvlab._core", frozen)]
pub(crate) struct PyKvCodec {
    pub(crate) inner: Codec,
}

fn element(dtype: &str) -> kvlab_core::Result<Element> {
    match dtype {
        "float32" => Ok(Element::F32),
        "float16" => Ok(Element::F16),
        "bfloat16" => Ok(Element::Bf16),
        _ => Err(Error::Config {
            name: "codec",
            value: format!("int8 of {dtype}"),
            remedy: "it takes float32, float16 and bfloat16; use exact".to_owned(),
        }),
    }
}

#[pymethods]
impl PyKvCodec {
    #[new]
    #[pyo3(signature = (name, layout, *, dtype), text_signature = "(name, layout, *, dtype)")]
    fn new(name: &str, layout: &PyKvLayout, dtype: &str) -> PyResult<Self> {
        let inner = match name {
            "exact" => Ok(Codec::Raw),
            "int8" => element(dtype).and_then(|element| Codec::int8(element, &layout.inner)),
            _ => Err(Error::Config {
                name: "codec",
                value: name.to_owned(),
                remedy: "use exact or int8".to_owned(),
            }),
        };
        Ok(Self {
            inner: inner.or_raise()?,
        })
    }

    /// Bytes that so many bytes of a layer take on L3.
    fn stored_bytes(&self, raw: Int) -> PyResult<u32> {
        Ok(self.inner.stored_bytes(raw.get("raw")?))
    }

    /// Seconds that encoding and decoding these bytes take, by one thread; the best of `rounds`.
    #[pyo3(
        signature = (payload, rounds=Int::from(5)),
        text_signature = "($self, payload, rounds=5)"
    )]
    fn measure(
        &self,
        py: Python<'_>,
        payload: &Bound<'_, PyBytes>,
        rounds: Int,
    ) -> PyResult<(f64, f64)> {
        let rounds = rounds.get("rounds")?;
        let bytes = payload.as_bytes();
        let (encode, decode) = py.detach(|| self.inner.measure(bytes, rounds)).or_raise()?;
        Ok((encode.as_secs_f64(), decode.as_secs_f64()))
    }
}
