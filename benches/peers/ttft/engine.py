"""What an engine does for this bench."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from peers.ttft import TURN

if TYPE_CHECKING:
    from pathlib import Path


class Engine(ABC):
    """A model, loaded, in a process of its own. Every way gives seconds and what came first.

    What came first is compared between restored and never evicted: the logits' digest where an engine shows them.
    """

    title: ClassVar[str]

    def __init__(self, directory: Path, longest: int) -> None:
        """Loads the model, with room for a prefix of `longest` tokens and a turn."""
        self.directory = directory
        self.room = longest + TURN + 32

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """Of the engine. Raises what says why it cannot run here."""

    @abstractmethod
    def keep(self, prefix: list[int]) -> int:
        """Computes a prefix and keeps it: in memory, and in files. The bytes that these take on the disk."""

    @abstractmethod
    def computed(self, prefix: list[int], turn: list[int]) -> tuple[float, str]:
        """From nothing."""

    @abstractmethod
    def restored(self, prefix: list[int], turn: list[int]) -> tuple[float, str]:
        """From the files, the page cache dropped before."""

    @abstractmethod
    def never_evicted(self, prefix: list[int], turn: list[int]) -> tuple[float, str]:
        """From memory, in which the prefix stands alone, without an earlier turn."""

    @abstractmethod
    def damaged(self, prefix: list[int], turn: list[int]) -> str:
        """Inverts a byte of the kept KV in its file and restores: noticed or served."""

    @abstractmethod
    def close(self) -> None:
        """Ends it."""
