//! Counters of the core as plain dictionaries.

use kvlab_core::block::PoolStats;
use kvlab_core::buffer::BufferStats;
use kvlab_core::cache::{CacheStats, Explanation, HitTokens, L1Stats, Restored};
use kvlab_core::cost::{Choice, CostStats, Cut, Reason};
use kvlab_core::store::{Lookup, PrefetchProgress, StoreStats, TierStats};
use kvlab_core::tier::disk::RecoveryReport;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::remote;

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

pub(crate) use fields;

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

/// The name of where a block is; none for a miss.
pub(crate) fn lookup(found: Lookup) -> Option<String> {
    match found {
        Lookup::Miss => None,
        Lookup::Hit(tier) => Some(tier.to_string()),
        Lookup::Pending => Some("pending".to_owned()),
    }
}

/// What the tiers know of a prompt.
pub(crate) fn explanation<'py>(
    py: Python<'py>,
    found: &Explanation,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("l1", fields!(py, found.l1, [matched, common, cached]))?;
    let below = found.below.iter().copied().map(lookup);
    dict.set_item("below", below.collect::<Vec<_>>())?;
    let elsewhere = found.elsewhere.iter();
    let elsewhere = elsewhere.map(|(namespace, blocks)| (PyBytes::new(py, &namespace.0), *blocks));
    dict.set_item("elsewhere", elsewhere.collect::<Vec<_>>())?;
    Ok(dict)
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

/// Tokens by tier.
pub(crate) fn hits(tokens: HitTokens) -> (usize, usize, usize, usize) {
    (tokens.l1, tokens.l2, tokens.l3, tokens.l4)
}

/// What a restore brought; times in milliseconds.
pub(crate) fn restored<'py>(py: Python<'py>, restored: &Restored) -> PyResult<Bound<'py, PyDict>> {
    let dict = fields!(py, restored, [l2_bytes, l3_bytes, l4_bytes]);
    dict.set_item("tokens", hits(restored.tokens))?;
    dict.set_item("l1_ms", milliseconds(restored.l1_time))?;
    dict.set_item("below_ms", milliseconds(restored.below_time))?;
    dict.set_item("ms", milliseconds(restored.time))?;
    dict.set_item("failure", restored.failure.as_deref())?;
    Ok(dict)
}

fn cut<'py>(py: Python<'py>, cut: &Cut) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("tokens", cut.tokens)?;
    dict.set_item("restore_ms", cut.restore * 1e3)?;
    dict.set_item("prefill_ms", cut.prefill * 1e3)?;
    dict.set_item("ms", cut.total * 1e3)?;
    Ok(dict)
}

/// What is restored, and why.
pub(crate) fn choice<'py>(py: Python<'py>, choice: &Choice) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("tokens", choice.tokens)?;
    let reason = match choice.reason {
        Reason::Asked => "asked",
        Reason::NotMeasured => "not_measured",
        Reason::Trial => "trial",
        _ => "cheapest",
    };
    dict.set_item("reason", reason)?;
    let cuts = [
        ("predicted", &choice.predicted),
        ("all", &choice.all),
        ("none", &choice.none),
    ];
    for (name, side) in cuts {
        let side = side.as_ref().map(|side| cut(py, side)).transpose()?;
        dict.set_item(name, side)?;
    }
    dict.set_item("left", choice.left.map(|tier| tier.to_string()))?;
    Ok(dict)
}

/// What reads and forwards were learnt to cost.
pub(crate) fn costs<'py>(py: Python<'py>, stats: &CostStats) -> PyResult<Bound<'py, PyDict>> {
    let reads = PyDict::new(py);
    for read in &stats.reads {
        let dict = fields!(py, read, [observations, learnt]);
        dict.set_item("latency_us", read.latency * 1e6)?;
        // A tier that takes no time by the byte has no rate.
        let rate = (read.per_byte > 0.0).then(|| 1e-9 / read.per_byte);
        dict.set_item("gb_per_s", rate)?;
        reads.set_item(read.tier.to_string(), dict)?;
    }
    let prefills = PyDict::new(py);
    for prefill in &stats.prefills {
        let dict = fields!(py, prefill, [observations, learnt]);
        dict.set_item("fixed_ms", prefill.fixed * 1e3)?;
        let rate = (prefill.per_token > 0.0).then(|| 1.0 / prefill.per_token);
        dict.set_item("tokens_per_s", rate)?;
        // Microseconds a token, for each 1,000 tokens before it.
        let slope = prefill.per_token_and_context * 1e9;
        dict.set_item("us_per_1k_context", slope)?;
        prefills.set_item(prefill.model.to_string(), dict)?;
    }
    let dict = PyDict::new(py);
    dict.set_item("read", reads)?;
    dict.set_item("prefill", prefills)?;
    dict.set_item("overlap", stats.overlap)?;
    let choices = fields!(
        py,
        stats.choices,
        [
            all,
            part,
            none,
            trials,
            not_measured,
            asked,
            recomputed_tokens
        ]
    );
    dict.set_item("choices", choices)?;
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
            shared_reads,
            joined_reads,
            memory_waits,
            writes,
            write_bytes,
            write_micros,
            evictions,
            corrupt,
            io_errors,
            gone
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
    dict.set_item("l4", tier(py, stats.l4)?)?;
    let remote = stats.remote.as_ref();
    dict.set_item(
        "remote",
        remote.map(|stats| remote::account(py, stats)).transpose()?,
    )?;
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
            too_few_uses,
            decoded,
            unavailable,
            expired,
            not_persisted,
            over_quota
        ]
    );
    dict.set_item("refusals", refusals)?;
    let prefetch = fields!(
        py,
        stats.prefetch,
        [
            issued,
            loaded,
            claimed,
            stolen,
            cancelled,
            timed_out,
            failed,
            refused,
            waits,
            expired_waits,
            held_bytes
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
            payloads_unread,
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
        [damaged, no_segment, no_record, overlapping, expired]
    );
    dict.set_item("rows_dropped", dropped)?;
    Ok(Some(dict))
}
