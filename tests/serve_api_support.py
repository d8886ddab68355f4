"""What the tests of the server's HTTP face share: a tiny model with a tokenizer, and a server in a thread."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("fastapi", reason="the 'serve' extra is not installed")

from kvlab.serve.engine.modes import TierSizes
from kvlab.serve.options import ServeOptions
from kvlab.serve.run import Service, listen, open_service, serve
from serve_support import byte_tokenizer
from tiny_models import build

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kvlab.serve.engine import EngineCounters

MODEL = "tiny"
CONTEXT = 1024
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'tool' %}{{ raise_exception('there are no tools') }}{% endif %}"
    "{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
SMALL = TierSizes(l1="32MiB", l2="16MiB", l3="256MiB")


def make_model(path: Path) -> Path:
    """A tiny llama whose tokens are bytes; no token ends an answer."""
    build("llama").save_pretrained(path)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    return path


class Running:
    """A server in a thread of the test.

    Attributes:
        url: Where it listens.
        service: What it is made of.
    """

    def __init__(self, service: Service, at: socket.socket) -> None:
        self.url = f"http://127.0.0.1:{at.getsockname()[1]}"
        self.service = service
        self._told: asyncio.Queue[None] = asyncio.Queue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._work, args=(at,), name="served")
        self._thread.start()

    def counters(self) -> EngineCounters:
        """What the engine has done."""
        return self.service.engine.snapshot().counters

    def stop(self) -> None:
        """What a SIGTERM does; the second time, too."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._told.put_nowait, None)

    def _work(self, at: socket.socket) -> None:
        try:
            asyncio.run(self._serve(at))
        except BaseException as error:  # noqa: BLE001 (told at the end)
            self._failed = error
        finally:
            self._ready.set()

    def wait_ready(self) -> None:
        """Waits until requests are taken."""
        assert self._ready.wait(60)
        assert self._failed is None, self._failed

    def wait_ended(self) -> None:
        """Waits until it ended.

        Raises:
            BaseException: why it ended, if nobody told it to.
        """
        self._thread.join(60)
        assert not self._thread.is_alive()
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed

    def end(self) -> None:
        """Ends it, if it has not ended yet."""
        if self._thread.is_alive():
            self.stop()
        self.wait_ended()

    async def _serve(self, at: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        await serve(self.service, at, until=self._told.get, drain_s=60, ready=self._ready.set)


@contextmanager
def running(
    directory: Path, *, send_buffer: int | None = None, **settings: Any
) -> Iterator[Running]:
    """A server of the tiny model as `kvlab serve` runs it, signals apart; its files are in `directory`."""
    defaults: dict[str, Any] = {"name": MODEL, "store": directory / "store", "sizes": SMALL}
    if "model" not in settings:
        settings["model"] = str(make_model(directory / "model"))
    options = ServeOptions(**(defaults | settings))
    with open_service(options) as service:
        at = listen(options.host, 0)
        if send_buffer is not None:
            at.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        server = Running(service, at)
        try:
            server.wait_ready()
            yield server
        finally:
            server.end()


def until(what: Callable[[], bool], *, within: float = 120.0) -> None:
    """Waits for something that is to become true."""
    end = time.monotonic() + within
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
