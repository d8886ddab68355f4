"""kvlab with nothing but L4: a request's way into a cache buffer, blocks into layers, and `DistributedKVCache`."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import kvlab
from kvlab.remote import DistributedKVCache
from peers.arm import About, MissingError
from peers.payload import DIM, HEADS
from peers.remote.arm import ASKED, KNOWN, RespArm, by_head, by_token
from peers.remote.prefix import BLOCK_TOKENS

if TYPE_CHECKING:
    from pathlib import Path

    from peers.payload import Payload, Shape, Tensors

NAMESPACE = bytes(range(32))
ROOM = 64 << 20
TIMEOUT = 30.0
"""Seconds that an answer may take. The default, 0.25, is for requests; a busy machine is no reason to drop an arm."""
WAIT = 120.0


class Kvlab(RespArm):
    """What its arms have in common."""

    asks = False

    @classmethod
    def version(cls) -> str:
        """Of the extension."""
        return kvlab.build_info()["version"]

    def open_blocks(self) -> kvlab.BlockStore:
        """A block store that has no memory of its own."""
        return kvlab.BlockStore.open(
            None, l2=0, l3=0, remote=self.services.url, remote_timeout=TIMEOUT
        )


class Runs(Kvlab):
    """A request's way, as `attach` goes it: match, plan, restore into the leased cache buffer."""

    about = About(
        name="kvlab",
        title="kvlab.Store, L4 only, into a cache buffer",
        unit="a run of at most 16 MiB",
        sync="",
        settings="no L2, no L3; no codec; XXH3 of each slice checked",
    )
    asks = True

    def __init__(self, directory: Path, shape: Shape) -> None:
        super().__init__(directory, shape)
        self.layout = kvlab.KvLayout(
            [(HEADS, DIM, HEADS, DIM)] * shape.layers,
            element_bytes=shape.element_bytes,
            block_tokens=BLOCK_TOKENS,
        )
        # One more token than is kept: the last of a prompt is always computed.
        self.ids = np.random.default_rng(7).integers(0, 49_152, shape.tokens + 1, dtype=np.int64)
        self.parting = self.ids[: ASKED * BLOCK_TOKENS + 1].copy()
        self.parting[KNOWN * BLOCK_TOKENS :] += 1

    def open(self) -> None:
        """Opens the store and leases the buffer that both directions use."""
        self.store = kvlab.Store.open(
            None,
            l1=3 * self.shape.prompt_bytes + ROOM,
            l2=0,
            l3=0,
            remote=self.services.url,
            remote_timeout=TIMEOUT,
        )
        self.cache = self.store.prefix_cache(self.layout)
        self.buffer = self.cache.lease(self.shape.tokens + 1)
        memory = np.frombuffer(memoryview(self.buffer), dtype=np.uint8)
        memory[::4096] = 0
        rows = self.buffer.capacity
        size = HEADS * rows * DIM * self.shape.element_bytes
        self.layers = [
            torch.from_numpy(memory[at : at + size])
            .view(self.shape.dtype)
            .view(HEADS, rows, DIM)[:, : self.shape.tokens]
            for pair in self.buffer.offsets()
            for at in pair
        ]

    def stage(self, payload: Payload) -> None:
        """Puts the KV where the model would have computed it."""
        for ours, theirs in zip(self.layers, payload.tensors(), strict=True):
            ours.copy_(by_head(theirs))

    def write(self, prompt: int, payload: Payload) -> None:
        """Commits, and waits until L4 has it."""
        with closing(self.cache.begin(self.ids, NAMESPACE)) as request:
            request.commit(self.ids[:-1], self.buffer)
            self.store.flush(WAIT)

    def read(self, prompt: int) -> Tensors:
        """One request."""
        with closing(self.cache.begin(self.ids, NAMESPACE)) as request:
            restored = request.restore(self.buffer)
        found = restored["tokens"][3]
        if found != self.shape.tokens:
            raise MissingError(
                f"{found} of {self.shape.tokens} tokens restored, {restored['failure']}"
            )
        return [by_token(each) for each in self.layers]

    def mark(self) -> None:
        """The prefix that was written has these blocks."""

    def lookup(self) -> int:
        """A request for a prompt that parts from the prefix: its keys, the match, the question."""
        with closing(self.cache.begin(self.parting, NAMESPACE)) as request:
            return sum(request.found) // BLOCK_TOKENS

    def close(self) -> None:
        """Closes the store."""
        self.layers = []
        del self.buffer, self.cache
        self.store.close(WAIT)


class Blocks(Kvlab):
    """`BlockStore.put` and `get_into`, for engines that bring keys of their own."""

    about = About(
        name="kvlab-blocks",
        title="kvlab.BlockStore, get_into",
        unit="K or V of a layer",
        sync="",
        settings="no L2, no L3; one call; checked",
    )

    def __init__(self, directory: Path, shape: Shape) -> None:
        super().__init__(directory, shape)
        self.layers = self.target()
        self.buffers: list[Any] = [each.view(torch.uint8).numpy().data for each in self.layers]
        self.keys = [f"{part:32}".encode() for part in range(shape.parts)]

    def open(self) -> None:
        """Opens the store."""
        self.store = self.open_blocks()

    def write(self, prompt: int, payload: Payload) -> None:
        """Puts the parts, and waits until L4 has them."""
        for key, each in zip(self.keys, payload.tensors(), strict=True):
            if not self.store.put(key, each.view(torch.uint8).numpy().reshape(-1).data):
                raise RuntimeError(f"refused: {self.store.stats()}")
        self.store.flush(WAIT)

    def read(self, prompt: int) -> Tensors:
        """Straight into the layers."""
        missing = self.store.get_into(self.keys, self.buffers).count(None)
        if missing:
            raise MissingError(f"{missing} of {self.shape.parts} values")
        return self.layers

    def close(self) -> None:
        """Closes the store."""
        self.store.close(WAIT)


class Prefixes(Kvlab):
    """`DistributedKVCache`, whole prefixes, as they are."""

    about = About(
        name="kvlab-prefix",
        title="kvlab DistributedKVCache, get_cached_prefix, uncompressed",
        unit="a layer",
        sync="",
        settings='precision="bfloat16", compress=False, no memory of its own; checked',
    )
    compress = False

    def open(self) -> None:
        """Opens the cache over a store of this process."""
        self.store = self.open_blocks()
        self.cache = DistributedKVCache(
            store=self.store, precision="bfloat16", compress=self.compress
        )
        self.ids = list(range(self.shape.tokens))

    def stage(self, payload: Payload) -> None:
        """The layers as a model has them."""
        found = [by_head(each).contiguous() for each in payload.tensors()]
        self.staged = list(zip(found[::2], found[1::2], strict=True))

    def write(self, prompt: int, payload: Payload) -> None:
        """All layers, and waits until L4 has them."""
        if not self.cache.cache_prefix(self.ids, self.staged):
            raise RuntimeError(f"refused: {self.store.stats()}")
        self.cache.flush(WAIT)

    def pairs(self) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
        """What the cache gives."""
        return self.cache.get_cached_prefix(self.ids, self.shape.layers)

    def read(self, prompt: int) -> Tensors:
        """Tensors of their own."""
        pairs = self.pairs()
        if pairs is None:
            raise MissingError("a miss")
        return [by_token(each) for pair in pairs for each in pair]

    def close(self) -> None:
        """Closes the cache and its store."""
        self.cache.close()
        self.store.close(WAIT)


class CompressedPrefixes(Prefixes):
    """The same, compressed."""

    about = About(
        name="kvlab-zstd",
        title="kvlab DistributedKVCache, get_cached_prefix, zstd",
        unit="a layer",
        sync="",
        settings='precision="bfloat16", compress=True, no memory of its own; checked',
    )
    compress = True


class Layers(Prefixes):
    """A call a layer."""

    about = About(
        name="kvlab-layers",
        title="kvlab DistributedKVCache, get_cached_kv a layer",
        unit="a layer",
        sync="",
        settings='precision="bfloat16", compress=False, no memory of its own; checked',
    )

    def pairs(self) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
        """One after the other."""
        found = []
        for layer in range(self.shape.layers):
            pair = self.cache.get_cached_kv(self.ids, layer)
            if pair is None:
                return None
            found.append(pair)
        return found
