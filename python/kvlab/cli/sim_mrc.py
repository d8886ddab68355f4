"""`kvlab sim mrc`: miss-ratio curves."""

from __future__ import annotations

import time
from pathlib import Path

import click

from kvlab.cli._common import json_option
from kvlab.cli._sim import (
    TraceArguments,
    check_policies,
    counting,
    finish,
    items,
    load_trace,
    numbers,
    out_option,
    trace_options,
    workers_option,
)
from kvlab.errors import ConfigError

__all__ = ["sim_mrc"]


@click.command("mrc")
@trace_options
@click.option("--mode", default="prefix", show_default=True, help="prefix or flat.")
@click.option(
    "--policies", multiple=True, default=("lru",), show_default=True, help="Names, all, or live."
)
@click.option("--points", type=click.IntRange(min=2), default=24, show_default=True, help="Sizes.")
@click.option(
    "--rate",
    type=float,
    help="Part of the blocks in a sample. [default: enough for 20,000 of them]",
)
@click.option(
    "--seeds", multiple=True, default=("0,1,2",), show_default=True, help="Which samples are taken."
)
@workers_option
@out_option
@json_option
def sim_mrc(
    *,
    trace: str | None,
    format_: str | None,
    workload: str | None,
    options: tuple[str, ...],
    mode: str,
    policies: tuple[str, ...],
    points: int,
    rate: float | None,
    seeds: tuple[str, ...],
    workers: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Hits at every size: lru exactly from one pass, the others from samples. Simulated."""
    start = time.perf_counter()
    if mode not in {"prefix", "flat"}:
        raise ConfigError(f"--mode {mode}: use one of: prefix, flat")
    names = check_policies(items(policies), mode)
    arguments = TraceArguments(trace, format_, workload, options)
    draws = numbers("--seeds", seeds) or [0]
    loaded = load_trace(arguments)
    from kvlab.sim.experiments.artifacts import Artifacts
    from kvlab.sim.experiments.requests import auto_rate, curves, spaced, wanted
    from kvlab.sim.experiments.studies import curve_figures

    used = auto_rate(loaded) if rate is None else rate
    total = len(wanted(names)) * (1 if used == 1.0 else len(draws))
    with counting(f"curves of {loaded.info.name}", total) as update:
        rows = curves(
            loaded,
            policies=names,
            capacities=spaced(loaded.unique_blocks, points),
            mode="prefix" if mode == "prefix" else "flat",
            rate=used,
            seeds=draws,
            workers=workers,
            progress=update,
        )
    done = Artifacts(
        title=f"{loaded.info.name}: miss-ratio curves, {mode} mode",
        config={
            "command": "mrc", **arguments.config(), "mode": mode, "policies": names, "points": points,
            "rate": used, "seeds": draws,
        },
        rows=rows,
        figures=curve_figures(rows),
        extra={"notes": loaded.info.notes},
        seconds=time.perf_counter() - start,
    )  # fmt: skip
    columns = ("policy", "method", "capacity_blocks", "n", "hit_ratio", "percent_of_oracle")
    finish(done, out, as_json=as_json, columns=columns)
