"""Mooncake Store over TCP: the bytes lie with a node, a master knows where, and they come into registered memory."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peers.arm import About, MissingError
from peers.payload import pages, parts
from peers.remote.arm import ASKED, KNOWN, RemoteArm
from peers.remote.services import HOST

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from peers.payload import Payload, Shape, Tensors

PIECE = 3 << 20
BUFFER = 64 << 20
HUGE = 64 << 20
"""A mapping of the node that is larger may be its segment."""


class Mooncake(RemoteArm):
    """`batch_put_from` and `batch_get_into` of pieces of 3 MiB, into the layers themselves."""

    about = About(
        name="mooncake",
        title="Mooncake Store over TCP, batch_get_into the layers",
        unit="3 MiB",
        sync="",
        settings="one node of 1 GiB, one replica, registered memory; nothing checked",
    )

    def __init__(self, directory: Path, shape: Shape) -> None:
        super().__init__(directory, shape)
        self.source = pages(shape.prompt_bytes)
        self.memory = pages(shape.prompt_bytes)
        self.layers = parts(self.memory, shape)
        starts = range(0, shape.prompt_bytes, PIECE)
        self.offsets = list(starts)
        self.sizes = [min(PIECE, shape.prompt_bytes - at) for at in starts]
        self.names = [f"piece-{at}" for at in starts]

    @classmethod
    def version(cls) -> str:
        """Of the wheel without CUDA."""
        importlib.import_module("mooncake.store")
        return importlib.metadata.version("mooncake-transfer-engine-non-cuda")

    def connect(self) -> Any:
        """A client that holds nothing itself."""
        where = self.services.mooncake
        if where is None:
            raise RuntimeError("the run has not started Mooncake")
        client = importlib.import_module("mooncake.store").MooncakeDistributedStore()
        failed = client.setup(HOST, where.metadata, 0, BUFFER, "tcp", "", where.master)
        if failed:
            raise RuntimeError(f"setup failed: {failed}")
        return client

    def open(self) -> None:
        """Connects, and registers both buffers."""
        self.client = self.connect()
        for memory in (self.source, self.memory):
            failed = self.client.register_buffer(memory.ctypes.data, memory.size)
            if failed:
                raise RuntimeError(f"register_buffer failed: {failed}")

    def pointers(self, memory: NDArray[Any]) -> list[int]:
        """Where the pieces are."""
        return [memory.ctypes.data + at for at in self.offsets]

    def stage(self, payload: Payload) -> None:
        """The KV stands in registered memory."""
        self.source[:] = payload.bytes

    def write(self, prompt: int, payload: Payload) -> None:
        """One call."""
        failed = self.client.batch_put_from(self.names, self.pointers(self.source), self.sizes)
        if any(failed):
            raise RuntimeError(f"batch_put_from: {failed}")

    def read(self, prompt: int) -> Tensors:
        """One call."""
        got = self.client.batch_get_into(self.names, self.pointers(self.memory), self.sizes)
        if got != self.sizes:
            raise MissingError(f"batch_get_into: {got}")
        return self.layers

    def wipe(self) -> None:
        """Removes all objects, leased ones, too."""
        client = self.connect()
        client.remove_all(True)
        client.close()

    def stored(self) -> int:
        """Bytes of the pieces that are there; it has no names for less."""
        client = self.connect()
        found = client.batch_is_exist(self.names)
        client.close()
        return sum(size for size, is_there in zip(self.sizes, found, strict=True) if is_there == 1)

    def damage(self, needle: bytes) -> str:
        """In the memory of the node's process."""
        if self.services.mooncake is None:
            raise RuntimeError("the run has not started Mooncake")
        process = Path(f"/proc/{self.services.mooncake.node}")
        with os.fdopen(os.open(process / "mem", os.O_RDWR), "r+b", buffering=0) as memory:
            for line in (process / "maps").read_text().splitlines():
                start, end = (int(each, 16) for each in re.split("[- ]", line, maxsplit=2)[:2])
                if " rw" not in line or end - start < HUGE:
                    continue
                for piece in range(start, end, HUGE):
                    memory.seek(piece)
                    at = memory.read(min(HUGE + len(needle), end - piece)).find(needle)
                    if at >= 0:
                        memory.seek(piece + at + len(needle) // 2)
                        memory.write(bytes([needle[len(needle) // 2] ^ 0xFF]))
                        return f"byte {piece + at - start} of a mapping"
        raise RuntimeError("the node's memory does not hold the payload as it is")

    def mark(self) -> None:
        """Small objects."""
        for name in range(KNOWN):
            failed = self.client.put(f"block-{name}", b"1")
            if failed:
                raise RuntimeError(f"put: {failed}")

    def lookup(self) -> int:
        """One call."""
        names = [f"block-{name}" for name in range(ASKED)]
        known: int = self.client.batch_is_exist(names).index(0)
        return known

    def close(self) -> None:
        """Disconnects."""
        self.client.close()
