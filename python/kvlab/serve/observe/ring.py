"""Amounts by name and second, for the last few minutes."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

from kvlab.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SecondRing"]


class SecondRing:
    """A bounded row of one-second buckets. Not thread-safe: its owner locks.

    Args:
        seconds: Buckets that are kept, at least 1.

    Raises:
        InvalidArgumentError: no bucket.
    """

    def __init__(self, seconds: int) -> None:
        if seconds < 1:
            raise InvalidArgumentError(f"a ring of {seconds} seconds: give 1 or more")
        self.seconds = seconds
        self._buckets: deque[tuple[int, Counter[str]]] = deque()

    def add(self, name: str, amount: int, now: float) -> None:
        """Adds to the bucket of a moment.

        Args:
            name: What was counted.
            amount: How much.
            now: Seconds of a clock that never goes back.
        """
        second = int(now)
        if not self._buckets or self._buckets[-1][0] < second:
            self._buckets.append((second, Counter()))
            self._forget(second)
        self._buckets[-1][1][name] += amount

    def series(self, names: Sequence[str], now: float) -> dict[str, list[int]]:
        """The amounts of each name, the oldest second first and the running one last: `seconds` numbers each."""
        second = int(now)
        self._forget(second)
        rows = {name: [0] * self.seconds for name in names}
        for at, amounts in self._buckets:
            place = self.seconds - 1 - max(0, second - at)
            for name in names:
                rows[name][place] += amounts[name]
        return rows

    def last(self, name: str, seconds: int, now: float) -> int:
        """What was added in the last `seconds` whole seconds: the running one is left out."""
        second = int(now)
        return sum(
            amounts[name] for at, amounts in self._buckets if second - seconds <= at < second
        )

    def _forget(self, second: int) -> None:
        while self._buckets and self._buckets[0][0] <= second - self.seconds:
            self._buckets.popleft()
