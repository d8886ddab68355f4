"""What an arm of the remote run is: one way to bring a prefix from elsewhere into an engine's layers."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch

from peers.arm import Arm
from peers.payload import DIM, HEADS, pages, parts

if TYPE_CHECKING:
    from peers.payload import Tensors
    from peers.remote.services import Services

ASKED = 128
"""Names of a lookup."""
KNOWN = 96
"""How many of them, from the first on, are there."""


class RemoteArm(Arm):
    """One way to bring a prefix. The run says where the servers are before it opens the arm."""

    services: Services
    asks: bool = True
    """Whether it can say which names are there without bringing them."""

    @abstractmethod
    def wipe(self) -> None:
        """Leaves nothing of an earlier turn. Off the clock, while it is closed."""

    @abstractmethod
    def stored(self) -> int:
        """Bytes that lie at the other end now; what a wiped one takes is subtracted."""

    @abstractmethod
    def damage(self, needle: bytes) -> str:
        """Inverts one byte at the other end: in the middle of `needle` if it lies there as it is. Says which."""

    def chill(self) -> None:
        """Forgets what a read must not find in a cache. Off the clock, before each read."""

    def mark(self) -> None:
        """Makes the first 96 names of a lookup known. Off the clock."""
        raise NotImplementedError

    def lookup(self) -> int:
        """Asks which of 128 names are there; how many from the first on are. Called only if `asks` says so."""
        raise NotImplementedError

    def target(self) -> Tensors:
        """An engine's layers, which are there and were touched before: `[tokens, heads * dim]` each."""
        return parts(pages(self.shape.prompt_bytes), self.shape)


class RespArm(RemoteArm):
    """One whose bytes lie on the server that speaks RESP."""

    def wipe(self) -> None:
        """Empties the server."""
        with self.services.client() as client:
            client.flushall(asynchronous=False)

    def stored(self) -> int:
        """What the server says that each name and value takes, its allocator's rounding included."""
        with self.services.client() as client:
            found: Any = [client.memory_usage(name, samples=0) for name in client.scan_iter()]
        return sum(found)

    def damage(self, needle: bytes) -> str:
        """By SETRANGE: of the value that holds the needle, else in the middle of the largest one."""
        with self.services.client() as client:
            names: Any = [name for name in client.scan_iter() if client.type(name) == b"string"]
            values: dict[bytes, Any] = {name: client.get(name) for name in names}
            name = next((name for name in names if needle in values[name]), None)
            if name is None:
                name = max(names, key=lambda each: len(values[each]))
                at = len(values[name]) // 2
            else:
                at = values[name].index(needle) + len(needle) // 2
            inverted: Any = bytes([values[name][at] ^ 0xFF])
            client.setrange(name, at, inverted)
        return f"byte {at} of {len(values[name])}"


def by_head(part: torch.Tensor) -> torch.Tensor:
    """A part `[tokens, heads * dim]` as `[heads, tokens, dim]`, without a copy."""
    return part.view(-1, HEADS, DIM).transpose(0, 1)


def by_token(part: torch.Tensor) -> torch.Tensor:
    """A part `[heads, tokens, dim]` as `[tokens, heads, dim]`, without a copy."""
    return part.transpose(-3, -2)
