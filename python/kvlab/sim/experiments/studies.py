"""What is made of the rows of each kind of experiment: its figures and its sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvlab.errors import ConfigError
from kvlab.sim.experiments.plots import Figure
from kvlab.sim.experiments.requests import FORESEEING
from kvlab.sim.experiments.table import SIZED_BY_SEED, Row, Value, summarise

__all__ = [
    "DEFAULT_SWEEP",
    "ablation_figures",
    "ablation_findings",
    "advice_figures",
    "curve_figures",
    "figures_of",
    "page_figures",
    "page_findings",
    "request_figures",
    "request_findings",
]


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep of page mode takes if nobody says: kv-hierarchy-lab's default sweep."""

    scenarios: tuple[str, ...]
    workloads: tuple[str, ...]
    policies: tuple[str, ...]


DEFAULT_SWEEP = Sweep(
    scenarios=(
        "small_fp16_prefetch",
        "small_fp16_no_prefetch",
        "small_int4_no_prefetch",
        "base_fp8_prefetch",
        "constrained_fp16_prefetch",
    ),
    workloads=(
        "chat_continuation",
        "rag_burst",
        "periodic_reuse",
        "long_tail_mix",
        "prefetch_friendly",
        "adversarial_burst",
        "mixed_locality",
    ),
    policies=(
        "lru",
        "windowed_recency",
        "heavy_hitter",
        "cost_aware",
        "predictive",
        "regret_aware",
    ),
)


def request_figures(rows: Sequence[Row]) -> list[Figure]:
    """Hit ratio, percent of the oracle, evictions, and where they are predicted latency and bytes, by size."""
    drawn = any(row.get("seed") is not None for row in rows)
    summary = summarise(rows, SIZED_BY_SEED if drawn else ("seed",))
    for row in summary:
        # A cache that holds all stands where everything fits.
        if row.get("capacity_blocks") is None:
            row["capacity_blocks"] = row.get("unique_blocks")
    first = Figure(
        "token_hit_ratio",
        "Token hit ratio by size",
        "line",
        summary,
        x="capacity_blocks",
        y="token_hit_ratio",
        series="policy",
        log_x=True,
        note="The dashed lines know the future.",
    )
    oracle = "percent_of_oracle"
    return [
        first,
        replace(first, name=oracle, title="Part of the oracle's hits", y=oracle),
        replace(first, name="evictions", title="Evictions by size", y="evictions"),
        replace(
            first, name="latency", title="Predicted latency by size", y="mean_latency_ms", note=""
        ),
        replace(first, name="bytes_moved", title="Bytes moved by size", y="bytes_moved", note=""),
        replace(
            first,
            name="latency_against_bytes",
            title="Predicted latency against bytes moved",
            kind="scatter",
            x="bytes_moved",
            y="mean_latency_ms",
            log_x=False,
            note="",
        ),
    ]


def request_findings(rows: Sequence[Row]) -> list[str]:
    """The best policy at each size, and how far from it lru is."""
    out = []
    for size, group in _by(rows, "capacity_blocks").items():
        real = [row for row in group if row["policy"] not in FORESEEING]
        if size is None or not real:
            continue
        best = max(real, key=lambda row: _number(row, "hits"))
        line = (
            f"At {size:,} blocks {best['policy']} finds most: {100 * _number(best, 'hit_ratio'):.2f} % of blocks, "
            f"{_number(best, 'percent_of_oracle'):.1f} % of the oracle's hits"
        )
        lru = next(
            (row for row in real if row["policy"] == "lru" and row["seed"] == best["seed"]), None
        )
        if lru is not None and lru is not best:
            line += f"; lru {100 * _number(lru, 'hit_ratio'):.2f} %"
        out.append(f"{line}.")
    return out


def page_figures(rows: Sequence[Row]) -> list[Figure]:
    """Hit rate, latency, bytes moved, useful prefetches, and latency against bytes, a panel a scenario."""
    summary = summarise(rows)
    first = Figure(
        "hit_rate",
        "Hit rate of the first tier",
        "bars",
        summary,
        x="workload",
        y="hit_rate",
        series="policy",
        panel="scenario",
    )
    useful = replace(
        first,
        name="useful_prefetch_ratio",
        title="Part of the prefetched pages that was used in time",
        y="useful_prefetch_ratio",
        rows=[row for row in summary if row.get("prefetches")],
        note="Only runs that prefetched.",
    )
    both = replace(
        first,
        name="latency_against_bytes",
        title="Mean latency against bytes moved",
        kind="scatter",
        x="bytes_moved",
        y="mean_latency_ms",
    )
    return [
        first,
        replace(first, name="latency", title="Mean latency", y="mean_latency_ms"),
        replace(first, name="bytes_moved", title="Bytes moved", y="bytes_moved"),
        useful,
        both,
    ]


def page_findings(rows: Sequence[Row]) -> list[str]:
    """In how many cells each policy is best by misses and by latency."""
    summary = summarise(rows)
    cells: dict[tuple[object, object], list[Row]] = {}
    for row in summary:
        cells.setdefault((row["scenario"], row["workload"]), []).append(row)
    out = []
    for metric, text in (("misses", "fewest misses"), ("mean_latency_ms", "lowest mean latency")):
        wins: dict[str, int] = {}
        ties = 0
        for group in cells.values():
            least = min(_number(row, metric) for row in group)
            best = [str(row["policy"]) for row in group if _number(row, metric) == least]
            if len(best) == len(group) and len(group) > 1:
                ties += 1
                continue
            for name in best:
                wins[name] = wins.get(name, 0) + 1
        ranking = sorted(wins.items(), key=lambda pair: (-pair[1], pair[0]))
        told = ", ".join(f"{name} {count}" for name, count in ranking)
        out.append(
            f"Of {len(cells)} cells, {text} (ties count for each): {told or 'none'}; all alike in {ties}."
        )
    return out


def ablation_figures(rows: Sequence[Row], params: Sequence[str], panel: str) -> list[Figure]:
    """Latency and misses against each parameter, with lines for the next one."""
    summary = summarise(rows)
    shown = [row for row in summary if all(row.get(name) is not None for name in params)]
    figures = []
    for at, name in enumerate(params):
        other = params[(at + 1) % len(params)] if len(params) > 1 else "policy"
        lines: list[Row] = [{**row, "line": _line(other, row[other])} for row in shown]
        first = Figure(
            f"latency_by_{name}",
            f"Mean latency by {name}",
            "line",
            lines,
            x=name,
            y="mean_latency_ms",
            series="line",
            panel=panel,
        )
        misses = replace(first, name=f"misses_by_{name}", title=f"Misses by {name}", y="misses")
        figures += [first, misses]
    return figures


def _line(name: str, value: Value) -> str:
    return f"{name} {value:g}" if isinstance(value, int | float) else str(value)


def ablation_findings(rows: Sequence[Row], params: Sequence[str]) -> list[str]:
    """The best arm of each scenario and workload against the baselines."""
    out = []
    cells: dict[tuple[object, object], list[Row]] = {}
    for row in summarise(rows):
        cells.setdefault((row["scenario"], row["workload"]), []).append(row)
    for (scene, workload), group in cells.items():
        arms = [row for row in group if all(row.get(name) is not None for name in params)]
        others = [row for row in group if row not in arms]
        if not arms or not others:
            continue
        best = min(arms, key=lambda row: _number(row, "mean_latency_ms"))
        base = others[0]
        before, after = _number(base, "mean_latency_ms"), _number(best, "mean_latency_ms")
        line = (
            f"{scene}, {workload}: best is {best['policy']} with {after:.4g} ms on average, "
            f"{_change(before, after):+.1f} % against {base['policy']}"
        )
        none = [row for row in arms if row[params[0]] == 0]
        if none:
            least = min(_number(row, "mean_latency_ms") for row in none)
            line += f", {_change(least, after):+.1f} % against {params[0]} 0"
        out.append(f"{line}.")
    return out


def _change(before: float, after: float) -> float:
    return 100 * (after / before - 1) if before else 0.0


def curve_figures(rows: Sequence[Row]) -> list[Figure]:
    """Miss ratio against the size."""
    summary = summarise([{**row, "miss_ratio": None} for row in rows])
    misses: list[Row] = []
    for row in summary:
        ratio = row.get("hit_ratio")
        if isinstance(ratio, int | float):
            misses.append(
                {**row, "miss_ratio": 1.0 - ratio, "miss_ratio_sd": row.get("hit_ratio_sd")}
            )
    return [
        Figure(
            "mrc",
            "Miss ratio by size",
            "line",
            misses,
            x="capacity_blocks",
            y="miss_ratio",
            series="policy",
            log_x=True,
            note="lru is exact; the others are samples where the table says so. The dashed lines know the future.",
        )
    ]


def advice_figures(rows: Sequence[Row]) -> list[Figure]:
    """What each hierarchy saves, by the size of L3 and by the bytes that it moves."""
    saved = Figure(
        "saved_by_l3",
        "Predicted time saved by size of L3",
        "scatter",
        rows,
        x="l3_blocks",
        y="predicted_saved_percent",
        series="policy",
    )
    both = replace(
        saved,
        name="latency_against_bytes",
        title="Predicted time of a request against bytes moved",
        x="bytes_moved",
        y="mean_latency_ms",
    )
    return [saved, both]


def figures_of(config: Mapping[str, Any], rows: Sequence[Row]) -> list[Figure]:
    """The figures of an experiment by what it was asked to do.

    Args:
        config: See `Artifacts`; `command` says which experiment it is.
        rows: Its rows.

    Raises:
        ConfigError: there is no such experiment.
    """
    command = config.get("command")
    if command == "sweep":
        return page_figures(rows) if config.get("mode") == "page" else request_figures(rows)
    if command == "ablate":
        return ablation_figures(rows, list(config["grid"]), "cell")
    if command == "mrc":
        return curve_figures(rows)
    if command == "advise":
        return advice_figures(rows)
    if command == "fleet":
        from kvlab.sim.fleet.study import fleet_figures

        return fleet_figures(rows)
    raise ConfigError(
        f"command = {command}: plots are drawn of ablate, advise, fleet, mrc and sweep"
    )


def _by(rows: Sequence[Row], column: str) -> dict[int | None, list[Row]]:
    groups: dict[int | None, list[Row]] = {}
    for row in rows:
        value = row.get(column)
        groups.setdefault(int(value) if isinstance(value, int) else None, []).append(row)
    return groups


def _number(row: Row, column: str) -> float:
    value = row.get(column)
    return float(value) if isinstance(value, int | float) else 0.0
