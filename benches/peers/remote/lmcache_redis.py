"""LMCache against a server that speaks RESP: its remote backend, and the L2 adapters of its multi-process server.

Objects are LMCache's: a chunk of 256 tokens, all layers, `[2, layers, 256, heads * dim]`. Its own connectors to an
engine need a GPU ("No supported cpu connector found"), so the objects are scattered into the layers by torch.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import threading
from typing import TYPE_CHECKING, Any

import redis
import torch

from peers.arm import About, MissingError
from peers.arms.lmcache_l2 import BENCH, CHUNK_TOKENS, TIMEOUT, Adapter, lmcache
from peers.payload import DIM, HEADS
from peers.remote.arm import ASKED, KNOWN, RespArm
from peers.remote.services import HOST

if TYPE_CHECKING:
    from pathlib import Path

    from peers.payload import Payload, Shape, Tensors

POOL_GIB = 0.5
"""Of host memory that the backend allocates objects from. Its default is 5."""


class Backend(RespArm):
    """`RemoteBackend`, driven as its storage manager drives it when it loads asynchronously.

    Its blocking way is not taken: `RESPClient` submits a task and notes only then who waits for it, so that a caller
    in another thread than the event loop's waits for ever if the answer comes in between.
    """

    scheme = ""
    suffix = ""
    """What is added to a name on the server that says that a chunk is there."""

    def __init__(self, directory: Path, shape: Shape) -> None:
        super().__init__(directory, shape)
        self.chunks = shape.tokens // CHUNK_TOKENS
        layers = torch.cat([each.view(-1) for each in self.target()])
        self.layers = layers.view(shape.layers, 2, self.chunks, CHUNK_TOKENS, -1)

    @classmethod
    def version(cls) -> str:
        """Of the wheel."""
        os.environ.setdefault("LMCACHE_LOG_LEVEL", "ERROR")
        lmcache("v1.storage_backend.remote_backend")
        return importlib.metadata.version("lmcache")

    def open(self) -> None:
        """Makes the backend, its pool of host memory, and the event loop that its engine would run."""
        config = lmcache("v1.config").LMCacheEngineConfig.from_defaults(
            chunk_size=CHUNK_TOKENS,
            local_cpu=False,
            max_local_cpu_size=POOL_GIB,
            remote_url=f"{self.scheme}://{HOST}:{self.services.port}",
            save_unfull_chunk=False,
            extra_config={"save_chunk_meta": False},
        )
        metadata = lmcache("v1.metadata").LMCacheMetadata(
            model_name="bench",
            world_size=1,
            local_world_size=1,
            worker_id=0,
            local_worker_id=0,
            kv_dtype=self.shape.dtype,
            kv_shape=(self.shape.layers, 2, CHUNK_TOKENS, HEADS, DIM),
        )
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.pool = lmcache("v1.storage_backend.local_cpu_backend").LocalCPUBackend(
            config, metadata, dst_device="cpu"
        )
        self.backend = lmcache("v1.storage_backend.remote_backend").RemoteBackend(
            config, metadata, self.loop, self.pool, dst_device="cpu"
        )
        if self.backend.connection is None:
            raise RuntimeError(f"no connection to {config.remote_url}")

    def done(self, work: Any) -> Any:
        """Waits for what its event loop does."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(TIMEOUT)

    def keys(self, count: int) -> list[Any]:
        """Keys of chunks."""
        key = lmcache("utils").CacheEngineKey
        return [key("bench", 1, 0, chunk + 1, self.shape.dtype) for chunk in range(count)]

    def stage(self, payload: Payload) -> None:
        """The device-to-host copy has been made: the objects stand in the pool."""
        form = lmcache("v1.memory_management").MemoryFormat.KV_2LTD
        size = torch.Size([2, self.shape.layers, CHUNK_TOKENS, HEADS * DIM])
        whole = torch.stack(payload.tensors()).view(self.layers.shape)
        self.objects = []
        for chunk in range(self.chunks):
            made = self.pool.allocate(size, self.shape.dtype, form)
            made.tensor.copy_(whole[:, :, chunk].transpose(0, 1))
            self.objects.append(made)

    def write(self, prompt: int, payload: Payload) -> None:
        """Submits the objects in one batch, and waits for the last."""
        done = threading.Semaphore(0)
        self.backend.batched_submit_put_task(
            self.keys(self.chunks), self.objects, on_complete_callback=lambda _: done.release()
        )
        for _ in self.objects:
            if not done.acquire(timeout=TIMEOUT):
                raise RuntimeError(f"a store was not done after {TIMEOUT} s")
        for each in self.objects:
            each.ref_count_down()
        self.objects = []

    def read(self, prompt: int) -> Tensors:
        """Asks which chunks there are, gets them in one batch, and scatters them into the layers."""
        keys = self.keys(self.chunks)
        known = self.done(self.backend.batched_async_contains("bench", keys))
        found = self.done(self.backend.batched_get_non_blocking("bench", keys[:known]))
        if len(found) != self.chunks:
            raise MissingError(f"{known} of {self.chunks} chunks known, {len(found)} came")
        for chunk, each in enumerate(found):
            self.layers[:, :, chunk].copy_(each.tensor.transpose(0, 1))
            each.ref_count_down()
        return list(self.layers.view(self.shape.parts, self.shape.tokens, -1).unbind(0))

    def mark(self) -> None:
        """The names as its connector writes them, with small values: it only asks whether they exist."""
        names = [key.to_string() + self.suffix for key in self.keys(KNOWN)]
        with self.services.client() as client:
            client.mset(dict.fromkeys(names, b"1"))

    def lookup(self) -> int:
        """One call."""
        known: int = self.done(self.backend.batched_async_contains("bench", self.keys(ASKED)))
        return known

    def close(self) -> None:
        """Ends the loop. `RemoteBackend.close` is not called: on its event loop it waits for that loop, for ever."""
        self.done(_cancel_others())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(TIMEOUT)
        self.pool.memory_allocator.close()


async def _cancel_others() -> None:
    """Ends the workers of the event loop."""
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


class Redis(Backend):
    """`redis://`: redis-py's asyncio client, two values a chunk."""

    about = About(
        name="lmcache-redis",
        title="LMCache RemoteBackend, redis://",
        unit="a chunk of 256 tokens",
        sync="",
        settings="redis-py asyncio, 150 connections (its own); naive serde; nothing checked",
    )
    scheme = "redis"
    suffix = "metadata"

    @classmethod
    def version(cls) -> str:
        """With that of redis-py and its parser."""
        parser = redis.connection.DefaultParser.__name__.strip("_")
        return f"{super().version()}, redis-py {redis.__version__} {parser}"


class Resp(Backend):
    """`resp://`: its client in C++."""

    about = About(
        name="lmcache-resp",
        title="LMCache RemoteBackend, resp:// (C++)",
        unit="a chunk of 256 tokens",
        sync="",
        settings="8 threads (its default), batches; no metadata; nothing checked",
    )
    scheme = "resp"


class RespAdapter(Adapter, RespArm):
    """The L2 adapter `resp` of its multi-process server."""

    about = About(
        name="lmcache-l2-resp",
        title="LMCache L2 adapter resp (C++)",
        unit="a chunk of 256 tokens",
        sync="",
        settings="8 workers (its default); into its host buffer, then the layers; nothing checked",
    )

    def config(self) -> dict[str, Any]:
        """Its defaults."""
        return {"type": "resp", "host": HOST, "port": self.services.port}

    def many(self, count: int) -> list[Any]:
        """Keys of a lookup."""
        key = lmcache("v1.distributed.api").ObjectKey
        return [
            key(chunk_hash=(1 << 200 | name).to_bytes(32, "big"), model_name="bench", kv_rank=0)
            for name in range(count)
        ]

    def mark(self) -> None:
        """The names as the adapter writes them, with small values: it only asks whether they exist."""
        wire = lmcache("v1.distributed.l2_adapters.native_connector_l2_adapter")
        names = [wire._object_key_to_string(key) for key in self.many(KNOWN)]
        with self.services.client() as client:
            client.mset(dict.fromkeys(names, b"1"))

    def lookup(self) -> int:
        """One task."""
        keys = self.many(ASKED)
        layout = {0: lmcache("v1.distributed.api").MemoryLayoutDesc(shapes=[], dtypes=[])}
        task = self.adapter.submit_lookup_and_lock_task(keys, layout)
        found = None
        while found is None:
            if not lmcache(BENCH).wait_eventfd(
                self.adapter.get_lookup_and_lock_event_fd(), TIMEOUT
            ):
                raise RuntimeError(f"a lookup was not done after {TIMEOUT} s")
            found = self.adapter.query_lookup_and_lock_result(task)
        self.adapter.submit_unlock(keys[: found.popcount()])
        known: int = found.popcount()
        return known


class ValkeyAdapter(RespAdapter):
    """The L2 adapter `valkey`, over valkey-glide."""

    about = About(
        name="lmcache-l2-valkey",
        title="LMCache L2 adapter valkey (valkey-glide)",
        unit="a chunk of 256 tokens",
        sync="",
        settings="8 workers (its default); into its host buffer, then the layers; nothing checked",
    )

    @classmethod
    def version(cls) -> str:
        """With that of valkey-glide."""
        importlib.import_module("glide_sync")
        glide = importlib.metadata.version("valkey-glide-sync")
        return f"{super().version()}, valkey-glide-sync {glide}"

    def config(self) -> dict[str, Any]:
        """Its defaults."""
        return {"type": "valkey", "startup_nodes": f"{HOST}:{self.services.port}"}
