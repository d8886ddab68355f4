"""An event loop whose clock jumps: what would wait for a moment is there at once."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Mapping
from typing import Any

from kvlab.errors import StateError

__all__ = ["VirtualTimeLoop"]


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Runs what only sleeps and waits for each other in no time; `time()` is simulated seconds.

    Nothing in it may wait for sockets, threads or processes.

    Raises:
        StateError: everything waits, and nothing that a clock brings about.
    """

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Jump(self))

    def time(self) -> float:
        """Simulated seconds since the loop was made."""
        return self.now


class _Jump(selectors.BaseSelector):
    """Takes a wait of so many seconds for their passing."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        self._loop = loop
        self._under = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise StateError("every task of the simulated run waits for another one")
        self._loop.now += max(0.0, timeout)
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._under.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._under.unregister(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._under.get_map()

    def close(self) -> None:
        self._under.close()
