"""Without a server: a file on a shared folder, and tensors of the same process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from peers import disk
from peers.arm import About, MissingError
from peers.arms import files
from peers.remote.arm import ASKED, KNOWN, RemoteArm

if TYPE_CHECKING:
    from pathlib import Path

    from peers.payload import Payload, Shape, Tensors


class Folder(files.Safetensors, RemoteArm):
    """safetensors in a folder that others see, read while the page cache has the file."""

    about = About(
        name="folder",
        title="safetensors in a folder, page cache warm",
        unit="a prompt, 60 tensors",
        sync="",
        settings="a local disk; mapped, each page touched; written without fsync; nothing checked",
    )

    def wipe(self) -> None:
        """Removes the files."""
        for path in disk.files(self.directory):
            path.unlink()

    def stored(self) -> int:
        """Bytes of the files."""
        return sum(path.stat().st_size for path in disk.files(self.directory))

    def damage(self, needle: bytes) -> str:
        """In the file."""
        return disk.flip(self.directory, needle)

    def mark(self) -> None:
        """Small files."""
        for name in range(KNOWN):
            (self.directory / f"block-{name}").write_bytes(b"1")

    def lookup(self) -> int:
        """A stat each."""
        known = [(self.directory / f"block-{name}").exists() for name in range(ASKED)]
        return known.index(False)


class ColdFolder(Folder):
    """The same, written to the disk and read when the page cache has forgotten it."""

    about = About(
        name="folder-cold",
        title="safetensors in a folder, page cache cold",
        unit="a prompt, 60 tensors",
        sync="fsync",
        settings="a local disk; mapped, each page touched; written with fsync; nothing checked",
    )
    asks = False

    def write(self, prompt: int, payload: Payload) -> None:
        """One call, and fsync of the file and its name."""
        super().write(prompt, payload)
        self.sync()

    def chill(self) -> None:
        """Drops the page cache of the file."""
        disk.drop(self.directory)


class Memory(RemoteArm):
    """The lower bound: tensors that this process kept, copied into the layers."""

    about = About(
        name="memory",
        title="a dict of tensors in the same process, copied (the lower bound)",
        unit="K or V of a layer",
        sync="",
        settings="nothing is shared with anybody; nothing checked",
    )

    def __init__(self, directory: Path, shape: Shape) -> None:
        super().__init__(directory, shape)
        self.layers = self.target()
        self.kept: dict[tuple[int, int], torch.Tensor] = {}
        self.marks: set[int] = set()

    @classmethod
    def version(cls) -> str:
        """There is none."""
        return ""

    def open(self) -> None:
        """Nothing to open."""

    def close(self) -> None:
        """Nothing to close."""

    def wipe(self) -> None:
        """Forgets all."""
        self.kept.clear()

    def stored(self) -> int:
        """Bytes of the tensors."""
        return sum(each.nbytes for each in self.kept.values())

    def damage(self, needle: bytes) -> str:
        """In a tensor."""
        part = self.shape.parts // 2
        flat = self.kept[0, part].view(torch.uint8).view(-1)
        at = flat.numpy().tobytes().index(needle) + len(needle) // 2
        flat[at] ^= 0xFF
        return f"byte {at} of part {part}"

    def write(self, prompt: int, payload: Payload) -> None:
        """Copies them."""
        for part, each in enumerate(payload.tensors()):
            self.kept[prompt, part] = each.clone()

    def read(self, prompt: int) -> Tensors:
        """Copies them into the layers."""
        if (prompt, 0) not in self.kept:
            raise MissingError("not in the dict")
        for part, layer in enumerate(self.layers):
            layer.copy_(self.kept[prompt, part])
        return self.layers

    def mark(self) -> None:
        """Names in a set."""
        self.marks = set(range(KNOWN))

    def lookup(self) -> int:
        """Asks the set."""
        return [name in self.marks for name in range(ASKED)].index(False)
