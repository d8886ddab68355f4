"""`kvlab sim run`: one trace, one policy, one size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvlab.cli._common import json_option
from kvlab.cli._sim import (
    TraceArguments,
    counting,
    load_costs,
    load_trace,
    print_table,
    trace_options,
)
from kvlab.errors import ConfigError, InvalidArgumentError

if TYPE_CHECKING:
    from kvlab.sim.trace import Trace

__all__ = ["sim_run"]

_MODES = ("prefix", "page", "flat")


@click.command("run")
@trace_options()
@click.option("--mode", default="prefix", show_default=True, help="prefix, page or flat.")
@click.option("--policy", default="lru", show_default=True, help="See `kvlab sim policies`.")
@click.option(
    "--capacity-blocks",
    "capacity",
    default="inf",
    show_default=True,
    help="Blocks that fit, a share of the distinct ones such as 5%, or inf.",
)
@click.option(
    "--costs", type=click.Path(path_type=Path), help="From `kvlab sim calibrate`: estimates times, too."
)
@click.option("--servers", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--oracle", is_flag=True, help="Say which part of the oracle's hits that is.")
@json_option
def sim_run(
    *,
    trace: str,
    format_: str,
    options: tuple[str, ...],
    mode: str,
    policy: str,
    capacity: str,
    costs: Path | None,
    servers: int,
    oracle: bool,
    as_json: bool,
) -> None:
    """Replay one trace under one policy at one size. Simulated: no payload is moved.

    In mode prefix a block hits if all before it do; in flat and page mode every block is on its own.
    """
    if mode not in _MODES:
        raise ConfigError(f"--mode {mode}: use one of: {', '.join(_MODES)}")
    model = load_costs(costs)
    loaded = load_trace(TraceArguments(trace, format_, options))
    from kvlab.sim.experiments.requests import sizes_of

    (size,) = sizes_of(loaded, [capacity])
    if mode == "page":
        if model is not None or oracle:
            raise InvalidArgumentError("--costs and --oracle: for mode prefix and flat only")
        from kvlab.sim.experiments.pages import run_requests

        result: dict[str, Any] = run_requests(loaded, policy=policy, capacity_blocks=size)
    else:
        result = _replay(loaded, policy, size, mode, oracle=oracle)
        if model is not None:
            result |= _estimate(loaded, result, model, servers)
    result.pop("hits_by_request", None)
    result["notes"] = loaded.info.notes
    if as_json:
        from kvlab.sim.experiments.table import to_json

        click.echo(to_json(result), nl=False)
        return
    for name, value in result.items():
        if not isinstance(value, list):
            print_line(name, value)
    for note in loaded.info.notes:
        click.echo(f"  note: {note}")


def _replay(trace: Trace, policy: str, size: int | None, mode: str, *, oracle: bool) -> dict[str, Any]:
    from kvlab.sim import prefix
    from kvlab.sim.experiments.requests import oracle_hits
    from kvlab.sim.experiments.table import SIMULATED

    assert mode in {"prefix", "flat"}
    with counting(f"replaying {trace.info.name}", len(trace)) as update:
        replay = prefix.run(
            trace,
            policy=policy,
            capacity_blocks=size,
            mode="prefix" if mode == "prefix" else "flat",
            progress=lambda done, _total: update(done),
        )
    result: dict[str, Any] = {"kind": SIMULATED, "trace": trace.info.name, **replay.as_dict()}
    result["hits_by_request"] = replay.hits_by_request
    if oracle:
        best = oracle_hits(trace, size, replay.mode)
        result["oracle_hits"] = best
        result["percent_of_oracle"] = 100.0 * replay.hits / best if best else 100.0
    return result
