"""A server, and beside it the plain model in this process: what the whole way over HTTP costs a miss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from kvlab.bench.backend import Backend, Mode, Service

__all__ = ["MixedBackend"]


class MixedBackend:
    """Mode `generate` in this process, every other mode by a server; see `Backend`.

    Args:
        server: What serves.
        plain: What generates.
    """

    estimated = False

    def __init__(self, server: Backend, plain: Backend) -> None:
        self.name = server.name
        self.token_bytes = server.token_bytes or plain.token_bytes
        self._server = server
        self._plain = plain

    def open(self, mode: Mode) -> AbstractAsyncContextManager[Service]:
        """Brings up a mode where it belongs."""
        return (self._plain if mode == "generate" else self._server).open(mode)

    def describe(self) -> dict[str, Any]:
        """The server's, and what generates beside it."""
        return {**self._server.describe(), "generate": self._plain.describe()}

    def close(self) -> None:
        """Closes both."""
        self._server.close()
        self._plain.close()
