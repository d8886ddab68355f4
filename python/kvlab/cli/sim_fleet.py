"""`kvlab sim fleet`: many machines, one shared tier."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvlab.cli._common import json_option
from kvlab.cli._sim import (
    TraceArguments,
    counting,
    finish,
    items,
    load_costs,
    load_source,
    out_option,
    trace_options,
    workers_option,
    writing,
)
from kvlab.errors import InvalidArgumentError

if TYPE_CHECKING:
    from kvlab.sim.fleet import Machine, Network

__all__ = ["sim_fleet"]

_COLUMNS = (
    "routing", "machines", "gigabits", "servers", "tier_hit_rates.l1", "tier_hit_rates.l2", "tier_hit_rates.l4",
    "computed_share", "computed_share_without", "predicted_ttft_p50_ms", "predicted_ttft_p50_ms_without",
    "predicted_ttft_p95_ms", "predicted_ttft_p95_ms_without", "server_out", "server_in", "unshared_share",
)  # fmt: skip


@click.command("fleet")
@trace_options
@click.option(
    "--machines", default="1,10,100", show_default=True, help="How many, several with commas."
)
@click.option(
    "--network",
    "networks",
    default="1,10,25,100",
    show_default=True,
    help="Gb/s of each link, likewise.",
)
@click.option(
    "--server-network", type=float, help="Gb/s of each server's link. [default: as a machine's]"
)
@click.option(
    "--servers",
    type=click.IntRange(min=1),
    help="Of L4. [default: as many as keep links below 70 %]",
)
@click.option(
    "--server-memory", default="inf", show_default=True, help="Bytes of each, such as 512GiB."
)
@click.option(
    "--routing",
    default="round-robin",
    show_default=True,
    help="round-robin, sticky, least-loaded, random; several with commas.",
)
@click.option("--model", default="llama-3.1-8b", show_default=True, help="A preset or directory.")
@click.option("--accelerator", default="h100", show_default=True, help="a100, l40s or h100.")
@click.option(
    "--accelerators", type=click.IntRange(min=1), default=1, show_default=True, help="Of a machine."
)
@click.option(
    "--mfu", type=float, help="Share of their operations that a prefill reaches. [default: 0.4]"
)
@click.option(
    "--prefill-tokens-per-second", type=float, help="As you measured it, in place of operations."
)
@click.option(
    "--token-bytes", type=click.IntRange(min=1), help="KV bytes a token, in place of the model's."
)
@click.option(
    "--costs",
    type=click.Path(path_type=Path),
    help="From `kvlab sim calibrate`: a machine as it was measured, in place of model and accelerator.",
)
@click.option(
    "--l1", default="48GiB", show_default=True, help="KV bytes of a machine's L1, or inf."
)
@click.option("--l2", default="256GiB", show_default=True, help="Of its L2, inf, or 0.")
@click.option(
    "--policy", default="lru", show_default=True, help="Of L1 and L2; see `kvlab sim policies`."
)
@click.option(
    "--load",
    default="0.5",
    show_default=True,
    help="Work that comes, by what machines can do with nothing cached; or recorded: the trace once, as it is.",
)
@click.option("--minutes", type=float, help="Of the trace. [default: all]")
@click.option(
    "--warm-up",
    type=click.FloatRange(0, 1, max_open=True),
    default=1 / 3,
    help="Share of the time that is not counted. [default: a third]",
)
@click.option("--most-requests", type=click.IntRange(min=1), default=1_000_000, show_default=True)
@click.option(
    "--merge",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Blocks of the trace that count as one.",
)
@click.option("--round-trip", type=float, help="Milliseconds. [default: 0.2]")
@click.option(
    "--key-time",
    type=float,
    help="Microseconds that a look-up takes for each 16 tokens. [default: measured]",
)
@click.option(
    "--client-rate", help="Bytes a second of a machine's software, or inf. [default: measured]"
)
@click.option(
    "--server-rate", help="Bytes a second of a server's software, or inf. [default: measured]"
)
@click.option(
    "--write-queue",
    default="256MiB",
    show_default=True,
    help="Bytes that a machine keeps for writing, or inf.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all draws."
)
@workers_option
@out_option
@json_option
def sim_fleet(
    *,
    trace: str | None,
    format_: str | None,
    workload: str | None,
    options: tuple[str, ...],
    machines: str,
    networks: str,
    server_network: float | None,
    servers: int | None,
    server_memory: str,
    routing: str,
    load: str,
    minutes: float | None,
    warm_up: float,
    most_requests: int,
    merge: int,
    l1: str,
    l2: str,
    policy: str,
    write_queue: str,
    seed: int,
    workers: int | None,
    out: Path | None,
    as_json: bool,
    **others: Any,
) -> None:
    """Many machines with tiers of their own beside one shared L4, on networks of several speeds. Simulated.

    Says what comes from which tier, how long the first token takes with and without L4, and how many servers it needs.
    """
    start = time.perf_counter()
    from kvlab.sim.experiments.artifacts import Artifacts
    from kvlab.sim.fleet.load import record
    from kvlab.sim.fleet.study import Study, fleet_figures, fleet_findings, run_study

    arguments = TraceArguments(trace, format_, workload, options)
    study = Study(
        machines=[_whole("--machines", text) for text in items([machines])],
        gigabits=[_number("--network", text) for text in items([networks])],
        server_gigabits=server_network,
        routings=items([routing]),
        network=_network(others),
        servers=servers,
        server_bytes=_size(server_memory),
        write_queue=math.inf if write_queue == "inf" else _size(write_queue) or 0,
        l1_bytes=_size(l1),
        l2_bytes=_size(l2),
        policy=policy,
        load=None if load == "recorded" else _number("--load", load),
        window=None if minutes is None else 60 * minutes,
        warm_up=warm_up,
        most=most_requests,
        seed=seed,
    )
    machine = _machine(others)
    with (
        writing("--trace", Path(arguments.name)),
        counting(f"reading {arguments.name}") as update,
    ):
        source, info = load_source(arguments)
        recorded = record(source, info, merge=merge, progress=update)
    with counting("simulating fleets", study.cells) as update:
        rows, notes = run_study(recorded, machine, study, workers=workers, progress=update)
    done = Artifacts(
        title=f"{recorded.name}: fleets",
        config={
            "command": "fleet", **arguments.config(), "machine": machine.name, "source": machine.source,
            "study": _plain(study), "merge": merge,
        },
        rows=rows,
        figures=fleet_figures(rows),
        findings=fleet_findings(machine, study),
        extra={"notes": notes},
        seconds=time.perf_counter() - start,
    )  # fmt: skip
    finish(done, out, as_json=as_json, columns=_COLUMNS)


def _plain(study: Any) -> dict[str, Any]:
    """A study ready for JSON, which has no infinity."""
    from dataclasses import asdict

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(inner) for key, inner in value.items()}
        return "inf" if value == math.inf else value

    plain: dict[str, Any] = finite(asdict(study))
    return plain


def _size(text: str) -> int | None:
    from kvlab import parse_size

    return None if text == "inf" else parse_size(text)


def _whole(option: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise InvalidArgumentError(f"{option} {text}: give whole numbers above 0, such as 1,10,100")
    return int(text)


def _number(option: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise InvalidArgumentError(f"{option} {text}: give a number above 0")
    return number


def _network(others: dict[str, Any]) -> Network:
    from kvlab.sim.fleet.network import Network

    network = Network()
    if others["round_trip"] is not None:
        network = replace(network, round_trip=others["round_trip"] / 1e3)
    if others["key_time"] is not None:
        network = replace(network, key_seconds=others["key_time"] / 1e6)
    for name in ("client_rate", "server_rate"):
        if others[name] is not None:
            network = replace(network, **{name: _size(others[name]) or math.inf})
    return network


def _machine(others: dict[str, Any]) -> Machine:
    from kvlab.sim.fleet.machines import MFU, Machine, machine_of

    if others["costs"] is not None:
        model = load_costs(others["costs"])
        size = others["token_bytes"] or model.costs.token_bytes
        return Machine("as calibrated", replace(model.costs, token_bytes=size), model.describe())
    return machine_of(
        others["model"],
        accelerator=others["accelerator"],
        count=others["accelerators"],
        mfu=MFU if others["mfu"] is None else others["mfu"],
        tokens_per_second=others["prefill_tokens_per_second"],
        token_bytes=others["token_bytes"],
    )
