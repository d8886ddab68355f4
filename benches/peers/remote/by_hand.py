"""What one writes by hand against a server that speaks RESP: bare sockets, and redis-py with bytes or `torch.save`."""

from __future__ import annotations

import gzip
import importlib.metadata
import io
import socket
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import redis
import torch
from redis._parsers import _HiredisParser, _RESP2Parser

from peers.arm import About, MissingError
from peers.payload import pages
from peers.remote.arm import ASKED, KNOWN, RespArm
from peers.remote.services import HOST

if TYPE_CHECKING:
    from pathlib import Path

    from peers.payload import Payload, Shape, Tensors

CONNECTIONS = 2
READ_SIZE = 256 << 10
"""Bytes that redis-py asks the socket for at once: the fastest of those tried. Its default is 32 KiB."""


class Sockets(RespArm):
    """Pipelined GETs over bare sockets, answers straight into the layers. No format, no check."""

    about = About(
        name="sockets",
        title="bare sockets, pipelined GETs into the layers",
        unit="K or V of a layer",
        sync="",
        settings=f"{CONNECTIONS} connections, a thread each; nothing checked",
    )

    def __init__(self, directory: Path, shape: Shape) -> None:
        super().__init__(directory, shape)
        self.memory = pages(shape.prompt_bytes)
        self.layers = self.target()
        self.views: list[Any] = [each.view(torch.uint8).numpy().data for each in self.layers]

    @classmethod
    def version(cls) -> str:
        """There is none."""
        return ""

    def open(self) -> None:
        """Connects."""
        self.connections = [
            socket.create_connection((HOST, self.services.port)) for _ in range(CONNECTIONS)
        ]
        self.workers = ThreadPoolExecutor(CONNECTIONS)

    def each(self, work: Any) -> None:
        """Gives each connection its share of the parts."""
        share = -(-self.shape.parts // CONNECTIONS)
        starts = range(0, self.shape.parts, share)
        done = [
            self.workers.submit(work, connection, range(at, min(at + share, self.shape.parts)))
            for connection, at in zip(self.connections, starts, strict=False)
        ]
        for each in done:
            each.result()

    def write(self, prompt: int, payload: Payload) -> None:
        """A SET a part."""
        tensors = payload.tensors()

        def put(connection: socket.socket, mine: range) -> None:
            for part in mine:
                size, name = self.shape.part_bytes, f"{part:04}"
                connection.sendall(f"*3\r\n$3\r\nSET\r\n$4\r\n{name}\r\n${size}\r\n".encode())
                connection.sendall(tensors[part].view(torch.uint8).numpy().data)
                connection.sendall(b"\r\n")
            answer = b"+OK\r\n" * len(mine)
            if connection.recv(len(answer), socket.MSG_WAITALL) != answer:
                raise RuntimeError("the server did not take it")

        self.each(put)

    def read(self, prompt: int) -> Tensors:
        """All questions of a connection, then all answers."""
        head = f"${self.shape.part_bytes}\r\n".encode()

        def get(connection: socket.socket, mine: range) -> None:
            asked = "".join(f"*2\r\n$3\r\nGET\r\n$4\r\n{part:04}\r\n" for part in mine)
            connection.sendall(asked.encode())
            for part in mine:
                if connection.recv(len(head), socket.MSG_WAITALL) != head:
                    raise MissingError("no value of this length")
                connection.recv_into(self.views[part], 0, socket.MSG_WAITALL)
                connection.recv(2, socket.MSG_WAITALL)

        self.each(get)
        return self.layers

    def mark(self) -> None:
        """Small values."""
        with self.services.client() as client:
            client.mset({f"block:{name:04}": b"1" for name in range(KNOWN)})

    def lookup(self) -> int:
        """Pipelined EXISTS over one connection."""
        one = self.connections[0]
        asked = "".join(f"*2\r\n$6\r\nEXISTS\r\n$10\r\nblock:{at:04}\r\n" for at in range(ASKED))
        one.sendall(asked.encode())
        return one.recv(4 * ASKED, socket.MSG_WAITALL).split(b"\r\n").index(b":0")

    def close(self) -> None:
        """Disconnects."""
        self.workers.shutdown()
        for each in self.connections:
            each.close()


class Gets(RespArm):
    """redis-py, a GET a layer, and tensors laid over the bytes that came."""

    about = About(
        name="redis-py",
        title="redis-py, a GET a layer, frombuffer",
        unit="a layer",
        sync="",
        settings="parser in Python, 256 KiB a recv; nothing checked, tensors read-only",
    )
    parser: Any = _RESP2Parser
    read_size = READ_SIZE

    @classmethod
    def version(cls) -> str:
        """Of redis-py."""
        return str(redis.__version__)

    def names(self) -> list[str]:
        """Of the layers' values."""
        return [f"layer:{layer:03}" for layer in range(self.shape.layers)]

    def open(self) -> None:
        """Makes the client."""
        self.client = self.services.client(
            connection_pool=redis.ConnectionPool(
                host=HOST,
                port=self.services.port,
                protocol=2,
                parser_class=self.parser,
                socket_read_size=self.read_size,
            )
        )

    def encode(self, keys: torch.Tensor, values: torch.Tensor) -> bytes:
        """The value of a layer."""
        return b"".join(each.view(torch.uint8).numpy().tobytes() for each in (keys, values))

    def decode(self, data: bytes) -> Tensors:
        """K and V of a layer."""
        with warnings.catch_warnings():
            # torch warns that bytes are read-only, which nothing here minds.
            warnings.simplefilter("ignore", UserWarning)
            whole = torch.frombuffer(data, dtype=self.shape.dtype)
        return list(whole.view(2, self.shape.tokens, -1).unbind(0))

    def write(self, prompt: int, payload: Payload) -> None:
        """A SET a layer."""
        tensors = payload.tensors()
        for name, keys, values in zip(self.names(), tensors[::2], tensors[1::2], strict=True):
            self.client.set(name, self.encode(keys, values))

    def fetch(self) -> list[Any]:
        """The values."""
        return [self.client.get(name) for name in self.names()]

    def read(self, prompt: int) -> Tensors:
        """As the arm's name says."""
        tensors: Tensors = []
        for data in self.fetch():
            if data is None:
                raise MissingError("no value")
            tensors += self.decode(data)
        return tensors

    def mark(self) -> None:
        """Small values."""
        self.client.mset({f"block:{name}": b"1" for name in range(KNOWN)})

    def known(self) -> list[Any]:
        """What EXISTS says of each name."""
        return [self.client.exists(f"block:{name}") for name in range(ASKED)]

    def lookup(self) -> int:
        """Counts."""
        return self.known().index(0)

    def close(self) -> None:
        """Disconnects."""
        self.client.close()
        self.client.connection_pool.disconnect()


class Defaults(Gets):
    """The same as redis-py comes."""

    about = About(
        name="redis-py-defaults",
        title="redis-py as it comes, a GET a layer, frombuffer",
        unit="a layer",
        sync="",
        settings="parser in Python, 32 KiB a recv; nothing checked, tensors read-only",
    )
    read_size = 32 << 10


class Hiredis(Gets):
    """The same with the parser in C."""

    about = About(
        name="redis-py-hiredis",
        title="redis-py + hiredis, a GET a layer, frombuffer",
        unit="a layer",
        sync="",
        settings="256 KiB a recv; nothing checked, tensors read-only",
    )
    parser = _HiredisParser

    @classmethod
    def version(cls) -> str:
        """Of both."""
        return f"{redis.__version__}, hiredis {importlib.metadata.version('hiredis')}"


class Pipelined(Gets):
    """The GETs of all layers in one pipeline."""

    about = About(
        name="redis-py-pipeline",
        title="redis-py, pipelined GETs, frombuffer",
        unit="a layer",
        sync="",
        settings="parser in Python, 256 KiB a recv; nothing checked, tensors read-only",
    )

    def fetch(self) -> list[Any]:
        """One round trip."""
        with self.client.pipeline(transaction=False) as pipeline:
            for name in self.names():
                pipeline.get(name)
            return pipeline.execute()

    def known(self) -> list[Any]:
        """One round trip."""
        with self.client.pipeline(transaction=False) as pipeline:
            for name in range(ASKED):
                pipeline.exists(f"block:{name}")
            return pipeline.execute()


class PipelinedHiredis(Pipelined):
    """The same with the parser in C."""

    about = About(
        name="redis-py-hiredis-pipeline",
        title="redis-py + hiredis, pipelined GETs, frombuffer",
        unit="a layer",
        sync="",
        settings="256 KiB a recv; nothing checked, tensors read-only",
    )
    parser = _HiredisParser
    version = Hiredis.version


class TorchSave(Gets):
    """`torch.save` of a layer, `torch.load(weights_only=True)`."""

    about = About(
        name="torch-save",
        title="redis-py, torch.save, a GET a layer",
        unit="a layer",
        sync="",
        settings="parser in Python, 256 KiB a recv; weights_only",
    )
    asks = False

    @classmethod
    def version(cls) -> str:
        """Of redis-py and torch."""
        return f"{redis.__version__}, torch {torch.__version__}"

    def encode(self, keys: torch.Tensor, values: torch.Tensor) -> bytes:
        """A file."""
        file = io.BytesIO()
        # A tensor that shares memory with others would be saved with all of it.
        torch.save((keys.clone(), values.clone()), file)
        return file.getvalue()

    def decode(self, data: bytes) -> Tensors:
        """Loads it."""
        return list(torch.load(io.BytesIO(data), weights_only=True))


class TorchSaveGzip(TorchSave):
    """The same, compressed."""

    about = About(
        name="torch-save-gzip",
        title="redis-py, torch.save + gzip, a GET a layer",
        unit="a layer",
        sync="",
        settings="parser in Python, 256 KiB a recv; gzip level 1, whose CRC-32 is checked",
    )

    def encode(self, keys: torch.Tensor, values: torch.Tensor) -> bytes:
        """Compresses it."""
        return gzip.compress(super().encode(keys, values), compresslevel=1)

    def decode(self, data: bytes) -> Tensors:
        """Decompresses it."""
        return super().decode(gzip.decompress(data))
