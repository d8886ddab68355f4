"""Many machines with tiers of their own and one shared L4, simulated: what this machine is too small to run.

`machines` says what a forward costs, `load` makes a trace as long and dense as the machines need, `routing` sends its
requests to machines, `local` replays each machine's own tiers on the live policies, `network`, `shared` and `rule` are
the links, what the servers hold and whether fetching pays, and `simulate` puts the clock to it.

Nothing in here is a measurement. Hits and bytes are counted exactly for the model; every time follows from the costs
that are given.
"""

from __future__ import annotations

from kvlab.sim.fleet.load import Load, Recorded, record
from kvlab.sim.fleet.machines import Machine, machine_of
from kvlab.sim.fleet.network import Network
from kvlab.sim.fleet.simulate import Fleet, Outcome, SharedTier, prepare, simulate

__all__ = [
    "Fleet",
    "Load",
    "Machine",
    "Network",
    "Outcome",
    "Recorded",
    "SharedTier",
    "machine_of",
    "prepare",
    "record",
    "simulate",
]
