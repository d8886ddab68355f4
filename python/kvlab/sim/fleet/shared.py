"""What the servers of L4 hold: stretches of blocks, the longest unused of which goes first."""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["SharedMemory"]


class SharedMemory:
    """The memory of all servers together, under allkeys-lru.

    A stretch is blocks that follow one another in every prompt that has them. It is kept from its first block on, and
    given up as a whole. Redis samples for the longest unused value; here it is found exactly. Names are spread over the
    servers by hashing, so that one memory as large as all stands for them.

    Attributes:
        capacity: Blocks that fit; None for all.
        held: Blocks that are there.
        evicted: Blocks that were given up for others.
        refused: Blocks that did not fit at all.
    """

    __slots__ = ("_stretches", "capacity", "evicted", "held", "refused")

    def __init__(self, capacity: int | None) -> None:
        self.capacity = capacity
        self.held = 0
        self.evicted = 0
        self.refused = 0
        self._stretches: OrderedDict[int, int] = OrderedDict()

    def find(self, stretch: int) -> int:
        """Blocks of a stretch that are there, from its first on; asking counts as a use."""
        blocks = self._stretches.get(stretch, 0)
        if blocks:
            self._stretches.move_to_end(stretch)
        return blocks

    def peek(self, stretch: int) -> int:
        """As `find`, but nobody used it."""
        return self._stretches.get(stretch, 0)

    def store(self, stretch: int, blocks: int) -> None:
        """The first `blocks` blocks of a stretch are there from now on, as far as there is room."""
        before = self._stretches.get(stretch, 0)
        if blocks <= before:
            self.find(stretch)
            return
        if self.capacity is not None and blocks > self.capacity:
            self.refused += blocks - before
            return
        self._stretches[stretch] = blocks
        self._stretches.move_to_end(stretch)
        self.held += blocks - before
        while self.capacity is not None and self.held > self.capacity:
            _, gone = self._stretches.popitem(last=False)
            self.held -= gone
            self.evicted += gone
