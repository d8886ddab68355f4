"""Reading a request's body: no larger than allowed, JSON, of the right shape."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from kvlab.serve.api.errors import ApiError, from_validation

READ_SECONDS = 60.0
"""How long a client may take to send a body."""

_Schema = TypeVar("_Schema", bound=BaseModel)


async def read(request: Request, schema: type[_Schema], max_bytes: int) -> _Schema:
    """The body of a request.

    Args:
        request: The request.
        schema: What it should be.
        max_bytes: The most bytes that are read.

    Raises:
        ApiError: 400, 408, 413 or 415.
        ClientDisconnect: the client went away.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A web page may send other types to any server without asking it first.
        given = f"got {kind[:80]!r}" if kind else "got none"
        message = f"the body must be sent with Content-Type: application/json, {given}"
        raise ApiError(415, message, code="unsupported_media_type")
    try:
        raw = await asyncio.wait_for(_raw(request, max_bytes), READ_SECONDS)
    except TimeoutError:
        message = f"the body did not arrive within {READ_SECONDS:.0f} s"
        raise ApiError(408, message, code="timeout") from None
    try:
        return schema.model_validate_json(raw)
    except ValidationError as error:
        raise from_validation(error) from None


async def _raw(request: Request, max_bytes: int) -> bytes:
    # What the header says is believed when it is too much; what comes is counted all the same.
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    raw = bytearray()
    async for piece in request.stream():
        raw += piece
        if len(raw) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(raw)


def _too_large(max_bytes: int) -> ApiError:
    message = f"the body is larger than {max_bytes} bytes; the server's --max-body says how many"
    return ApiError(413, message, code="body_too_large")


__all__ = ["READ_SECONDS", "ClientDisconnect", "read"]
