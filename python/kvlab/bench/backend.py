"""What a run sends its requests to."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvlab.bench.conversation import Sent
    from kvlab.bench.outcome import Answer
    from kvlab.workload.schema import WorkloadRequest

__all__ = ["MODES", "RESTARTED", "Backend", "Mode", "Service"]

Mode = Literal[
    "baseline", "prefix_reuse", "cpu_offload", "nvme", "remote", "generate",
    "none", "local", "local+redis", "apart", "full",
]  # fmt: skip
"""`MODES`, and `kvlab.bench.strategies.STRATEGIES`."""

MODES: Mapping[str, str] = {
    "baseline": "no cache: every prompt is computed",
    "prefix_reuse": "L1: prefixes in the engine's own memory",
    "cpu_offload": "L1 and L2: what L1 gives up stays in host memory",
    "nvme": "L1, L2 and L3 on disk, and a restart in the middle of the run",
    "remote": "L1, L2 and L4 on a server that machines share, and another machine in the middle of the run",
    "generate": "plain transformers `model.generate` without engine or cache, for what a miss costs",
}
"""The modes of `kvlab bench`."""

RESTARTED: frozenset[Mode] = frozenset({"nvme", "remote"})
"""Those whose engine and store end in the middle and begin again."""


class Service(Protocol):
    """A backend in one mode, its caches empty when it was opened."""

    async def send(self, request: WorkloadRequest, sent: Sent) -> Answer:
        """Sends one request and waits for the whole answer.

        Raises:
            KvlabError: the request failed; others go on.
        """
        ...

    async def begin(self) -> None:
        """The warm-up is over: what `facts` tells is counted from now on."""
        ...

    async def restart(self) -> None:
        """Ends engine and store, or the server, and starts them again: only what is on disk stays.

        In mode `remote` it is another machine that goes on, with empty tiers: only what the shared tier has stays.

        Raises:
            KvlabError: it did not come back.
        """
        ...

    async def facts(self) -> dict[str, Any]:
        """What the caches did since `begin`, for the report; empty where that is not known."""
        ...


class Backend(Protocol):
    """Where requests go.

    Attributes:
        name: `synthetic`, `local`, `live` or `machines`.
        estimated: Whether times are estimates, and clocks simulated.
        token_bytes: KV bytes of a token; None where that is not known.
    """

    name: str
    estimated: bool
    token_bytes: int | None

    def open(self, mode: Mode) -> AbstractAsyncContextManager[Service]:
        """Brings up a mode with empty caches; closes it again.

        Raises:
            KvlabError: it cannot be brought up.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """What results depend on, for the report; no paths of the machine."""
        ...

    def close(self) -> None:
        """Lets go of what all modes shared."""
        ...
