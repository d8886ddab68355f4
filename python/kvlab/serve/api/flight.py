"""A request under way in the engine, as the event loop sees it."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from kvlab.serve.engine.request import Chunk

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvlab.serve.engine.request import Event, GenerationRequest, Handle, Sink


class Flight:
    """Carries events from the engine's thread to one coroutine.

    The engine never waits: what nobody has read yet is joined into one chunk, so a reader that is slow costs
    the text of its answer and nothing more.

    Args:
        submit: The engine's.
        request: What to submit.

    Raises:
        KvlabError: the engine did not take it.
    """

    def __init__(
        self, submit: Callable[[GenerationRequest, Sink], Handle], request: GenerationRequest
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._handle = submit(request, self._sink)

    @property
    def id(self) -> str:
        """The request's."""
        return self._handle.id

    def cancel(self) -> None:
        """Asks for its end. For one that has ended, nothing happens."""
        self._handle.cancel()

    async def next(self, timeout: float | None = None) -> Event | None:
        """The next event; waits for it, at most so many seconds.

        Returns:
            None if the time was over first.
        """
        while not self._waiting:
            self._arrived.clear()
            try:
                async with asyncio.timeout(timeout):
                    await self._arrived.wait()
            except TimeoutError:
                return None
        return self._waiting.popleft()

    def _sink(self, event: Event) -> None:
        self._loop.call_soon_threadsafe(self._put, event)

    def _put(self, event: Event) -> None:
        last = self._waiting[-1] if self._waiting else None
        if isinstance(event, Chunk) and isinstance(last, Chunk):
            text, ids = last.text + event.text, last.token_ids + event.token_ids
            self._waiting[-1] = Chunk(event.request_id, text, ids)
        else:
            self._waiting.append(event)
        self._arrived.set()
