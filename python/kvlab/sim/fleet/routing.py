"""Which machine a request goes to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kvlab.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvlab.sim.fleet.load import Load
    from kvlab.sim.fleet.machines import Machine

__all__ = ["ROUTINGS", "route"]

ROUTINGS = ("round-robin", "sticky", "least-loaded", "random")


def route(
    load: Load, machines: int, routing: str, machine: Machine, *, seed: int = 0
) -> NDArray[np.int64]:
    """A machine for each request, `[requests]`.

    `sticky` draws a machine for each conversation. `least-loaded` gives a request to the machine with the least work
    ahead of it, or that has been idle for longest; like a balancer that knows nothing of caches, it counts the whole
    prompt.

    Raises:
        ConfigError: an unknown routing.
    """
    if routing not in ROUTINGS:
        raise ConfigError(f"routing = {routing}: use one of: {', '.join(ROUTINGS)}")
    draw = np.random.default_rng(seed)
    count = len(load)
    if routing == "round-robin":
        return np.arange(count) % machines
    if routing == "random":
        return draw.integers(machines, size=count)
    if routing == "sticky":
        _, numbers = np.unique(load.conversation, return_inverse=True)
        found: NDArray[np.int64] = draw.integers(machines, size=int(numbers.max()) + 1)[numbers]
        return found
    work = load.recorded.work(machine)[load.base] / machine.costs.concurrency
    free = np.zeros(machines)
    chosen = np.empty(count, np.int64)
    for request, (at, seconds) in enumerate(zip(load.at.tolist(), work.tolist(), strict=True)):
        least = int(free.argmin())
        chosen[request] = least
        free[least] = max(float(free[least]), at) + seconds
    return chosen
