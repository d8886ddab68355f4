"""Embedded stores written in Rust, values inline, called through the small library in `rust/`."""

from __future__ import annotations

import ctypes
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from peers.arm import About, Arm, MissingError
from peers.payload import pages, parts

if TYPE_CHECKING:
    from peers.payload import Payload, Shape, Tensors

CRATE = Path(__file__).parents[1] / "rust"
TARGET = Path(__file__).parents[3] / "target" / "peers"
UNIT = "K or V of a layer"


def library_path() -> Path:
    """Where the crate's library is, or would be."""
    return TARGET / "release" / "libkvlab_peers.so"


class Target(ctypes.Structure):
    """Where a value goes; as in `rust/src/lib.rs`."""

    _fields_: ClassVar = [
        ("key", ctypes.c_uint64),
        ("data", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
    ]


def load() -> ctypes.CDLL:
    """The library."""
    path = library_path()
    if not path.exists():
        raise FileNotFoundError(f"{path.name} is not built: benches/peers/install.sh builds it")
    library = ctypes.CDLL(str(path))
    library.peers_error.restype = ctypes.c_char_p
    library.peers_open.restype = ctypes.c_void_p
    library.peers_open.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
    library.peers_put.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint64,
        ctypes.c_void_p,
        ctypes.c_size_t,
    ]
    library.peers_commit.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.peers_get.argtypes = [ctypes.c_void_p, ctypes.POINTER(Target), ctypes.c_size_t]
    library.peers_close.argtypes = [ctypes.c_void_p]
    return library


class Embedded(Arm):
    """One value for K or V of a layer: the largest unit that needs no scattering, so the kindest to such a store."""

    def __init__(self, directory: Path, shape: Shape) -> None:
        super().__init__(directory, shape)
        self.library = load()
        self.target = pages(shape.prompt_bytes)

    @classmethod
    def version(cls) -> str:
        """Of the crate, as locked."""
        load()
        locked = tomllib.loads((CRATE / "Cargo.lock").read_text())
        versions = {each["name"]: each["version"] for each in locked["package"]}
        return str(versions[cls.about.name])

    def check(self, result: int) -> None:
        """Raises what the library says."""
        if result:
            raise RuntimeError(self.library.peers_error().decode(errors="replace"))

    def open(self) -> None:
        """Opens the store."""
        name = self.about.name.encode()
        self.handle = self.library.peers_open(name, os.fsencode(self.directory))
        if not self.handle:
            raise RuntimeError(self.library.peers_error().decode(errors="replace"))

    def key(self, prompt: int, part: int) -> int:
        """Of a part of a prompt."""
        return prompt * self.shape.parts + part

    def write(self, prompt: int, payload: Payload) -> None:
        """Puts the parts and commits, without a sync."""
        for part, tensor in enumerate(payload.tensors()):
            size = self.shape.part_bytes
            key = self.key(prompt, part)
            self.check(self.library.peers_put(self.handle, key, tensor.data_ptr(), size))
        self.check(self.library.peers_commit(self.handle, 0))

    def sync(self) -> None:
        """Asks for stable storage."""
        self.check(self.library.peers_commit(self.handle, 1))

    def read(self, prompt: int) -> Tensors:
        """Gets the parts, four at a time, into memory that is used again."""
        tensors = parts(self.target, self.shape)
        targets = (Target * len(tensors))(
            *(
                Target(self.key(prompt, part), tensor.data_ptr(), self.shape.part_bytes)
                for part, tensor in enumerate(tensors)
            )
        )
        result = self.library.peers_get(self.handle, targets, len(tensors))
        if result > 0:
            raise MissingError("no value")
        self.check(result)
        return tensors

    def close(self) -> None:
        """Closes the store."""
        self.check(self.library.peers_close(self.handle))


class Sled(Embedded):
    """`sled`."""

    about = About(name="sled", title="sled, values inline", unit=UNIT, sync="flush")


class Redb(Embedded):
    """`redb`."""

    about = About(name="redb", title="redb", unit=UNIT, sync="commit, Durability::Immediate")


class Fjall(Embedded):
    """`fjall`."""

    about = About(
        name="fjall", title="fjall, key-value separation", unit=UNIT, sync="persist(SyncData)"
    )


class Foyer(Embedded):
    """`foyer`: a cache, which may forget; its queues are long enough for a prompt."""

    about = About(
        name="foyer",
        title="foyer, hybrid cache, O_DIRECT",
        unit=UNIT,
        sync="waits for its queue; no fsync",
        warm="its memory, else the disk",
    )
