"""The servers of a run, all on the loopback interface: one that speaks RESP, and Mooncake's master and node."""

from __future__ import annotations

import http.client
import importlib.util
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis

from kvlab.remote.server import local_server

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "127.0.0.1"
PATIENCE = 30.0
NODE_BYTES = 1 << 30
"""What Mooncake's node holds."""


@dataclass(frozen=True)
class Mooncake:
    """Where Mooncake is."""

    master: str
    metadata: str
    node: int
    """The process that holds the bytes."""


@dataclass(frozen=True)
class Services:
    """Where the servers of a run are."""

    port: int
    """Of the server that speaks RESP, on 127.0.0.1."""
    server: str
    """Its name and version."""
    mooncake: Mooncake | None = None
    """None if it is not installed."""

    @property
    def url(self) -> str:
        """Of the server that speaks RESP."""
        return f"redis://{HOST}:{self.port}"

    def client(self, **options: Any) -> redis.Redis:
        """A connection of the bench's own to it."""
        return redis.Redis(HOST, self.port, **options)


@contextmanager
def running(directory: Path, *, mooncake: bool = True) -> Iterator[Services]:
    """Starts what there is, and ends it.

    Raises:
        ConfigError: there is no server that speaks RESP.
        RuntimeError: Mooncake is installed and does not start.
    """
    with ExitStack() as stack:
        server = stack.enter_context(local_server())
        with redis.Redis(HOST, server.port) as client:
            found: Any = client.info("server")
        # Valkey answers with both.
        name, version = (
            ("valkey", found["valkey_version"])
            if "valkey_version" in found
            else ("redis", found["redis_version"])
        )
        packages = importlib.util.find_spec("mooncake") if mooncake else None
        yield Services(
            port=server.port,
            server=f"{name}-server {version}",
            mooncake=stack.enter_context(_mooncake(packages.submodule_search_locations, directory))
            if packages and packages.submodule_search_locations
            else None,
        )


@contextmanager
def _mooncake(places: list[str], directory: Path) -> Iterator[Mooncake]:
    """A master with its directory of addresses, and a node that holds the bytes."""
    programs = Path(next(iter(places)))
    master, metadata, metrics, node = (_free_port() for _ in range(4))
    url = f"http://{HOST}:{metadata}/metadata"
    with ExitStack() as stack:
        stack.enter_context(
            _process(
                programs / "mooncake_master",
                f"--rpc_port={master}",
                f"--metrics_port={metrics}",
                "--enable_http_metadata_server=true",
                f"--http_metadata_server_host={HOST}",
                f"--http_metadata_server_port={metadata}",
                log=directory / "mooncake_master.log",
            )
        )
        _until(lambda: _listens(master) and _listens(metadata), "Mooncake's master")
        process = stack.enter_context(
            _process(
                programs / "mooncake_client",
                f"--host={HOST}",
                f"--port={node}",
                f"--master_server_address={HOST}:{master}",
                f"--metadata_server={url}",
                f"--global_segment_size={NODE_BYTES}",
                "--protocol=tcp",
                log=directory / "mooncake_client.log",
            )
        )
        _until(lambda: bool(_page(metrics, "/get_all_segments").strip()), "Mooncake's node")
        yield Mooncake(f"{HOST}:{master}", url, process.pid)


@contextmanager
def _process(program: Path, *arguments: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    # A wheel does not say that they can be executed.
    program.chmod(program.stat().st_mode | 0o111)
    with log.open("wb") as file:
        process = subprocess.Popen(
            [program, *arguments, "--logtostderr"], stdout=file, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _until(true: Any, what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} has not started after {PATIENCE:.0f} s")
        time.sleep(0.05)


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as free:
        port: int = free.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def _page(port: int, path: str) -> bytes:
    """What a page says; nothing as long as there is none."""
    connection = http.client.HTTPConnection(HOST, port, timeout=1)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.read() if answer.status == http.HTTPStatus.OK else b""
    except OSError:
        return b""
    finally:
        connection.close()
