"""Files without a store around them: what the disk gives, and what one would write without a library."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
import safetensors.torch
import torch

from peers import disk
from peers.arm import About, Arm
from peers.payload import pages, parts

if TYPE_CHECKING:
    from peers.payload import Payload, Shape, Tensors

THREADS = 4
PIECE = 1 << 20
# The flag is absent where it is not known: I/O then goes through the page cache.
O_DIRECT = getattr(os, "O_DIRECT", 0)


class FileArm(Arm):
    """One file a prompt."""

    def __init__(self, directory: Path, shape: Shape) -> None:
        super().__init__(directory, shape)
        self.last = directory

    @classmethod
    def version(cls) -> str:
        """There is none."""
        return ""

    def path(self, prompt: int) -> Path:
        """The file of a prompt."""
        self.last = self.directory / f"{prompt}.kv"
        return self.last

    def open(self) -> None:
        """Nothing to open."""

    def sync(self) -> None:
        """The last file and its name."""
        disk.fsync(self.last)

    def close(self) -> None:
        """Nothing to close."""


class DirectFile(FileArm):
    """The limit: no format, no name, no check; just bytes past the page cache."""

    about = About(
        name="direct",
        title="plain file, O_DIRECT, 4 threads (the limit)",
        unit="a prompt",
        sync="fsync",
        warm="the disk",
    )

    def __init__(self, directory: Path, shape: Shape) -> None:
        super().__init__(directory, shape)
        self.target = pages(shape.prompt_bytes)
        self.workers = ThreadPoolExecutor(THREADS)

    def write(self, prompt: int, payload: Payload) -> None:
        """Pieces of 1 MiB, four at a time."""
        view = payload.bytes.data
        flags = os.O_WRONLY | os.O_CREAT | O_DIRECT
        descriptor = os.open(self.path(prompt), flags, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, len(view))
            starts = range(0, len(view), PIECE)
            done = self.workers.map(
                lambda at: os.pwrite(descriptor, view[at : at + PIECE], at), starts
            )
            self.expect(sum(done))
        finally:
            os.close(descriptor)

    def read(self, prompt: int) -> Tensors:
        """Pieces of 1 MiB, four at a time."""
        view = self.target.data
        descriptor = os.open(self.path(prompt), os.O_RDONLY | O_DIRECT)
        try:
            starts = range(0, len(view), PIECE)
            done = self.workers.map(
                lambda at: os.preadv(descriptor, [view[at : at + PIECE]], at), starts
            )
            self.expect(sum(done))
        finally:
            os.close(descriptor)
        return parts(self.target, self.shape)

    def expect(self, moved: int) -> None:
        """Checks the length."""
        if moved != self.shape.prompt_bytes:
            raise RuntimeError(f"{moved} of {self.shape.prompt_bytes} bytes were moved")


class BufferedFile(FileArm):
    """What one writes first: write and readinto, through the page cache, into memory that is used again."""

    about = About(
        name="buffered", title="plain file, page cache, 1 thread", unit="a prompt", sync="fsync"
    )

    def __init__(self, directory: Path, shape: Shape) -> None:
        super().__init__(directory, shape)
        self.target = pages(shape.prompt_bytes)

    def write(self, prompt: int, payload: Payload) -> None:
        """One call."""
        with self.path(prompt).open("wb", buffering=0) as file:
            file.write(payload.bytes.data)

    def read(self, prompt: int) -> Tensors:
        """One call."""
        with self.path(prompt).open("rb", buffering=0) as file:
            moved = file.readinto(self.target.data)
        if moved != self.shape.prompt_bytes:
            raise RuntimeError(f"{moved} of {self.shape.prompt_bytes} bytes were read")
        return parts(self.target, self.shape)


class Safetensors(FileArm):
    """`safetensors`: a header of JSON and the tensors; read by mapping the file."""

    about = About(
        name="safetensors", title="safetensors, mapped", unit="a prompt, 60 tensors", sync=""
    )

    @classmethod
    def version(cls) -> str:
        """Of the package."""
        return str(safetensors.__version__)

    def write(self, prompt: int, payload: Payload) -> None:
        """One call."""
        named = {str(index): each for index, each in enumerate(payload.tensors())}
        safetensors.torch.save_file(named, self.path(prompt))

    def read(self, prompt: int) -> Tensors:
        """Maps the file, and touches every page, since a mapped byte is not there before."""
        with safetensors.safe_open(self.path(prompt), framework="pt") as file:
            tensors = [file.get_tensor(str(index)) for index in range(self.shape.parts)]
        for tensor in tensors:
            int(tensor.view(torch.uint8).flatten()[:: disk.PAGE].sum())
        return tensors


class TorchSave(FileArm):
    """`torch.save` and `torch.load(weights_only=True)`."""

    about = About(name="torch", title="torch.save", unit="a prompt, 60 tensors", sync="")

    @classmethod
    def version(cls) -> str:
        """Of torch."""
        return str(torch.__version__)

    def write(self, prompt: int, payload: Payload) -> None:
        """One call."""
        torch.save(payload.tensors(), self.path(prompt))

    def read(self, prompt: int) -> Tensors:
        """One call, into memory of its own."""
        loaded = torch.load(self.path(prompt), weights_only=True)
        return list(loaded)
