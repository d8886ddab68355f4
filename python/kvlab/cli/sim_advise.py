"""`kvlab sim advise`: which policy and which tier sizes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvlab.cli._common import json_option
from kvlab.cli._sim import (
    TraceArguments,
    check_policies,
    counting,
    finish,
    items,
    load_costs,
    load_trace,
    out_option,
    trace_options,
    workers_option,
)

if TYPE_CHECKING:
    from kvlab.sim.advise import Advice

__all__ = ["sim_advise"]


@click.command("advise")
@trace_options
@click.option("--memory", required=True, help="Bytes for L1 and L2, such as 4GiB.")
@click.option("--disk", default="0", show_default=True, help="Bytes for L3, such as 50GiB.")
@click.option(
    "--costs",
    type=click.Path(path_type=Path),
    help="From `kvlab sim calibrate`. [default: assumed]",
)
@click.option(
    "--model", help="A preset or directory: its KV bytes a token, in place of those of the costs."
)
@click.option("--token-bytes", type=click.IntRange(min=1), help="KV bytes a token, likewise.")
@click.option(
    "--policies", multiple=True, default=("live",), show_default=True, help="Names, all, or live."
)
@click.option("--resamples", type=click.IntRange(min=100), default=1000, show_default=True)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the bootstrap."
)
@workers_option
@out_option
@json_option
def sim_advise(
    *,
    trace: str | None,
    format_: str | None,
    workload: str | None,
    options: tuple[str, ...],
    memory: str,
    disk: str,
    costs: Path | None,
    model: str | None,
    token_bytes: int | None,
    policies: tuple[str, ...],
    resamples: int,
    seed: int,
    workers: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Which policy and which sizes of L1, L2 and L3 a trace wants within a budget. Simulated.

    Says what that is predicted to gain, how sure it is, and what it was compared with.
    """
    start = time.perf_counter()
    from kvlab import parse_size
    from kvlab.sim.advise import Budget, advise, replays_needed
    from kvlab.sim.experiments.artifacts import Artifacts
    from kvlab.sim.experiments.studies import advice_figures

    budget = Budget(parse_size(memory), parse_size(disk))
    names = [
        name for name in check_policies(items(policies), "prefix") if not _knows_the_future(name)
    ]
    known = load_costs(costs)
    size = _token_bytes(model, token_bytes)
    if size is not None:
        known = replace(known, costs=replace(known.costs, token_bytes=size))
    arguments = TraceArguments(trace, format_, workload, options)
    loaded = load_trace(arguments)
    total = replays_needed(names, disk=budget.disk > 0)
    with counting(f"replaying {loaded.info.name}", total) as update:
        advice = advise(
            loaded,
            budget,
            known,
            policies=names,
            resamples=resamples,
            seed=seed,
            workers=workers,
            progress=update,
        )
    done = Artifacts(
        title=f"{loaded.info.name}: advice",
        config={
            "command": "advise", **arguments.config(), "memory": budget.memory, "disk": budget.disk,
            "costs": known.describe(), "token_bytes": known.costs.token_bytes, "policies": names,
            "resamples": resamples, "seed": seed,
        },
        rows=advice.rows,
        figures=advice_figures(advice.rows),
        findings=[*_told(advice), f"Costs: {known.describe()}; {known.costs.token_bytes:,} KV bytes a token."],
        extra={"advice": advice.as_dict(), "notes": loaded.info.notes},
        seconds=time.perf_counter() - start,
    )  # fmt: skip
    columns = (
        "policy", "l1_blocks", "l2_blocks", "l3_blocks", "token_hit_ratio", "percent_of_oracle", "mean_latency_ms",
        "predicted_saved_percent", "predicted_ttft_p99_ms", "bytes_moved",
    )  # fmt: skip
    finish(done, out, as_json=as_json, columns=columns)


def _knows_the_future(name: str) -> bool:
    from kvlab.sim.experiments.requests import FORESEEING

    return name in FORESEEING


def _token_bytes(model: str | None, token_bytes: int | None) -> int | None:
    if model is None or token_bytes is not None:
        return token_bytes
    from kvlab.sizing import kv_size, shape_of

    return kv_size(shape_of(model), batch=1, seq_len=1).kv_bytes_per_token


def _told(advice: Advice) -> list[str]:
    from kvlab.cli._store import size_text

    expected, sure = advice.expected, advice.confidence
    low, high = (100 * end for end in sure.interval)
    sizes = ", ".join(f"{tier}={size_text(size)}" for tier, size in advice.sizes.items())
    return [
        f"Advice: policy={advice.policy}, {sizes}.",
        *advice.reason,
        (
            f"Expected: {expected['hit_tokens']:,} hit tokens ({100 * expected['token_hit_ratio']:.2f} %), "
            f"{expected['percent_of_oracle']:.1f} % of the oracle's blocks. Predicted: "
            f"{expected['predicted_ms_a_request']:.1f} ms a request, "
            f"{expected['predicted_ms_a_request_cold']:.1f} ms with nothing cached."
        ),
        (
            f"Confidence of the policy: {sure.level}. In the second half {sure.against} takes "
            f"{100 * sure.gain:+.2f} % more than what led ({low:+.2f} to {high:+.2f} % in 95 % of resamples "
            f"of {sure.units}); what led is not behind in {sure.windows_ahead} of {sure.windows} windows."
        ),
    ]
