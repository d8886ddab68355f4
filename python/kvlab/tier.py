"""A shared tier of your own: any place that keeps bytes under names, for `Store.open(remote=)`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

__all__ = ["Tier"]


class Tier(ABC):
    """Somewhere to keep bytes under names: an object store, another cache, a folder.

    An object of a subclass can be given to `Store.open` and `BlockStore.open` as ``remote``. It only
    has to keep values or to forget them: what belongs together, what expires, what is damaged or
    encrypted is the store's business, and what it gives back is checked before it is used.

    Calls come from several threads of the store, one at a time under the GIL, so a Tier in Python is
    slower than a server that the store talks to itself. They should answer within ``remote_timeout``:
    they cannot be interrupted. What they raise is counted and is a miss; after `TimeoutError`, or
    several `ConnectionError` or others in a row, the tier is left alone for a while and then pinged.
    `PermissionError` counts as refused access, `MemoryError` as no room for values.

    Examples:
        >>> class InDict(Tier):
        ...     name = "dict"
        ...
        ...     def __init__(self):
        ...         self.values = {}
        ...
        ...     def get(self, keys):
        ...         return [self.values.get(key) for key in keys]
        ...
        ...     def put(self, items, ttl):
        ...         self.values.update(items)
        ...
        ...     def remove(self, keys):
        ...         return [self.values.pop(key, None) is not None for key in keys]
        >>> import kvlab
        >>> tier, key = InDict(), bytes(32)
        >>> with kvlab.BlockStore.open(l2="1MiB", remote=tier) as store:
        ...     store.put(key, b"some KV")
        ...     store.flush()
        True
        >>> with kvlab.BlockStore.open(l2="1MiB", remote=tier) as another:
        ...     another.get(key)
        b'some KV'
    """

    name: str = "tier"
    """What messages, statistics and metrics call it."""

    @abstractmethod
    def get(self, keys: Sequence[bytes]) -> Sequence[Buffer | None]:
        """The values of these names, in their order; None for each that is not there."""

    @abstractmethod
    def put(self, items: Sequence[tuple[bytes, bytes]], ttl: float) -> None:
        """Keeps values, in this order, which are of no use after ``ttl`` seconds.

        A value of a name replaces the one before. Values are as long as runs: up to 16 MiB and a header.
        """

    @abstractmethod
    def remove(self, keys: Sequence[bytes]) -> Sequence[bool]:
        """Deletes values; which of them there were."""

    def get_ranges(self, wanted: Sequence[tuple[bytes, int, int]]) -> Sequence[Buffer | None]:
        """Parts of values, each a name, the first byte and the byte behind the last.

        This one gets whole values and cuts them; override it if parts can be had for less. A value
        that is shorter gives what it has.
        """
        names = dict.fromkeys(name for name, _, _ in wanted)
        values = dict(zip(names, self.get(list(names)), strict=True))
        parts: list[Buffer | None] = []
        for name, start, stop in wanted:
            value = values[name]
            parts.append(None if value is None else memoryview(value).cast("B")[start:stop])
        return parts

    def ping(self) -> None:
        """Raises if it cannot be used now. This one asks for a name that nothing has."""
        self.get([b"kvlab:ping"])
