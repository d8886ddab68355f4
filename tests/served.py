"""An ASGI application under uvicorn, in a thread of the test."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

uvicorn = pytest.importorskip("uvicorn", reason="the 'serve' extra is not installed")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def served(
    app: Any, *, port: int = 0, before_stop: Callable[[], None] | None = None
) -> Iterator[str]:
    """The address of the running server, such as ``http://127.0.0.1:4711``.

    Args:
        app: The application.
        port: 0 for any that is free.
        before_stop: Called before the server waits for its connections to end.
    """
    listener = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(app, log_level="warning", lifespan="on", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="served")
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        if before_stop is not None:
            before_stop()
        server.should_exit = True
        thread.join(timeout=60)
        listener.close()
        assert not thread.is_alive(), "the server did not stop: does a feed go on?"
