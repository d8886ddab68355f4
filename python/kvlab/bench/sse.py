"""Server-sent events, as far as OpenAI-compatible servers send them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from kvlab.errors import EndpointError

__all__ = ["chunks", "shorten"]

_LONGEST = 1 << 22


async def chunks(stream: AsyncIterable[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a stream, until `[DONE]`.

    Comments, other fields and empty lines are passed over.

    Raises:
        EndpointError: an event is no JSON object or has a line of more than 4 MiB, or the server sent an error in
            the stream, or the stream ended without `[DONE]`.
    """
    async for line in _lines(stream):
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            raise EndpointError(f"an event is no JSON: {shorten(data)}", kind="garbage") from None
        if not isinstance(chunk, dict):
            raise EndpointError(f"an event is no JSON object: {shorten(data)}", kind="garbage")
        if chunk.get("error"):
            raise EndpointError(f"the server broke off: {shorten(data)}", kind="status")
        yield chunk
    raise EndpointError("the stream ended before data: [DONE]", kind="broken")


async def _lines(stream: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async for piece in stream:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.rstrip(b"\r")
        if len(rest) > _LONGEST:
            raise EndpointError(f"a line does not end: {shorten(rest)}", kind="garbage")
    if rest:
        yield rest


def shorten(data: bytes | str, most: int = 200) -> str:
    """Text of what a server sent, cut for a message."""
    text = data if isinstance(data, str) else data[: 4 * most].decode("utf-8", "replace")
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."
