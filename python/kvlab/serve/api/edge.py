"""What every request passes first: its id, the host that it means, and a last resort for faults."""

from __future__ import annotations

import logging
import re
import uuid
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders

from kvlab.serve.api.errors import ApiError, internal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger("kvlab.serve")

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_PORT = re.compile(r":\d*$")


class Edge:
    """Wraps the application.

    Args:
        app: What is wrapped.
        hosts: The names that a request may call the server by; None for any. A server on loopback knows only
            loopback's: a web page that has its own name point there is refused.
    """

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str] | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            refusal = self._foreign(headers.get("host", ""))
            await (refusal.response() if refusal else self._app)(scope, receive, send_with_id)
        except Exception:
            _log.exception("%s %s (%s) failed", scope["method"], scope["path"], request_id)
            if started:
                raise  # the connection is cut, so that nobody takes the rest for whole
            await internal().response()(scope, receive, send_with_id)

    def _foreign(self, host: str) -> ApiError | None:
        name = _PORT.sub("", host).lower()
        if self._hosts is None or name in self._hosts:
            return None
        known = ", ".join(sorted(self._hosts))
        message = f"the server is not known as {host[:80]!r}, but as {known}"
        return ApiError(421, message, code="unknown_host")
