"""kvlab: the path of a model's request, with and without `durable`, and the plain block store."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep
from typing import TYPE_CHECKING

import numpy as np
import torch

import kvlab
from peers.arm import About, Arm, MissingError
from peers.payload import DIM, HEADS

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from peers.payload import Payload, Shape, Tensors

NAMESPACE = bytes(range(32))
ROOM = 64 << 20
THREADS = 4
BLOCK_TOKENS = 16
TIMEOUT = 600.0


def wait_for(store: kvlab.Store | kvlab.BlockStore, blocks: int) -> None:
    """Waits until L3 can be read for so many blocks. `flush` would sync the index as well, which `durable` is for."""
    end = monotonic() + TIMEOUT
    while store.stats()["l3"]["blocks"] < blocks:
        if monotonic() > end:
            raise RuntimeError(f"L3 did not take it: {store.stats()}")
        sleep(0.0005)


class Runs(Arm):
    """A request's way: the KV stands in a leased cache buffer, is committed as runs and restored into a buffer."""

    about = About(
        name="kvlab",
        title="kvlab, runs into a cache buffer",
        unit="a run of at most 16 MiB",
        sync="",
        warm="L2, prefetched",
    )
    durable = False

    def __init__(self, directory: Path, shape: Shape) -> None:
        super().__init__(directory, shape)
        self.layout = kvlab.KvLayout(
            [(HEADS, DIM, HEADS, DIM)] * shape.layers, element_bytes=4, block_tokens=BLOCK_TOKENS
        )

    @classmethod
    def version(cls) -> str:
        """Of the extension."""
        return kvlab.build_info()["version"]

    def ids(self, prompt: int) -> NDArray[np.int64]:
        """The tokens of a prompt, and one more, which is always computed."""
        generator = np.random.default_rng([7, prompt])
        return generator.integers(0, 49_152, self.shape.tokens + 1, dtype=np.int64)

    def open(self) -> None:
        """Opens the store and leases the buffer that both directions use."""
        size = self.shape.prompt_bytes
        self.store = kvlab.Store.open(
            self.directory,
            l1=3 * size + ROOM,
            l2=2 * size + ROOM,
            l3=2 * self.shape.bytes + (1 << 30),
            durable=self.durable,
        )
        self.cache = self.store.prefix_cache(self.layout)
        self.buffer = self.cache.lease(self.shape.tokens + 1)
        memory = np.frombuffer(memoryview(self.buffer), dtype=np.uint8)
        memory[::4096] = 0
        rows = self.buffer.capacity
        self.tensors = [
            torch.from_numpy(memory[at : at + HEADS * rows * DIM * 4].view(np.float32)).view(
                HEADS, rows, DIM
            )[:, : self.shape.tokens]
            for pair in self.buffer.offsets()
            for at in pair
        ]

    def stage(self, payload: Payload) -> None:
        """Puts the KV where the model would have computed it."""
        for ours, theirs in zip(self.tensors, payload.tensors(), strict=True):
            ours.copy_(theirs.view(ours.shape))

    def write(self, prompt: int, payload: Payload) -> None:
        """Commits, and waits until L3 has it."""
        ids = self.ids(prompt)
        expected = self.store.stats()["l3"]["blocks"] + self.shape.tokens // BLOCK_TOKENS
        request = self.cache.begin(ids, NAMESPACE)
        request.commit(ids[:-1], self.buffer)
        wait_for(self.store, expected)
        request.close()

    def sync(self) -> None:
        """A durable store has synced before it acknowledged."""

    def warm(self, prompt: int) -> None:
        """Prefetches into L2, as before a request that is foreseen."""
        self.cache.prefetch(self.ids(prompt), NAMESPACE).wait(TIMEOUT)

    def read(self, prompt: int) -> Tensors:
        """One request: match, keys, plan, restore."""
        request = self.cache.begin(self.ids(prompt), NAMESPACE)
        restored = request.restore(self.buffer)
        request.close()
        found = sum(restored["tokens"])
        if found != self.shape.tokens:
            raise MissingError(
                f"{found} of {self.shape.tokens} tokens restored, {restored['failure']}"
            )
        return self.tensors

    def close(self) -> None:
        """Closes the store."""
        self.tensors = []
        del self.buffer, self.cache
        self.store.close(TIMEOUT)


class DurableRuns(Runs):
    """The same, each run on stable storage before it is acknowledged."""

    about = About(
        name="kvlab-durable",
        title="kvlab, the same, durable=True",
        unit="a run of at most 16 MiB",
        sync="before each acknowledgement",
        warm="L2, prefetched",
    )
    durable = True


class Blocks(Arm):
    """`BlockStore.put` and `get`, for engines that bring keys of their own: bytes in, bytes out, four at a time."""

    about = About(
        name="kvlab-blocks",
        title="kvlab.BlockStore, put and get",
        unit="K or V of a layer",
        sync="",
        warm="L2, prefetched",
    )

    def __init__(self, directory: Path, shape: Shape) -> None:
        super().__init__(directory, shape)
        self.workers = ThreadPoolExecutor(THREADS)

    @classmethod
    def version(cls) -> str:
        """Of the extension."""
        return kvlab.build_info()["version"]

    def keys(self, prompt: int) -> list[bytes]:
        """A key for each part of a prompt."""
        return [f"{prompt:16}{part:16}".encode() for part in range(self.shape.parts)]

    def open(self) -> None:
        """Opens the store."""
        self.store = kvlab.BlockStore.open(
            self.directory,
            l2=2 * self.shape.prompt_bytes + ROOM,
            l3=2 * self.shape.bytes + (1 << 30),
        )

    def write(self, prompt: int, payload: Payload) -> None:
        """Puts the parts, and waits until L3 has them."""
        expected = self.store.stats()["l3"]["blocks"] + self.shape.parts
        for key, each in zip(self.keys(prompt), payload.tensors(), strict=True):
            if not self.store.put(key, each.view(torch.uint8).numpy().reshape(-1).data):
                raise RuntimeError(f"refused: {self.store.stats()}")
        wait_for(self.store, expected)

    def warm(self, prompt: int) -> None:
        """Prefetches into L2."""
        self.store.prefetch(self.keys(prompt)).wait(TIMEOUT)

    def read(self, prompt: int) -> Tensors:
        """Each value is a new `bytes`, which a tensor is laid over."""
        tensors = []
        with warnings.catch_warnings():
            # torch warns that bytes are read-only, which nothing here minds.
            warnings.simplefilter("ignore", UserWarning)
            for value in self.workers.map(self.store.get, self.keys(prompt)):
                if value is None:
                    raise MissingError("no value")
                tensors.append(torch.frombuffer(value, dtype=torch.float32))
        return tensors

    def close(self) -> None:
        """Closes the store."""
        self.store.close(TIMEOUT)
