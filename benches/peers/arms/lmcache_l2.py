"""LMCache's L2 adapters of its multi-process server, driven as its own `lmcache bench l2` drives them.

A chunk of 256 tokens, all layers, is one object, `[2, layers, 256, heads * dim]` (its KV_2LTD). Objects stand in a host
buffer, which is LMCache's L1; from there they are scattered into the layers.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from peers.arm import About, Arm, MissingError
from peers.payload import pages

if TYPE_CHECKING:
    from peers.payload import Payload, Shape, Tensors

CHUNK_TOKENS = 256
TIMEOUT = 120.0


BENCH = "cli.commands.bench.l2_adapter_bench.data"


def lmcache(name: str) -> Any:
    """A module of the package, which has no types."""
    return importlib.import_module(f"lmcache.{name}")


class Adapter(Arm):
    """One L2 adapter."""

    def __init__(self, directory: Path, shape: Shape) -> None:
        super().__init__(directory, shape)
        self.chunks = -(-shape.tokens // CHUNK_TOKENS)
        self.chunk_tokens = shape.tokens // self.chunks
        self.chunk_bytes = shape.parts * self.chunk_tokens * shape.row_bytes
        self.host = torch.from_numpy(pages(shape.prompt_bytes))
        layers = torch.from_numpy(pages(shape.prompt_bytes)).view(self.shape.dtype)
        self.layers = layers.view(shape.layers, 2, self.chunks, self.chunk_tokens, -1)

    @classmethod
    def version(cls) -> str:
        """Of the wheel."""
        os.environ.setdefault("LMCACHE_LOG_LEVEL", "ERROR")
        lmcache("v1.distributed.l2_adapters")
        return importlib.metadata.version("lmcache")

    def config(self) -> dict[str, Any]:
        """What `--l2-adapter` would be."""
        raise NotImplementedError

    def open(self) -> None:
        """Makes the adapter over the host buffer."""
        adapters = lmcache("v1.distributed.l2_adapters")
        arguments = argparse.Namespace(l2_adapter=[json.dumps(self.config())])
        config = adapters.config.parse_args_to_l2_adapters_config(arguments).adapters[0]
        memory = lmcache(BENCH).create_l1_memory_desc(self.host, align_bytes=4096)
        self.adapter = adapters.create_l2_adapter(config, l1_memory_desc=memory)
        self.objects = [self.object(chunk) for chunk in range(self.chunks)]

    def object(self, chunk: int) -> Any:
        """A chunk of the host buffer, as LMCache's own benchmark makes it."""
        memory = lmcache("v1.memory_management")
        start = chunk * self.chunk_bytes
        metadata = memory.MemoryObjMetadata(
            shape=torch.Size([self.chunk_bytes]),
            dtype=torch.uint8,
            address=start,
            phy_size=self.chunk_bytes,
            fmt=memory.MemoryFormat.KV_2LTD,
            ref_count=1,
        )
        raw = self.host[start : start + self.chunk_bytes]
        return memory.TensorMemoryObj(raw_data=raw, metadata=metadata, parent_allocator=None)

    def keys(self, prompt: int) -> list[Any]:
        """A key for each chunk of a prompt."""
        api = lmcache("v1.distributed.api")
        return [
            api.ObjectKey(
                chunk_hash=(prompt * self.chunks + chunk).to_bytes(32, "big"),
                model_name="bench",
                kv_rank=0,
            )
            for chunk in range(self.chunks)
        ]

    def objects_view(self) -> torch.Tensor:
        """The host buffer as `[chunks, 2, layers, tokens, elements]`."""
        shape = (self.chunks, 2, self.shape.layers, self.chunk_tokens, -1)
        return self.host.view(self.shape.dtype).view(shape)

    def stage(self, payload: Payload) -> None:
        """The device-to-host copy has been made: the objects stand in the host buffer."""
        whole = torch.stack(payload.tensors()).view(self.layers.shape)
        self.objects_view().copy_(whole.permute(2, 1, 0, 3, 4))

    def write(self, prompt: int, payload: Payload) -> None:
        """Stores the objects of a prompt in one task."""
        wait_eventfd = lmcache(BENCH).wait_eventfd
        task = self.adapter.submit_store_task(self.keys(prompt), self.objects)
        done: dict[int, Any] = {}
        while task not in done:
            if not wait_eventfd(self.adapter.get_store_event_fd(), TIMEOUT):
                raise RuntimeError(f"a store was not done after {TIMEOUT} s")
            done.update(self.adapter.pop_completed_store_tasks())
        if not done[task].is_successful():
            raise RuntimeError("a store failed")

    def read(self, prompt: int) -> Tensors:
        """Looks the objects up, loads them in one task, and scatters them into the layers."""
        wait_eventfd = lmcache(BENCH).wait_eventfd
        description = lmcache("v1.distributed.api").MemoryLayoutDesc
        keys = self.keys(prompt)
        layout = {0: description(shapes=[], dtypes=[])}
        task = self.adapter.submit_lookup_and_lock_task(keys, layout)
        found = None
        while found is None:
            if not wait_eventfd(self.adapter.get_lookup_and_lock_event_fd(), TIMEOUT):
                raise RuntimeError(f"a lookup was not done after {TIMEOUT} s")
            found = self.adapter.query_lookup_and_lock_result(task)
        task = self.adapter.submit_load_task(keys, self.objects)
        loaded = None
        while loaded is None:
            if not wait_eventfd(self.adapter.get_load_event_fd(), TIMEOUT):
                raise RuntimeError(f"a load was not done after {TIMEOUT} s")
            loaded = self.adapter.query_load_result(task)
        self.adapter.submit_unlock(keys)
        if loaded.popcount() != self.chunks:
            raise MissingError(
                f"{found.popcount()} chunks found, {loaded.popcount()} loaded, of {self.chunks}"
            )
        self.layers.copy_(self.objects_view().permute(2, 1, 0, 3, 4))
        return list(self.layers.view(self.shape.parts, self.shape.tokens, -1).unbind(0))

    def close(self) -> None:
        """Closes the adapter."""
        self.adapter.close()


class FsNative(Adapter):
    """The C++ file adapter, four workers, O_DIRECT."""

    about = About(
        name="lmcache-native",
        title="LMCache fs_native, O_DIRECT, 4 workers",
        unit="a file a chunk of 256 tokens",
        sync="",
        warm="the disk",
    )

    def config(self) -> dict[str, Any]:
        """As its documentation advises for NVMe."""
        return {
            "type": "fs_native",
            "base_path": str(self.directory),
            "num_workers": 4,
            "use_odirect": True,
        }


class Fs(Adapter):
    """The Python file adapter."""

    about = About(
        name="lmcache-fs", title="LMCache fs", unit="a file a chunk of 256 tokens", sync=""
    )

    def config(self) -> dict[str, Any]:
        """Its defaults."""
        return {"type": "fs", "base_path": str(self.directory)}


class RawBlock(Adapter):
    """The adapter for a raw device, here over one preallocated file, O_DIRECT."""

    about = About(
        name="lmcache-raw",
        title="LMCache raw_block over a file, O_DIRECT",
        unit="a slot a chunk of 256 tokens",
        sync="",
        warm="the disk",
    )
    HEADER = 4096
    META = 16 << 20

    @classmethod
    def version(cls) -> str:
        """Of the wheel and of its I/O helper."""
        importlib.import_module("lmcache_rust_raw_block_io")
        helper = importlib.metadata.version("lmcache_rust_raw_block_io")
        return f"{super().version()}, raw block I/O {helper}"

    def config(self) -> dict[str, Any]:
        """Slots of one chunk and its header."""
        slot = self.HEADER + self.chunk_bytes
        device = self.directory / "device"
        if not device.exists():
            with device.open("xb") as file:
                slots = self.chunks * self.shape.prompts + 1
                file.truncate(self.META + slots * slot)
        return {
            "type": "raw_block",
            "device_path": str(device),
            "slot_bytes": slot,
            "header_bytes": self.HEADER,
            "meta_total_bytes": self.META,
            "num_store_workers": 4,
            "num_load_workers": 4,
        }
