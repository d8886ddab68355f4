//! Page mode of the policy lab.

use kvlab_core::Error;
use kvlab_core::sim::page::policy::{NAMES, by_name};
use kvlab_core::sim::page::{
    Access, Engine, Hierarchy, Outcome, Overlap, Page, SCHEMES, Simulation, TIER_PRESETS, TierSpec,
    Workload, simulate, tier_preset,
};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};

use super::policy::CallerPolicy;
use crate::argument::Int;
use crate::error::{OrRaise, to_py};
use crate::stats::fields;
use crate::tokens::Tokens;

/// A tier as `(name, capacity_bytes, read_ms, write_ms, bytes_per_ms, concurrency)`.
type TierFields = (String, Int, f64, f64, f64, Option<Int>);

/// The schemes as `(name, bytes_per_scalar, decode_ms)`.
#[pyfunction]
pub(crate) fn sim_schemes() -> Vec<(&'static str, f64, f64)> {
    let fields = SCHEMES.map(|scheme| (scheme.name, scheme.bytes_per_scalar, scheme.decode_ms));
    fields.to_vec()
}

/// The names of sets of tiers, with what they are.
#[pyfunction]
pub(crate) fn sim_tier_presets() -> Vec<(&'static str, &'static str)> {
    TIER_PRESETS.to_vec()
}

/// The tiers of a preset.
#[pyfunction]
#[pyo3(signature = (name, /))]
#[expect(clippy::type_complexity, reason = "a row of plain numbers")]
pub(crate) fn sim_tier_preset(
    name: &str,
) -> PyResult<Vec<(String, u64, f64, f64, f64, Option<u32>)>> {
    let rows = tier_preset(name).or_raise()?.into_iter().map(|tier| {
        (
            tier.name,
            tier.capacity_bytes,
            tier.read_ms,
            tier.write_ms,
            tier.bytes_per_ms,
            tier.concurrency,
        )
    });
    Ok(rows.collect())
}

/// The policies of page mode as `(name, what it does, parameters, whether there is one instance a tier)`.
#[pyfunction]
pub(crate) fn sim_page_policies() -> Vec<(String, String, Vec<&'static str>, bool)> {
    let own = NAMES
        .iter()
        .map(|&(name, about, params)| (name.to_owned(), about.to_owned(), params.to_vec(), false));
    let scored = |name: &str| NAMES.iter().any(|(own, ..)| *own == name);
    let tiered = kvlab_core::policy::KNOWN.iter().filter_map(|known| {
        let name = match known.name {
            // In prefix mode these are the same policies; there is no second kind of them to be had.
            name if name != "lru" && scored(name) => return None,
            name if scored(name) => format!("per_tier:{name}"),
            name => name.to_owned(),
        };
        let about = format!("{} of the live tiers and of prefix mode", known.name);
        Some((name, about, Vec::new(), true))
    });
    own.chain(tiered).collect()
}

fn tiers(fields: Vec<TierFields>) -> PyResult<Vec<TierSpec>> {
    let tier = |(name, capacity, read_ms, write_ms, bytes_per_ms, concurrency): TierFields| {
        Ok(TierSpec {
            name,
            capacity_bytes: capacity.get("capacity_bytes")?,
            read_ms,
            write_ms,
            bytes_per_ms,
            concurrency: concurrency
                .map(|places| places.get("concurrency"))
                .transpose()?,
        })
    };
    fields.into_iter().map(tier).collect()
}

fn workload(
    sizes: Vec<Int>,
    decode_ms: &[f64],
    starts: Vec<(usize, usize)>,
    trace: &[u32],
    steps: Option<&[u64]>,
    hints: &[usize],
) -> PyResult<Workload> {
    if decode_ms.len() != sizes.len() || steps.is_some_and(|steps| steps.len() != trace.len()) {
        return Err(to_py(&Error::invalid(format!(
            "{} sizes, {} penalties, {} rows, {:?} steps; give one of each a page or row",
            sizes.len(),
            decode_ms.len(),
            trace.len(),
            steps.map(<[u64]>::len)
        ))));
    }
    let mut pages = Vec::with_capacity(sizes.len());
    for (bytes, &decode_ms) in sizes.into_iter().zip(decode_ms) {
        pages.push(Page {
            bytes: bytes.get("size_bytes")?,
            decode_ms,
            tier: None,
        });
    }
    let outside = |what: &str, at: usize, limit: usize| {
        to_py(&Error::invalid(format!("{what} {at} is not among {limit}")))
    };
    let count = pages.len();
    for (page, tier) in starts {
        let page = pages
            .get_mut(page)
            .ok_or_else(|| outside("page", page, count))?;
        page.tier = Some(tier);
    }
    let rows = trace.iter().enumerate().map(|(row, &page)| Access {
        step: steps.map_or(row as u64, |steps| steps[row]),
        page,
        hint: false,
    });
    let mut accesses: Vec<Access> = rows.collect();
    for &row in hints {
        let access = accesses.get_mut(row);
        access
            .ok_or_else(|| outside("hint of row", row, trace.len()))?
            .hint = true;
    }
    Workload::new(pages, accesses).or_raise()
}

/// Replays a page trace; the fields of `kvlab.sim.page.PageRow` that are counted.
#[pyfunction]
#[pyo3(signature = (
    *, tier_fields, sizes, decode_ms, starts, trace, steps, hints, policy, params, pages, prefetch,
    max_prefetches, compat, compute_ms
))]
#[expect(
    clippy::too_many_arguments,
    reason = "keyword-only, called from one place"
)]
pub(crate) fn simulate_pages<'py>(
    py: Python<'py>,
    tier_fields: Vec<TierFields>,
    sizes: Vec<Int>,
    decode_ms: Vec<f64>,
    starts: Vec<(usize, usize)>,
    trace: Tokens,
    steps: Option<Vec<u64>>,
    hints: Vec<usize>,
    policy: Bound<'py, PyAny>,
    params: Vec<(String, f64)>,
    pages: Bound<'py, PyList>,
    prefetch: bool,
    max_prefetches: Int,
    compat: bool,
    compute_ms: Option<f64>,
) -> PyResult<Bound<'py, PyDict>> {
    let hierarchy = Hierarchy {
        prefetch,
        max_prefetches: max_prefetches.get("max_prefetches")?,
        engine: if compat {
            Engine::Compat
        } else {
            Engine::Exact
        },
        overlap: compute_ms.map(|compute_ms| Overlap { compute_ms }),
        ..Hierarchy::new(tiers(tier_fields)?)
    };
    let workload = workload(
        sizes,
        &decode_ms,
        starts,
        &trace.0,
        steps.as_deref(),
        &hints,
    )?;
    let outcome = if let Ok(name) = policy.cast::<PyString>() {
        let capacities: Vec<u64> = hierarchy
            .tiers
            .iter()
            .map(|tier| tier.capacity_bytes)
            .collect();
        let mut policy = by_name(name.to_str()?, &params, &capacities).or_raise()?;
        py.detach(|| simulate(&hierarchy, &workload, policy.as_mut()))
            .or_raise()?
    } else {
        if !params.is_empty() {
            return Err(PyTypeError::new_err(
                "parameters are for a policy by name; make the policy with them instead",
            ));
        }
        run_callers(&hierarchy, &workload, &policy, &pages)?
    };
    report(py, &outcome)
}

/// Runs a policy of the caller's up to its first exception.
fn run_callers(
    hierarchy: &Hierarchy,
    workload: &Workload,
    policy: &Bound<'_, PyAny>,
    pages: &Bound<'_, PyList>,
) -> PyResult<Outcome> {
    let names: Vec<&str> = hierarchy
        .tiers
        .iter()
        .map(|tier| tier.name.as_str())
        .collect();
    let mut policy = CallerPolicy::new(policy, pages, &names)?;
    let raised = policy.raised();
    let run = |policy: &mut CallerPolicy| {
        let mut simulation = Simulation::new(hierarchy, workload, policy)?;
        while raised.is_clear() && simulation.advance()? {}
        Ok(simulation.finish())
    };
    let outcome = run(&mut policy);
    // What the policy raised says more than what the run ended with because of it.
    raised.take()?;
    outcome.or_raise()
}

fn report<'py>(py: Python<'py>, outcome: &Outcome) -> PyResult<Bound<'py, PyDict>> {
    let dict = fields!(
        py,
        outcome,
        [
            accesses,
            misses,
            cold_misses,
            evictions,
            dropped,
            demand_bytes,
            prefetch_bytes,
            prefetches,
            useful_prefetches,
            wasted_prefetches,
            inserted_bytes,
            dropped_bytes,
            double_residencies
        ]
    );
    dict.set_item("peak_bytes", &outcome.peak_bytes)?;
    dict.set_item("resident_bytes", &outcome.resident_bytes)?;
    dict.set_item("hit_rate", outcome.hit_rate())?;
    let rates = (0..outcome.found.len()).map(|tier| outcome.tier_hit_rate(tier));
    dict.set_item("tier_hit_rates", rates.collect::<Vec<_>>())?;
    dict.set_item("mean_latency_ms", outcome.mean_latency_ms())?;
    dict.set_item("transfer_and_hit_ms", outcome.total_ms)?;
    dict.set_item("bytes_moved", outcome.bytes_moved())?;
    dict.set_item("useful_prefetch_ratio", outcome.useful_prefetch_ratio())?;
    let overlapped = outcome.overlapped;
    dict.set_item("elapsed_ms", overlapped.map(|timed| timed.elapsed_ms))?;
    dict.set_item("queued_ms", overlapped.map(|timed| timed.queued_ms))?;
    dict.set_item(
        "late_prefetches",
        overlapped.map(|timed| timed.late_prefetches),
    )?;
    Ok(dict)
}
