//! Counters of the core as plain dictionaries.

use kvlab_core::block::PoolStats;
use kvlab_core::buffer::BufferStats;
use kvlab_core::cache::{CacheStats, L1Stats, Restored};
use kvlab_core::store::{PrefetchProgress, StoreStats, TierStats};
use kvlab_core::tier::disk::RecoveryReport;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Builds a dictionary from `name: value` pairs of one structure.
macro_rules! fields {
    ($py:expr, $from:expr, [$($name:ident),* $(,)?]) => {{
        let dict = PyDict::new($py);
        $(dict.set_item(stringify!($name), $from.$name)?;)*
        dict
    }};
}

fn milliseconds(time: std::time::Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A pool and its sequences.
pub(crate) fn pool<'py>(py: Python<'py>, stats: &PoolStats) -> PyResult<Bound<'py, PyDict>> {
    Ok(fields!(
        py,
        stats,
        [
            blocks,
            block_tokens,
            block_bytes,
            used,
            free,
            shared,
            saved,
            sequences,
            tokens,
            filled,
            utilisation,
            wasted_bytes,
            copies
        ]
    ))
}

fn l1<'py>(py: Python<'py>, stats: &L1Stats) -> PyResult<Bound<'py, PyDict>> {
    let dict = pool(py, &stats.pool)?;
    let more = fields!(
        py,
        stats,
        [
            evictable,
            protected,
            private,
            in_flight,
            nodes,
            reused_blocks,
            saved_blocks,
            evicted_blocks,
            refused_blocks
        ]
    );
    dict.update(more.as_mapping())?;
    Ok(dict)
}

fn buffers(py: Python<'_>, stats: BufferStats) -> PyResult<Bound<'_, PyDict>> {
    Ok(fields!(py, stats, [budget, mapped, idle]))
}

/// A prefix cache.
pub(crate) fn cache<'py>(py: Python<'py>, stats: &CacheStats) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("l1", l1(py, &stats.l1)?)?;
    dict.set_item("buffers", buffers(py, stats.buffers)?)?;
    let residents = fields!(
        py,
        stats.residents,
        [sequences, bytes, taken, displaced, reclaimed, evicted]
    );
    dict.set_item("residents", residents)?;
    dict.set_item("pending_commits", stats.pending_commits)?;
    Ok(dict)
}

/// What a restore brought; times in milliseconds.
pub(crate) fn restored<'py>(py: Python<'py>, restored: &Restored) -> PyResult<Bound<'py, PyDict>> {
    let dict = fields!(py, restored, [l2_bytes, l3_bytes]);
    let tokens = restored.tokens;
    dict.set_item("tokens", (tokens.l1, tokens.l2, tokens.l3))?;
    dict.set_item("l1_ms", milliseconds(restored.l1_time))?;
    dict.set_item("below_ms", milliseconds(restored.below_time))?;
    dict.set_item("ms", milliseconds(restored.time))?;
    dict.set_item("failure", restored.failure.as_deref())?;
    Ok(dict)
}

/// What a prefetch has done so far.
pub(crate) fn prefetch<'py>(
    py: Python<'py>,
    progress: &PrefetchProgress,
) -> PyResult<Bound<'py, PyDict>> {
    Ok(fields!(py, progress, [wanted, loaded, bytes]))
}

fn tier(py: Python<'_>, stats: TierStats) -> PyResult<Bound<'_, PyDict>> {
    Ok(fields!(
        py,
        stats,
        [
            capacity,
            used,
            runs,
            blocks,
            hit_blocks,
            reads,
            read_bytes,
            read_micros,
            writes,
            write_bytes,
            write_micros,
            evictions,
            corrupt,
            io_errors
        ]
    ))
}

/// The tiers below L1.
pub(crate) fn store<'py>(py: Python<'py>, stats: &StoreStats) -> PyResult<Bound<'py, PyDict>> {
    let dict = fields!(
        py,
        stats,
        [
            demotions,
            dropped_victims,
            write_queue_bytes,
            write_queue_runs
        ]
    );
    dict.set_item("l2", tier(py, stats.l2)?)?;
    dict.set_item("l3", tier(py, stats.l3)?)?;
    let refusals = fields!(
        py,
        stats.refusals,
        [
            too_large,
            nothing_to_evict,
            no_space,
            write_failed,
            queue_full,
            parent_missing,
            unavailable
        ]
    );
    dict.set_item("refusals", refusals)?;
    let prefetch = fields!(
        py,
        stats.prefetch,
        [
            issued, loaded, claimed, stolen, cancelled, timed_out, failed, refused, held_bytes
        ]
    );
    dict.set_item("prefetch", prefetch)?;
    Ok(dict)
}

/// What opening L3 found and repaired.
pub(crate) fn recovery<'py>(
    py: Python<'py>,
    report: Option<&RecoveryReport>,
) -> PyResult<Option<Bound<'py, PyDict>>> {
    let Some(report) = report else {
        return Ok(None);
    };
    let dict = fields!(
        py,
        report,
        [
            clean,
            runs,
            blocks,
            bytes,
            segments,
            segments_scanned,
            foreign_segments,
            rows_rebuilt,
            index_rebuilt
        ]
    );
    let moved = report
        .index_moved
        .as_ref()
        .map(|path| path.display().to_string());
    dict.set_item("index_moved", moved)?;
    let dropped = fields!(
        py,
        report.rows_dropped,
        [damaged, no_segment, no_record, overlapping]
    );
    dict.set_item("rows_dropped", dropped)?;
    Ok(Some(dict))
}
