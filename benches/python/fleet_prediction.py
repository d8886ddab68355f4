"""What `kvlab sim fleet` says of a second machine that asks for what a first one has computed, from measured costs."""

from __future__ import annotations

import math

from kvlab.sim.fleet import Load, Machine, Network, SharedTier, prepare, record, simulate
from kvlab.sim.formats import TraceInfo
from kvlab.sim.request import Request
from kvlab.sim.tiers import Costs

NEW = 50
"""Tokens behind each prefix that nobody has."""
BLOCK = 16


def machine_from(measured: dict[str, float], token_bytes: int) -> tuple[Machine, Network]:
    """The simulator's machine and network, as they were measured."""
    costs = Costs(
        (
            measured["forward_seconds"],
            measured["forward_seconds_per_token"],
            measured["forward_seconds_per_token_and_context"],
        ),
        0.0,
        token_bytes,
        overlap=measured["overlap"],
    )
    network = Network(
        machine_gigabits=math.inf,
        server_gigabits=math.inf,
        round_trip=measured["lookup_seconds"] / 2,
        key_seconds=measured["lookup_seconds_per_block"],
        read_seconds=measured["read_seconds"],
        client_rate=measured["read_bytes_per_second"],
    )
    return Machine("this machine", costs, "measured"), network


def predicted(measured: dict[str, float], token_bytes: int, prefix: int) -> dict[str, float]:
    """The simulator's first token behind a prefix that another machine has computed, and of that machine's."""
    machine, network = machine_from(measured, token_bytes)
    shared = list(range(prefix // BLOCK))
    tokens = prefix + NEW
    tail = -(-NEW // BLOCK)
    requests = [
        Request(
            3.6e6 * turn, [*shared, *range(1000 * (turn + 1), 1000 * (turn + 1) + tail)], tokens
        )
        for turn in range(2)
    ]
    load = Load.as_recorded(record(requests, TraceInfo("second machine", BLOCK)))
    fleet = prepare(load, machine, 2, workers=1)
    first = simulate(fleet, network, SharedTier()).first_token
    return {"computed": float(first[0]), "from_l4": float(first[1])}
