"""Answers as server-sent events, or in one piece; and readers that are slow or gone."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.responses import JSONResponse, Response

from kvlab.serve.api.errors import ApiError, closing, from_engine
from kvlab.serve.engine.request import Cancelled, Chunk, Failed, Finished

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from starlette.types import Receive, Scope, Send

    from kvlab.serve.api.flight import Flight
    from kvlab.serve.api.replies import Reply

_log = logging.getLogger("kvlab.serve")

PING_SECONDS = 15.0
"""Silence in a stream after which a comment is sent, so that proxies and clients see that it lives."""
PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
STALL_SECONDS = 60.0
"""How long a reader may take nothing of a stream before its request is given up."""

_Result = TypeVar("_Result")


class Answer(Response):
    """The answer of a request under way. Whatever ends it, the request ends in the engine, too.

    Args:
        flight: The request.
        reply: How its answer looks.
        param: The field of the request that held the prompt.
    """

    def __init__(self, flight: Flight, reply: Reply, *, param: str) -> None:
        super().__init__()
        self._flight = flight
        self._reply = reply
        self._param = param

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer, until its end or the client's."""
        try:
            await _unless_gone(receive, self._send(scope, receive, send))
        finally:
            self._flight.cancel()

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            text, end = await self._collect()
            response = JSONResponse(self._reply.whole(text, end))
        except ApiError as error:
            response = error.response()
        await response(scope, receive, send)

    async def _collect(self) -> tuple[str, Finished]:
        text = ""
        while True:
            event = await self._flight.next()
            if isinstance(event, Chunk):
                text += event.text
            elif isinstance(event, Finished):
                _note(event)
                return text, event
            elif isinstance(event, Cancelled | Failed):
                raise self._unfinished(event)

    def _unfinished(self, event: Cancelled | Failed) -> ApiError:
        if isinstance(event, Cancelled):
            return closing()  # a client that has gone is not told anything
        _log.error("%s failed: %s", event.request_id, event.error)
        return from_engine(event.error, self._param)


class Stream(Answer):
    """An answer in pieces, with comments as signs of life while nothing comes."""

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        begun = False
        try:
            while True:
                event = await self._flight.next(PING_SECONDS)
                if event is None:
                    await _write(send, PING)
                    continue
                if not begun and isinstance(event, Chunk | Finished):
                    # Not before there is a token: many clients take the first event for the first token.
                    begun = True
                    await _write(send, b"".join(map(_event, self._reply.opening())))
                if isinstance(event, Chunk) and event.text:
                    await _write(send, _event(self._reply.piece(event.text)))
                elif isinstance(event, Finished | Cancelled | Failed):
                    await _write(send, self._last(event))
                    break
        except TimeoutError:
            # Without an end the client knows that it has not got all.
            _log.warning("%s given up: its reader took nothing for a while", self._flight.id)
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _last(self, event: Finished | Cancelled | Failed) -> bytes:
        if isinstance(event, Finished):
            _note(event)
            chunks = self._reply.closing(event)
        else:
            chunks = [self._unfinished(event).body()]
        return b"".join(map(_event, chunks)) + DONE


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, _Result]) -> _Result | None:
    """Does the work, or drops it when the client goes away; then the result is None."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _write(send: Send, piece: bytes) -> None:
    """Sends a piece of a stream.

    Raises:
        TimeoutError: the reader took nothing for `STALL_SECONDS`.
    """
    async with asyncio.timeout(STALL_SECONDS):
        await send({"type": "http.response.body", "body": piece, "more_body": True})


def _event(value: Mapping[str, Any]) -> bytes:
    # In ASCII: some clients take U+2028 and its like for the end of a line.
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _note(end: Finished) -> None:
    usage, timings = end.usage, end.timings
    _log.info(
        "%s: %d prompt tokens (%d cached), %d generated, first token after %.0f ms, %.0f ms in all",
        end.request_id,
        usage.prompt_tokens,
        usage.cached.total,
        usage.completion_tokens,
        timings.first_token_s * 1e3,
        (timings.first_token_s + timings.predicted_s) * 1e3,
    )
