"""Lists of block ids that are mostly consecutive."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

__all__ = ["Runs"]


class Runs(Sequence[int]):
    """Block ids as stretches of consecutive ones: a prompt of 2,000 blocks is a few numbers.

    Args:
        stretches: start, count, start, count and so on, each 0 to 2**64 - 1.
        offset: Added to every start.

    Raises:
        ValueError: a count without a start, or a stretch beyond 2**64.
    """

    __slots__ = ("_ends", "stretches")

    def __init__(self, stretches: Iterable[int], offset: int = 0) -> None:
        numbers = array("Q", stretches)
        if len(numbers) % 2:
            raise ValueError(f"stretches are pairs of start and count, got {len(numbers)} numbers")
        ends = array("Q")
        end = 0
        for index in range(0, len(numbers), 2):
            numbers[index] += offset
            if numbers[index] + numbers[index + 1] > 1 << 64:
                raise ValueError(
                    f"{numbers[index + 1]} ids from {numbers[index]} on go beyond 2**64"
                )
            end += numbers[index + 1]
            ends.append(end)
        self.stretches = numbers
        self._ends = ends

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return list(self)[index]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"index {index} of {len(self)} ids")
        stretch = bisect_right(self._ends, position)
        before = self._ends[stretch - 1] if stretch else 0
        return self.stretches[2 * stretch] + position - before

    def __iter__(self) -> Iterator[int]:
        for index in range(0, len(self.stretches), 2):
            start = self.stretches[index]
            yield from range(start, start + self.stretches[index + 1])

    def __repr__(self) -> str:
        return f"Runs({list(self.stretches)})"
