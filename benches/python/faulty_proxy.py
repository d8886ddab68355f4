"""A server's mishaps, on purpose: a proxy that passes bytes on until a fault begins."""

from __future__ import annotations

import random
import re
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    Address = tuple[str, int]

PIECE = 1 << 16
# A GETRANGE of a run (":r:") that does not begin with its header: what was found is being read.
_READ = re.compile(rb":r:[^\r]*\r\n\$\d+\r\n[1-9]")
# More than the name and the numbers of one command.
_OVERLAP = 256


def _nothing(_: Proxy) -> None:
    pass


def as_it_comes(link: Link, data: bytes) -> None:
    """Passes an answer on."""
    link.client.sendall(data)


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and when.

    Attributes:
        strike: Done once, as it begins.
        passes: How answers go on from then.
        after: Bytes of runs that are let through before it begins: 0 for between look-up and read; None for at once,
            before anything is asked.
    """

    strike: Callable[[Proxy], None] = _nothing
    passes: Callable[[Link, bytes], None] = as_it_comes
    after: int | None = 0


class Link:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        """Takes both over; `close` ends them."""
        self.proxy = proxy
        self.client = client
        self._server = server
        self.asked = 0.0
        for work in (self._ask, self._answer):
            proxy.start(work)

    def close(self) -> None:
        """Both sides see it closed."""
        for end in (self.client, self._server):
            with suppress(OSError):  # the other side was faster
                end.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Gives the sockets back; nobody uses them any more."""
        self.client.close()
        self._server.close()

    def _ask(self) -> None:
        tail = b""
        with suppress(OSError):  # either side was closed
            while data := self.client.recv(PIECE):
                tail = tail[-_OVERLAP:] + data
                if _READ.search(tail):
                    self.proxy.reads_begin()
                self.asked = time.monotonic()
                self._server.sendall(data)
        self.close()

    def _answer(self) -> None:
        with suppress(OSError):
            while data := self._server.recv(PIECE):
                well, ill = self.proxy.divide(data)
                if well:
                    self.client.sendall(well)
                if ill:
                    self.proxy.fault.passes(self, ill)
        self.close()


class Proxy:
    """Listens on a port of the loopback interface and passes bytes to a server and back. A context manager."""

    def __init__(self, server: Address, fault: Fault) -> None:
        """Everything goes well until the fault's time has come."""
        self.server = server
        self.fault = fault
        self.ends = threading.Event()
        self.struck = False
        self._let_through = fault.after
        self._reads = False
        self._lock = threading.Lock()
        self._links: list[Link] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))

    @property
    def url(self) -> str:
        """What a store takes as ``remote``."""
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}"

    def start(self, work: Callable[[], None]) -> None:
        """Does something in a thread that is waited for at the end."""
        thread = threading.Thread(target=work)
        self._threads.append(thread)
        thread.start()

    def reads_begin(self) -> None:
        """Somebody asks for what a look-up found."""
        with self._lock:
            self._reads = True
        self._divide(0)

    def divide(self, data: bytes) -> tuple[bytes, bytes]:
        """The part of an answer that still goes well, and the rest."""
        well = self._divide(len(data))
        return data[:well], data[well:]

    def _divide(self, size: int) -> int:
        with self._lock:
            if self._let_through is None:
                return 0
            if not self._reads:
                return size
            well = min(size, self._let_through)
            self._let_through -= well
            begins = self._let_through == 0 and not self.struck
            self.struck = self.struck or begins
        if begins:
            self.fault.strike(self)
        return well

    def close_links(self) -> None:
        """Every connection there is."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.close()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(self.server)
                except OSError:
                    client.close()
                    continue
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._links.append(Link(self, client, server))

    def __enter__(self) -> Self:
        """Begins to listen."""
        self.start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes all; every thread has ended."""
        self.ends.set()
        # A thread that waits in accept() is woken by this, not by closing.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        self.close_links()
        for thread in self._threads:
            thread.join()
        for link in self._links:
            link.release()


def hangs(link: Link, _: bytes) -> None:
    """Nothing comes any more."""
    link.proxy.ends.wait()


def garbage(link: Link, data: bytes) -> None:
    """As many bytes, and not one of them means anything."""
    link.client.sendall(random.Random(0).randbytes(len(data)))


def damages() -> Callable[[Link, bytes], None]:
    """The first byte is another one."""
    done = threading.Event()

    def passes(link: Link, data: bytes) -> None:
        if not done.is_set():
            done.set()
            data = bytes([data[0] ^ 0xFF]) + data[1:]
        link.client.sendall(data)

    return passes


def drips(link: Link, data: bytes) -> None:
    """A byte every 20 ms."""
    for byte in data:
        if link.proxy.ends.wait(0.02):
            return
        link.client.sendall(bytes([byte]))


def late(seconds: float) -> Callable[[Link, bytes], None]:
    """Each answer so long after it was asked for."""

    def passes(link: Link, data: bytes) -> None:
        link.proxy.ends.wait(max(0.0, link.asked + seconds - time.monotonic()))
        link.client.sendall(data)

    return passes


def slow(bytes_per_second: float) -> Callable[[Link, bytes], None]:
    """A thin line."""

    def passes(link: Link, data: bytes) -> None:
        if not link.proxy.ends.wait(len(data) / bytes_per_second):
            link.client.sendall(data)

    return passes
