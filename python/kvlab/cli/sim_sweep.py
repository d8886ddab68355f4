"""`kvlab sim sweep`: many policies, sizes, scenarios and seeds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvlab.cli._common import json_option
from kvlab.cli._sim import (
    TraceArguments,
    below_of,
    check_policies,
    counting,
    finish,
    items,
    known,
    load_trace,
    numbers,
    out_option,
    tier_options,
    trace_options,
    workers_option,
)
from kvlab.errors import ConfigError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvlab.sim.experiments.artifacts import Artifacts
    from kvlab.sim.experiments.table import Row

__all__ = ["sim_sweep"]

_REQUEST_COLUMNS = (
    "trace", "mode", "policy", "capacity", "capacity_blocks", "n", "hit_ratio", "token_hit_ratio", "percent_of_oracle",
    "percent_of_oracle_cost", "misses", "recomputed_tokens", "mean_latency_ms", "predicted_ttft_p99_ms",
    "tier_hit_rates.l1", "tier_hit_rates.l2", "tier_hit_rates.l3", "bytes_moved", "evictions",
)  # fmt: skip
_PAGE_COLUMNS = (
    "scenario", "workload", "policy", "n", "hit_rate", "percent_of_oracle", "misses", "mean_latency_ms",
    "bytes_moved", "prefetches", "useful_prefetch_ratio", "evictions",
)  # fmt: skip


@click.command("sweep")
@trace_options
@click.option("--mode", default="prefix", show_default=True, help="prefix, page or flat.")
@click.option(
    "--policies",
    multiple=True,
    help="Names, all, or live; in mode page also with parameters: regret_aware:weight=0,horizon=8, "
    "or of your own: FILE.py:CLASS. "
    "[default: live; in mode page kv-hierarchy-lab's six]",
)
@click.option(
    "--capacities",
    multiple=True,
    default=("1%,5%,10%,25%,50%",),
    show_default=True,
    help="Blocks, shares of the distinct ones, or inf; mode prefix and flat.",
)
@tier_options
@click.option("--scenarios", multiple=True, help="Of mode page. [default: the first five]")
@click.option(
    "--workloads",
    multiple=True,
    help="Of mode page, with parameters behind colons. [default: seven]",
)
@click.option(
    "--seeds", multiple=True, help="Of workloads, such as 7,42,91. [default: the usual one]"
)
@click.option(
    "--quant",
    multiple=True,
    help="How pages are stored, such as int4 or fp16,layers:0-7=int4; repeated for more; mode page. "
    "[default: as the scenario says]",
)
@click.option("--engine", default="exact", show_default=True, help="exact or compat; mode page.")
@workers_option
@out_option
@json_option
def sim_sweep(
    *,
    trace: str | None,
    format_: str | None,
    workload: str | None,
    options: tuple[str, ...],
    mode: str,
    policies: tuple[str, ...],
    capacities: tuple[str, ...],
    l2: str | None,
    l3: str | None,
    costs: Path | None,
    servers: int,
    scenarios: tuple[str, ...],
    workloads: tuple[str, ...],
    seeds: tuple[str, ...],
    quant: tuple[str, ...],
    engine: str,
    workers: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Replay under many policies at many sizes, or in many scenarios. Simulated.

    Every table has the part of the oracle's hits; over several seeds it has means and spreads.
    """
    start = time.perf_counter()
    draws = numbers("--seeds", seeds)
    if mode != "prefix" and (l2 is not None or l3 is not None or costs is not None):
        raise InvalidArgumentError(
            f"--mode {mode}: --l2-blocks, --l3-blocks and --costs are for mode prefix"
        )
    if mode == "page":
        if trace is not None or workload is not None:
            raise InvalidArgumentError("--trace and --workload: mode page takes --workloads")
        done = _pages(
            policies=_specs(policies),
            scenarios=items(scenarios),
            workloads=items(workloads),
            seeds=draws,
            quants=quant,
            engine=engine,
            workers=workers,
        )
        columns: tuple[str, ...] = _PAGE_COLUMNS
    elif mode in {"prefix", "flat"}:
        if scenarios or workloads or quant:
            raise InvalidArgumentError(
                f"--scenarios, --workloads and --quant: for mode page, not {mode}"
            )
        arguments = TraceArguments(trace, format_, workload, options)
        done = _requests(
            arguments,
            mode,
            policies=items(policies),
            capacities=items(capacities),
            tiers=(l2, l3),
            costs=costs,
            servers=servers,
            seeds=draws,
            workers=workers,
        )
        columns = _REQUEST_COLUMNS
    else:
        raise ConfigError(f"--mode {mode}: use one of: prefix, page, flat")
    done.seconds = time.perf_counter() - start
    finish(done, out, as_json=as_json, columns=columns)


def _specs(texts: Sequence[str]) -> list[str]:
    """Page policies by name, with their parameters: `lru,regret_aware:weight=0,horizon=8` are two."""
    specs: list[str] = []
    for part in (part.strip() for text in texts for part in text.split(",")):
        if specs and "=" in part and ":" not in part:
            specs[-1] += f",{part}"
        else:
            specs.append(part)
    return specs


def _requests(
    arguments: TraceArguments,
    mode: str,
    *,
    policies: list[str],
    capacities: list[str],
    tiers: tuple[str | None, str | None],
    costs: Path | None,
    servers: int,
    seeds: list[int],
    workers: int | None,
) -> Artifacts:
    from kvlab.sim import cost_file
    from kvlab.sim.experiments import requests
    from kvlab.sim.experiments.artifacts import Artifacts
    from kvlab.sim.experiments.studies import request_figures, request_findings

    names = check_policies(policies or ["live"], mode)
    if seeds and arguments.trace is not None:
        raise InvalidArgumentError("--seeds: a trace in a file has none; they are for --workload")
    rows: list[Row] = []
    draws: list[int | None] = [*seeds] or [None]
    for seed in draws:
        trace = load_trace(arguments, seed)
        sizes = requests.sizes_of(trace, capacities)
        below = below_of(trace, *tiers, costs, servers) if mode == "prefix" else None
        total = len(sizes) * len(requests.wanted(names))
        with counting(f"replaying {trace.info.name}", total) as update:
            found = requests.sweep(
                trace,
                policies=names,
                capacities=sizes,
                mode="prefix" if mode == "prefix" else "flat",
                below=below,
                workers=workers,
                progress=update,
            )
        # Sizes as they were asked for: a share is another number of blocks for each seed.
        asked = dict(zip(sizes, capacities, strict=False)) if len(sizes) == len(capacities) else {}
        for row in found:
            size = row["capacity_blocks"]
            row["capacity"] = asked.get(size if isinstance(size, int) else None, str(size))
            row["seed"] = seed
        rows += found
    config = {
        "command": "sweep", **arguments.config(), "mode": mode, "policies": names,
        "capacities": capacities, "seeds": seeds,
    }  # fmt: skip
    findings = request_findings(rows)
    if below is not None:
        model = below.model
        config |= {
            "l2": tiers[0],
            "l3": tiers[1],
            "servers": servers,
            "costs": cost_file.as_dict(model),
        }
        findings.append(
            f"Times are predicted by costs that are {model.describe()}; {model.costs.token_bytes:,} KV bytes a token."
        )
    return Artifacts(
        title=f"{arguments.name}: policies by size, {mode} mode",
        config=config,
        rows=rows,
        figures=request_figures(rows),
        findings=findings,
    )


def _pages(
    *,
    policies: list[str],
    scenarios: list[str],
    workloads: list[str],
    seeds: list[int],
    quants: Sequence[str],
    engine: str,
    workers: int | None,
) -> Artifacts:
    from kvlab.sim.experiments import pages
    from kvlab.sim.experiments.artifacts import Artifacts
    from kvlab.sim.experiments.studies import DEFAULT_SWEEP, page_figures, page_findings
    from kvlab.sim.scenarios import PolicySpec, page_policies, scenario

    every = list(page_policies())
    scenes = [scenario(name) for name in scenarios or DEFAULT_SWEEP.scenarios]
    if engine not in {"exact", "compat"}:
        raise ConfigError(f"--engine {engine}: use one of: exact, compat")
    scenes = [scene.with_engine("compat" if engine == "compat" else "exact") for scene in scenes]
    if quants:
        scenes = [pages.quantised(scene, text) for scene in scenes for text in quants]
    if policies == ["all"]:
        policies = every
    specs = [pages.read_policy(text) for text in policies or DEFAULT_SWEEP.policies]
    known("--policies", [spec.name for spec in specs if isinstance(spec, PolicySpec)], every)
    names = workloads or list(DEFAULT_SWEEP.workloads)
    total = len(scenes) * len(specs) * len(names) * max(1, len(seeds))
    with counting("replaying page workloads", total) as update:
        rows = pages.sweep(
            policies=specs,
            scenarios=scenes,
            workloads=[pages.read_workload(name) for name in names],
            seeds=seeds or [None],
            workers=workers,
            progress=update,
        )
    config = {
        "command": "sweep", "mode": "page", "engine": engine, "scenarios": [scene.name for scene in scenes],
        "workloads": names, "seeds": seeds,
        "policies": [spec.label if isinstance(spec, PolicySpec) else spec.text for spec in specs],
    }  # fmt: skip
    return Artifacts(
        title="Page policies by scenario and workload",
        config=config,
        rows=rows,
        figures=page_figures(rows),
        findings=page_findings(rows),
    )
