"""What a server answers while its model is loaded: that it is alive, and not ready yet."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

__all__ = ["answering"]

_RETRY_SECONDS = 1
_PATIENCE_SECONDS = 5.0
_MOST_BODY = 8 << 20
_POLL_SECONDS = 0.05


@contextmanager
def answering(at: socket.socket) -> Iterator[None]:
    """Answers at a listening socket for as long as the block lasts; who connects later waits for whoever listens next.

    `/health` is 200, since the process lives. `/ready` is 503 with the status `loading`; so is everything else, as an
    OpenAI error whose code is `loading`, with `Retry-After`.
    """
    server = ThreadingHTTPServer(at.getsockname()[:2], _Loading, bind_and_activate=False)
    server.socket.close()
    server.socket = at.dup()
    thread = threading.Thread(
        target=server.serve_forever, args=(_POLL_SECONDS,), name="kvlab-loading"
    )
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Loading(BaseHTTPRequestHandler):
    """One connection, one answer."""

    timeout = _PATIENCE_SECONDS

    def do_GET(self) -> None:
        """The probes, and anything else that is asked for."""
        path = self.path.partition("?")[0]
        if path == "/health":
            self._send(HTTPStatus.OK, {"status": "ok"})
        elif path == "/ready":
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, {"status": "loading"})
        else:
            self._refuse()

    def do_POST(self) -> None:
        """A request that is too early."""
        # A body that is not read would reset the connection before the answer arrives.
        with suppress(ValueError):
            length = int(self.headers.get("Content-Length", "0"))
            self.rfile.read(min(max(length, 0), _MOST_BODY))
        self._refuse()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """Probes come once a second; nobody wants to read of them."""

    def _refuse(self) -> None:
        error = {
            "message": f"the model is being loaded: try again in {_RETRY_SECONDS} s; GET /ready says when",
            "type": "server_error",
            "param": None,
            "code": "loading",
        }
        self._send(HTTPStatus.SERVICE_UNAVAILABLE, {"error": error})

    def _send(self, status: HTTPStatus, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        if status != HTTPStatus.OK:
            self.send_header("Retry-After", str(_RETRY_SECONDS))
        self.end_headers()
        self.wfile.write(content)
