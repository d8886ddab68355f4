"""What an arm is: one way to keep the KV of prompts on a disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pathlib import Path

    from peers.payload import Payload, Shape, Tensors


class MissingError(Exception):
    """The arm says that it does not have the prompt, or not sound: what a cache should say of damaged bytes."""


@dataclass(frozen=True)
class About:
    """What the table says of an arm."""

    name: str
    """One word, for the command line."""
    title: str
    unit: str
    """What one value, file or record holds."""
    sync: str
    """How it makes a write durable; empty if it cannot."""
    warm: str = "page cache"
    """Where a warm read comes from."""
    settings: str = ""
    """What was set, where its defaults were not taken or ought to be known."""


class Arm(ABC):
    """One way to keep prompts on a disk. `open` and `close` may follow each other several times on one directory."""

    about: ClassVar[About]

    def __init__(self, directory: Path, shape: Shape) -> None:
        self.directory = directory
        self.shape = shape

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """Of the peer. Raises what says why the arm cannot run here."""

    @abstractmethod
    def open(self) -> None:
        """Opens what the directory holds, which is nothing at first."""

    def stage(self, payload: Payload) -> None:  # noqa: B027 - most arms have nothing to stage
        """Puts the selected prompt where this arm's engine would have computed it. Off the clock."""

    @abstractmethod
    def write(self, prompt: int, payload: Payload) -> None:
        """Keeps the selected prompt; returns when the peer acknowledges it."""

    def sync(self) -> None:
        """Waits until what was written is on stable storage. Called only if `about.sync` says that it can."""
        raise NotImplementedError

    def warm(self, prompt: int) -> None:
        """Brings a prompt to host memory, in the way of this arm. Off the clock."""
        self.read(prompt)

    @abstractmethod
    def read(self, prompt: int) -> Tensors:
        """The prompt, layer by layer, every byte of it in memory. Valid until the next call.

        Raises:
            MissingError: it says that it has none, or none that is sound.
        """

    @abstractmethod
    def close(self) -> None:
        """Closes it."""
