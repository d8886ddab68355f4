"""The policy lab: traces replayed through the policies that run live, on tiers that are simulated.

Nothing in here is a measurement of a machine: hits and bytes are counted exactly, milliseconds come
from the model that a scenario configures.
"""

from __future__ import annotations

from kvlab.sim.policy import PolicyBase
from kvlab.sim.request import Request

__all__ = ["PolicyBase", "Request"]
