"""Fleets of several sizes on several networks, each beside the same fleet without L4: the rows of `kvlab sim fleet`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kvlab.sim.experiments.plots import Figure
from kvlab.sim.fleet.load import Load
from kvlab.sim.fleet.network import Network
from kvlab.sim.fleet.simulate import SharedTier, prepare, simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvlab.sim.experiments.table import Row
    from kvlab.sim.fleet.load import Recorded
    from kvlab.sim.fleet.machines import Machine
    from kvlab.sim.fleet.simulate import Fleet, Outcome

__all__ = ["MOST_USED", "Study", "fleet_figures", "fleet_findings", "run_study"]

MOST_USED = 0.7
"""The share of a server's link that the number of servers is chosen for: beyond it waiting grows without much bound."""

_PLENTY = 1_000_000
"""Servers of which nobody waits for one: what is asked of them is what the machines want."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What is simulated.

    Attributes:
        machines: Numbers of machines.
        gigabits: Of each machine's link.
        server_gigabits: Of each server's; None for that of a machine.
        routings: How requests are sent to machines.
        network: What else is known of links and software.
        servers: How many; None for as many as keep their links below `MOST_USED`.
        server_bytes: Memory of each server; None for all that is written.
        write_queue: Bytes that each machine keeps for writing.
        l1_bytes: KV bytes of each machine's L1; None for all.
        l2_bytes: Of its L2; 0 if there is none.
        policy: What evicts in both.
        load: See `Load.of`; None for the trace as it was recorded.
        window: Seconds of the trace; None for all.
        warm_up: The share of the time whose requests are not counted.
        most: Requests at most.
        seed: Of all draws.
    """

    machines: Sequence[int]
    gigabits: Sequence[float]
    server_gigabits: float | None = None
    routings: Sequence[str] = ("round-robin",)
    network: Network = field(default_factory=Network)
    servers: int | None = None
    server_bytes: int | None = None
    write_queue: float = math.inf
    l1_bytes: int | None = None
    l2_bytes: int | None = 0
    policy: str = "lru"
    load: float | None = 0.5
    window: float | None = None
    warm_up: float = 1 / 3
    most: int = 1_000_000
    seed: int = 0

    @property
    def cells(self) -> int:
        """Rows that come of it."""
        return len(self.machines) * len(self.gigabits) * len(self.routings)


def run_study(
    recorded: Recorded,
    machine: Machine,
    study: Study,
    *,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda _done: None,
) -> tuple[list[Row], list[str]]:
    """A row for each number of machines, routing and network, and what a reader should know of the load.

    Args:
        recorded: The trace.
        machine: What computes.
        study: What is simulated.
        workers: Threads that replay machines' own tiers.
        progress: Called with the rows done, of `study.cells`.

    Raises:
        ConfigError: an unknown routing or policy.
        InvalidArgumentError: a size, load or speed that cannot be.
    """
    rows: list[Row] = []
    notes: list[str] = list(recorded.notes)
    for machines in study.machines:
        if study.load is None:
            load = Load.as_recorded(recorded)
        else:
            load = Load.of(
                recorded,
                machine,
                machines,
                load=study.load,
                window=study.window,
                most=study.most,
                seed=study.seed,
            )
        notes += [f"{machines:,} machines: {note}" for note in load.notes if note not in notes]
        for routing in study.routings:
            fleet = prepare(
                load,
                machine,
                machines,
                routing=routing,
                l1_bytes=study.l1_bytes,
                l2_bytes=study.l2_bytes,
                policy=study.policy,
                seed=study.seed,
                workers=workers,
            )
            warm_up = study.warm_up * float(load.at[-1])
            without = simulate(fleet, warm_up=warm_up)
            for gigabits in study.gigabits:
                rows.append(_cell(fleet, study, gigabits, without, warm_up))
                progress(len(rows))
    return rows, notes


def _cell(fleet: Fleet, study: Study, gigabits: float, without: Outcome, warm_up: float) -> Row:
    network = replace(
        study.network,
        machine_gigabits=gigabits,
        server_gigabits=study.server_gigabits or gigabits,
    )
    plenty = SharedTier(
        servers=_PLENTY, server_bytes=study.server_bytes, write_queue=study.write_queue
    )
    wanted = simulate(fleet, network, plenty, warm_up=warm_up)
    used = max(wanted.server_out, wanted.server_in) * _PLENTY
    needed = max(1, math.ceil(used / MOST_USED - 1e-9))
    shared = replace(plenty, servers=study.servers or needed)
    found = simulate(fleet, network, shared, warm_up=warm_up)
    return _row(fleet, network, shared, found, without) | {"servers_needed": needed}


def _row(
    fleet: Fleet, network: Network, shared: SharedTier, found: Outcome, without: Outcome
) -> Row:
    blocks = max(1, found.blocks)
    middle, middle_without = found.first_token_at(0.5), without.first_token_at(0.5)
    written = found.written_bytes + found.unshared_bytes
    return {
        "machine": fleet.machine.name,
        "machines": fleet.machines,
        "routing": fleet.routing,
        "gigabits": network.machine_gigabits,
        "server_gigabits": network.server_gigabits,
        "servers": shared.servers,
        "replicas": fleet.load.replicas,
        "requests": found.requests,
        "tier_hit_rates.l1": found.hits[0] / blocks,
        "tier_hit_rates.l2": found.hits[1] / blocks,
        "tier_hit_rates.l4": found.hits[2] / blocks,
        "left_alone_share": found.left_alone / blocks,
        "computed_share": found.computed_tokens / max(1, found.tokens),
        "computed_share_without": without.computed_tokens / max(1, without.tokens),
        "predicted_ttft_p50_ms": 1e3 * middle,
        "predicted_ttft_p95_ms": 1e3 * found.first_token_at(0.95),
        "predicted_ttft_p50_ms_without": 1e3 * middle_without,
        "predicted_ttft_p95_ms_without": 1e3 * without.first_token_at(0.95),
        "faster_p50": middle_without / middle if middle else 1.0,
        "bytes_read": found.read_bytes,
        "bytes_written": found.written_bytes,
        "unshared_share": found.unshared_bytes / written if written else 0.0,
        "server_out": found.server_out,
        "server_in": found.server_in,
        "machine_in": found.machine_in,
        "busy": found.busy,
        "busy_without": without.busy,
        "evictions": found.evicted_blocks,
    }


def fleet_figures(rows: Sequence[Row]) -> list[Figure]:
    """Times, tiers and servers over the network."""
    first = Figure(
        "first_token",
        "Predicted first token, median, against no L4",
        "line",
        rows,
        x="gigabits",
        y="faster_p50",
        series="machines",
        panel="routing",
        log_x=True,
        note="How many times sooner than the same machines without a shared tier; 1 is no gain.",
    )
    found = replace(
        first,
        name="l4_hits",
        title="Blocks from L4",
        y="tier_hit_rates.l4",
        note="Of all blocks of the counted requests.",
    )
    needed = replace(
        first,
        name="servers",
        title="Servers needed",
        y="servers_needed",
        note=f"So that each one's link is at most {100 * MOST_USED:.0f} % busy, in its busier direction.",
    )
    return [first, found, needed]


def fleet_findings(machine: Machine, study: Study) -> list[str]:
    """From when on a network is fast enough, and what the rows do not say."""
    lines = [f"Simulated. {machine.name}: {machine.source}."]
    for tokens in (2_048, 32_768):
        line = machine.break_even_gigabits(tokens) / study.network.wire_share
        lines.append(
            f"Fetching {tokens:,} tokens over a free link is as fast as computing them at {line:.3g} Gb/s."
        )
    for whose, rate in (
        ("a machine", study.network.client_rate),
        ("a server", study.network.server_rate),
    ):
        if math.isfinite(rate):
            line = 8e-9 * rate / study.network.wire_share
            lines.append(f"The software of {whose} is no faster than a link of {line:.3g} Gb/s.")
    if "sticky" in study.routings:
        lines.append(
            "Sticky conversations find what they need where they were: a shared tier gives them little "
            "but the start of a new machine."
        )
    return lines
