"""What a distributed cache has done, in counts and times."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict

import numpy as np

if TYPE_CHECKING:
    from kvlab._types import BlockStoreStats, RemoteHealth

Miss: TypeAlias = Literal["absent", "damaged", "shape"]
_REMEMBERED = 4096
"""Calls whose times make the percentiles: the latest."""


class Latency(TypedDict):
    """Milliseconds of the latest calls, at most 4,096.

    Attributes:
        calls: How many.
        p50: Half of them took no longer; 0 without any, as the others.
        p95: 95 of 100.
        p99: 99 of 100.
        max: The longest.
    """

    calls: int
    p50: float
    p95: float
    p99: float
    max: float


class DistributedStats(TypedDict):
    """A `DistributedKVCache`; counts since it was made. A call for a whole prefix is one.

    Attributes:
        hits: Calls that were given keys and values.
        misses: Calls that were not, for any reason.
        hit_rate: Hits of all calls, 0 to 1; 0 without any.
        misses_by_reason: ``absent``: some of it is not there. ``damaged``: it is not readable, or was
            written by a newer kvlab. ``shape``: it is not of the shape or dtype that belongs here.
        writes: Calls that wrote and were taken.
        refused_writes: Calls of which the store did not take all; its ``stats()`` says why.
        written_bytes: Bytes handed to the store.
        written_tensor_bytes: Bytes of the keys and values in them.
        read_bytes: Bytes that the store gave.
        read_tensor_bytes: Bytes of the keys and values in them.
        get: What calls that read took, decoding included.
        put: What calls that wrote took, encoding included; the store writes to the server behind them.
        store: The store's own ``stats()``.
        health: How the servers answer now, their memory included; None without any, or of a closed store.
    """

    hits: int
    misses: int
    hit_rate: float
    misses_by_reason: dict[Miss, int]
    writes: int
    refused_writes: int
    written_bytes: int
    written_tensor_bytes: int
    read_bytes: int
    read_tensor_bytes: int
    get: Latency
    put: Latency
    store: BlockStoreStats
    health: RemoteHealth | None


class Meter:
    """Counts calls. Safe from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hits = 0
        self._misses: dict[Miss, int] = {"absent": 0, "damaged": 0, "shape": 0}
        self._writes = [0, 0]
        self._written = [0, 0]
        self._read = [0, 0]
        self._get: deque[float] = deque(maxlen=_REMEMBERED)
        self._put: deque[float] = deque(maxlen=_REMEMBERED)

    def hit(self, seconds: float, stored: int, tensors: int) -> None:
        """Note a call that was given keys and values, in bytes as stored and as given."""
        with self._lock:
            self._hits += 1
            self._read = [self._read[0] + stored, self._read[1] + tensors]
            self._get.append(seconds)

    def miss(self, seconds: float, reason: Miss) -> None:
        """Note a call that was given nothing."""
        with self._lock:
            self._misses[reason] += 1
            self._get.append(seconds)

    def wrote(self, seconds: float, stored: int, tensors: int, *, taken: bool) -> None:
        """Note a call that wrote."""
        with self._lock:
            self._writes[not taken] += 1
            self._written = [self._written[0] + stored, self._written[1] + tensors]
            self._put.append(seconds)

    def stats(self, store: BlockStoreStats, health: RemoteHealth | None) -> DistributedStats:
        """All of it, beside what the store says."""
        with self._lock:
            misses = sum(self._misses.values())
            return DistributedStats(
                hits=self._hits,
                misses=misses,
                hit_rate=self._hits / max(self._hits + misses, 1),
                misses_by_reason=dict(self._misses),
                writes=self._writes[0],
                refused_writes=self._writes[1],
                written_bytes=self._written[0],
                written_tensor_bytes=self._written[1],
                read_bytes=self._read[0],
                read_tensor_bytes=self._read[1],
                get=_latency(self._get),
                put=_latency(self._put),
                store=store,
                health=health,
            )


def _latency(seconds: deque[float]) -> Latency:
    if not seconds:
        return Latency(calls=0, p50=0.0, p95=0.0, p99=0.0, max=0.0)
    p50, p95, p99, most = (float(each) * 1e3 for each in np.percentile(seconds, (50, 95, 99, 100)))
    return Latency(calls=len(seconds), p50=p50, p95=p95, p99=p99, max=most)
