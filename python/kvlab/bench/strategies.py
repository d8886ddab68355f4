"""Strategies of caching, from none to machines that share: each is a mode of a run, on processes of their own."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvlab.bench.machine import Machine
from kvlab.bench.shared import shared_tier
from kvlab.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from kvlab.bench.backend import Mode, Service
    from kvlab.bench.conversation import Sent
    from kvlab.bench.local import LocalOptions
    from kvlab.bench.outcome import Answer
    from kvlab.serve.engine.modes import Mode as StoreMode
    from kvlab.workload.schema import WorkloadRequest

__all__ = ["STRATEGIES", "WARM_UPS", "StrategiesBackend", "Strategy"]


@dataclass(frozen=True, slots=True)
class Strategy:
    """Where prompts are kept.

    Attributes:
        about: The same in words.
        tiers: Of each store.
        machines: Processes, each with a store of its own.
        shared: Whether their stores have L4.
    """

    about: str
    tiers: StoreMode
    machines: int = 1
    shared: bool = False


STRATEGIES: Mapping[Mode, Strategy] = {
    "none": Strategy("no cache: every prompt is computed", "baseline"),
    "local": Strategy("paged, L1 and L2 of one process", "cpu_offload"),
    "local+redis": Strategy("the same, and L4 on a server", "cpu_offload", shared=True),
    "apart": Strategy("two processes, L1 and L2 each, that share nothing", "cpu_offload", 2),
    "full": Strategy("two processes, L1 and L2 each, that share L4", "cpu_offload", 2, shared=True),
}
"""All of them. `apart` is what `full` is to be held against: as many machines, and no L4."""

WARM_UPS = max(each.machines for each in STRATEGIES.values())
"""Requests of a warm-up that reach every machine."""


class StrategiesBackend:
    """Processes with the model, loaded once for all strategies; see `Backend`.

    Turns of a conversation go to the machines in turn, and so do conversations: what was computed for the turn before
    is with another machine.

    Args:
        options: What runs on each machine.
        threads: Of torch, on each machine.
        machines: How many there are.
        remote: The server of L4; None to start one for each round.

    Raises:
        ModelUnavailableError: the model cannot be had.
    """

    name = "machines"
    estimated = False

    def __init__(
        self, options: LocalOptions, *, threads: int, machines: int, remote: str | None
    ) -> None:
        self._remote = remote
        self._threads = threads
        self._machines = [Machine(options, threads) for _ in range(machines)]
        try:
            loading = [machine.load() for machine in self._machines]
            said = [each.result() for each in loading][0]  # noqa: RUF015 (all are waited for)
        except BaseException:
            self.close()
            raise
        self._said = {key: value for key, value in said.items() if key != "token_bytes"}
        self.token_bytes: int | None = said["token_bytes"]

    @asynccontextmanager
    async def open(self, mode: Mode) -> AsyncIterator[Service]:
        """Its machines, with empty stores and an empty server.

        Raises:
            ConfigError: no strategy of this backend.
        """
        strategy = STRATEGIES.get(mode)
        if strategy is None or strategy.machines > len(self._machines):
            raise ConfigError(
                f"strategy {mode}: use one of {', '.join(STRATEGIES)}, on as many machines as it has"
            )
        machines = self._machines[: strategy.machines]
        with ExitStack() as stack:
            shared = stack.enter_context(shared_tier(self._remote)) if strategy.shared else {}
            try:
                await asyncio.gather(*(each.open(strategy.tiers, shared) for each in machines))
                yield _Fleet(machines)
            finally:
                await asyncio.gather(*(each.shut() for each in machines))

    def describe(self) -> dict[str, Any]:
        """The options of a machine; never where the server is."""
        return {
            **self._said,
            "backend": self.name,
            "threads": self._threads,
            "server": "started for each round" if self._remote is None else "one that was named",
        }

    def close(self) -> None:
        """Ends the processes."""
        for machine in self._machines:
            machine.close()


class _Fleet:
    """Machines that answer in turn; see `Service`."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self._machines = machines
        self._places: dict[str, int] = {}

    async def send(self, request: WorkloadRequest, sent: Sent) -> Answer:
        """Sends a request to the machine behind the one that had the turn before."""
        place = self._places.setdefault(request.session, len(self._places))
        return await self._machines[(place + request.turn) % len(self._machines)].send(
            request, sent
        )

    async def begin(self) -> None:
        """Counts begin on every machine."""
        await asyncio.gather(*(machine.begin() for machine in self._machines))

    async def restart(self) -> None:
        """No strategy is restarted."""

    async def facts(self) -> dict[str, Any]:
        """What each machine's store counted."""
        return {"machines": [await machine.facts() for machine in self._machines]}
