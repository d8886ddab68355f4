//! Looking at a store's directory without opening it.

use std::path::PathBuf;

use kvlab_core::codec::Codec;
use kvlab_core::key::BlockKey;
use kvlab_core::tier::disk::inspect::{self, IndexReport, Inspection, UnreadableSegment};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::error::OrRaise;
use crate::progress::Report;
use crate::stats::fields;

/// What is in the store of a directory; headers only.
#[pyfunction]
pub(crate) fn inspect_store(py: Python<'_>, path: PathBuf) -> PyResult<Bound<'_, PyDict>> {
    let found = py.detach(|| inspect::inspect(&path)).or_raise()?;
    inspection(py, &found)
}

/// Reads and checks everything; `progress(done, total)` hears of it, in bytes.
#[pyfunction]
#[pyo3(signature = (path, progress=None))]
pub(crate) fn verify_store(
    py: Python<'_>,
    path: PathBuf,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'_, PyDict>> {
    let mut report = Report::new(progress);
    let found = py.detach(|| inspect::verify(&path, |done, total| report.say(done, total)));
    report.end()?;
    let found = found.or_raise()?;
    let dict = fields!(py, found, [records, blocks, bytes]);
    dict.set_item("sound", found.is_sound())?;
    let damaged = found.damaged.iter().map(|damage| {
        let entry = fields!(py, damage, [offset, slice, blocks]);
        entry.set_item("file", &damage.path)?;
        entry.set_item("namespace", PyBytes::new(py, &damage.namespace.0))?;
        entry.set_item("reason", &damage.reason)?;
        Ok(entry)
    });
    dict.set_item("damaged", damaged.collect::<PyResult<Vec<_>>>()?)?;
    dict.set_item("unreadable", unreadable(py, &found.unreadable)?)?;
    set_index(py, &dict, &found.index)?;
    Ok(dict)
}

/// Writes a namespace of a directory's store to a file.
#[pyfunction]
#[pyo3(signature = (path, namespace, file, progress=None))]
pub(crate) fn export_namespace<'py>(
    py: Python<'py>,
    path: PathBuf,
    namespace: &[u8],
    file: PathBuf,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let namespace = BlockKey::from_slice(namespace).or_raise()?;
    let mut report = Report::new(progress);
    let found = py.detach(|| {
        inspect::export(&path, &namespace, &file, |done, total| {
            report.say(done, total);
        })
    });
    report.end()?;
    let found = found.or_raise()?;
    Ok(fields!(
        py,
        found,
        [runs, blocks, bytes, damaged, unreachable]
    ))
}

fn unreadable<'py>(
    py: Python<'py>,
    files: &[UnreadableSegment],
) -> PyResult<Vec<Bound<'py, PyDict>>> {
    let each = files.iter().map(|file| {
        let entry = PyDict::new(py);
        entry.set_item("file", &file.path)?;
        entry.set_item("reason", &file.reason)?;
        Ok(entry)
    });
    each.collect()
}

/// `index`: what it says, or None; `index_error`: why it cannot be read, or None.
fn set_index(
    py: Python<'_>,
    dict: &Bound<'_, PyDict>,
    index: &Result<IndexReport, String>,
) -> PyResult<()> {
    let said = index.as_ref().ok();
    let said = said.map(|index| {
        Ok::<_, PyErr>(fields!(
            py,
            index,
            [
                rows,
                damaged_rows,
                rows_without_record,
                records_without_row,
                clean
            ]
        ))
    });
    dict.set_item("index", said.transpose()?)?;
    dict.set_item("index_error", index.as_ref().err())
}

fn codec_name(codec: Codec) -> &'static str {
    match codec {
        Codec::Raw => "exact",
        Codec::Int8 { .. } => "int8",
        _ => "unknown",
    }
}

fn inspection<'py>(py: Python<'py>, found: &Inspection) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("format", found.format)?;
    dict.set_item("store", format!("{:016x}", found.store))?;
    dict.set_item("holder", &found.holder)?;
    set_index(py, &dict, &found.index)?;
    dict.set_item("index_bytes", found.index_bytes)?;
    let namespaces = found.namespaces.iter().map(|namespace| {
        let entry = fields!(
            py,
            namespace,
            [
                ttl_seconds,
                block_tokens,
                runs,
                blocks,
                payload_bytes,
                stored_bytes,
                oldest,
                newest,
                expired_runs,
                hits
            ]
        );
        entry.set_item("namespace", PyBytes::new(py, &namespace.namespace.0))?;
        entry.set_item("tenant", format!("{:016x}", namespace.tenant))?;
        entry.set_item("codec", codec_name(namespace.codec))?;
        entry.set_item("layers", namespace.slices)?;
        Ok(entry)
    });
    dict.set_item("namespaces", namespaces.collect::<PyResult<Vec<_>>>()?)?;
    let segments = found.segments.iter().map(|segment| {
        let entry = fields!(
            py,
            segment,
            [id, sealed, bytes, disk_bytes, records, record_bytes]
        );
        entry.set_item("file", &segment.path)?;
        Ok(entry)
    });
    dict.set_item("segments", segments.collect::<PyResult<Vec<_>>>()?)?;
    dict.set_item("unreadable", unreadable(py, &found.unreadable)?)?;
    dict.set_item("moved_indexes", &found.moved_indexes)?;
    Ok(dict)
}
