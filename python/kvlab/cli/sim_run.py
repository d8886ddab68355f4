"""`kvlab sim run`: one trace, one policy, one size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from kvlab.cli._common import json_option
from kvlab.cli._sim import (
    TraceArguments,
    below_of,
    counting,
    load_trace,
    one_of_your_own,
    tier_options,
    trace_options,
)
from kvlab.errors import ConfigError, InvalidArgumentError

if TYPE_CHECKING:
    from kvlab.sim.trace import Trace

__all__ = ["sim_run"]

_MODES = ("prefix", "page", "flat")


@click.command("run")
@trace_options
@click.option("--seed", type=click.IntRange(min=0), help="Of a workload. [default: its usual one]")
@click.option("--mode", default="prefix", show_default=True, help="prefix, page or flat.")
@click.option(
    "--policy",
    default="lru",
    show_default=True,
    help="See `kvlab sim policies`; in mode page also of your own: FILE.py:CLASS.",
)
@click.option(
    "--capacity-blocks",
    "capacity",
    default="inf",
    show_default=True,
    help="Blocks that fit (into L1), a share of the distinct ones such as 5%, or inf.",
)
@tier_options
@click.option("--oracle", is_flag=True, help="Say which part of the oracle's hits that is.")
@click.option(
    "--scenario", help="Mode page: tiers by name, for a page workload or a trace of format page."
)
@json_option
def sim_run(
    *,
    trace: str | None,
    format_: str | None,
    workload: str | None,
    options: tuple[str, ...],
    seed: int | None,
    mode: str,
    policy: str,
    capacity: str,
    l2: str | None,
    l3: str | None,
    costs: Path | None,
    servers: int,
    oracle: bool,
    scenario: str | None,
    as_json: bool,
) -> None:
    """Replay one trace under one policy at one size. Simulated: no payload is moved.

    In mode prefix a block hits if all before it do; in flat and page mode every block is on its own.
    """
    if mode not in _MODES:
        raise ConfigError(f"--mode {mode}: use one of: {', '.join(_MODES)}")
    one_of_your_own(policy, mode)
    arguments = TraceArguments(trace, format_, workload, options)
    tiered = l2 is not None or l3 is not None or costs is not None
    if mode != "prefix" and tiered:
        raise InvalidArgumentError(
            f"--mode {mode}: --l2-blocks, --l3-blocks and --costs are for mode prefix"
        )
    if (scenario is not None or format_ == "page") and mode != "page":
        raise InvalidArgumentError(f"--mode {mode}: --scenario and format page are for mode page")
    if scenario is not None or format_ == "page":
        from kvlab.sim.experiments.pages import run_scenario

        result = run_scenario(
            policy=policy,
            scenario=scenario or "small_fp16_prefetch",
            trace=Path(trace) if trace is not None else None,
            workload=workload,
            seed=seed,
        )
    else:
        loaded = load_trace(arguments, seed)
        below = below_of(loaded, l2, l3, costs, servers)
        from kvlab.sim.experiments.requests import run_tiers, sizes_of

        (size,) = sizes_of(loaded, [capacity])
        if mode == "page":
            from kvlab.sim.experiments.pages import run_requests

            result = run_requests(loaded, policy=policy, capacity_blocks=size)
        else:
            result = _replay(
                loaded, policy, size, mode="prefix" if mode == "prefix" else "flat", oracle=oracle
            )
        if tiered:
            result["tiers"] = run_tiers(loaded, policy, size, below)
        result["notes"] = loaded.info.notes
    _show(result, as_json=as_json)


def _replay(
    trace: Trace, policy: str, size: int | None, *, mode: Literal["prefix", "flat"], oracle: bool
) -> dict[str, Any]:
    from kvlab.sim import prefix
    from kvlab.sim.experiments.requests import oracle_hits
    from kvlab.sim.experiments.table import SIMULATED

    with counting(f"replaying {trace.info.name}", len(trace)) as update:
        replay = prefix.run(
            trace,
            policy=policy,
            capacity_blocks=size,
            mode=mode,
            progress=lambda done, _total: update(done),
        )
    result: dict[str, Any] = {"kind": SIMULATED, "trace": trace.info.name, **replay.as_dict()}
    if oracle:
        best = oracle_hits(trace, size, mode)
        result["oracle_hits"] = best
        result["percent_of_oracle"] = 100.0 * (replay.hits / best) if best else 100.0
    return result


def _show(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        from kvlab.sim.experiments.table import to_json

        click.echo(to_json(result), nl=False)
        return
    for name, value in result.items():
        if isinstance(value, dict):
            click.echo(f"  {name.replace('_', ' ')}:")
            for inner, number in value.items():
                click.echo(f"    {inner.replace('_', ' '):<32} {_text(number)}")
        elif isinstance(value, list):
            for line in value:
                click.echo(f"  note: {line}")
        else:
            click.echo(f"  {name.replace('_', ' '):<22} {_text(value)}")


def _text(value: object) -> str:
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(number)}" for name, number in value.items())
    if isinstance(value, list | tuple):
        return " / ".join(_text(each) for each in value)
    return "inf" if value is None else str(value)
