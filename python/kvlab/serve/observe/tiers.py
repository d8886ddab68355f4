"""One reading of a store's own counters, in the shape that the metrics and the live page share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvlab.errors import StoreClosedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvlab import Store
    from kvlab._types import CacheStats, RemoteStats, StoreStats, TierStats

__all__ = ["EVICTION_UNITS", "StoreReading", "TierReading", "read_store"]

_MICROS = 1e-6

EVICTION_UNITS: Mapping[str, str] = {
    "l1": "blocks",
    "buffers": "sequences",
    "l2": "runs",
    "l3": "runs",
}
"""What one eviction of each tier is. `buffers` are L1's cache buffers with their resident sequences."""


@dataclass(frozen=True, slots=True)
class TierReading:
    """A tier's fill and what went through it since the store was opened; bytes and seconds.

    Attributes:
        tier: `l1`, `l2`, `l3` or, for L4, `remote`.
        capacity: Bytes that it may take. L1: its block arena and its cache buffers. `remote`: 0, as all that its
            servers hold; they know.
        used: Bytes that it takes.
        held: Of them, bytes that cannot be evicted now, as far as the tier says.
        blocks: Blocks that can be read.
        read_bytes: Payload bytes read. L1: bytes of the blocks that requests took by reference.
        read_seconds: What threads spent on reading; None where the tier does not measure it.
        write_bytes: Payload bytes written; None where the tier does not count them.
        write_seconds: What threads spent on writing; None likewise.
        corrupt: Reads that found damaged bytes; None where nothing is checked.
        io_errors: Reads that the operating system failed; None likewise.
    """

    tier: str
    capacity: int
    used: int
    held: int
    blocks: int
    read_bytes: int
    read_seconds: float | None = None
    write_bytes: int | None = None
    write_seconds: float | None = None
    corrupt: int | None = None
    io_errors: int | None = None


@dataclass(frozen=True, slots=True)
class StoreReading:
    """What a store says of itself at one moment.

    Attributes:
        tiers: L1, then L2, L3 and the shared tier where the store has them.
        evictions: What left a tier, by `(tier, reason)`; the units are `EVICTION_UNITS`.
        refusals: Runs that L2 and L3 did not keep, by reason, and `l1_full`: blocks that L1 had no room for.
        prefetched: Prefetched runs by what became of them.
        write_queue_bytes: Payload bytes accepted for L3 and not written yet.
        remote: What the shared tier says of itself; None without one.
        in_use: The part of L1 that running requests hold, 0 to 1.
    """

    tiers: tuple[TierReading, ...]
    evictions: Mapping[tuple[str, str], int]
    refusals: Mapping[str, int]
    prefetched: Mapping[str, int]
    write_queue_bytes: int
    in_use: float
    remote: RemoteStats | None = None


def read_store(store: Store | None) -> StoreReading | None:
    """Reads a store's counters; None without a store, and once it is closed."""
    if store is None:
        return None
    try:
        stats = store.stats()
    except StoreClosedError:
        return None
    l1 = _l1(stats["caches"])
    prefetch = stats["prefetch"]
    l2 = _below("l2", stats["l2"], prefetch["held_bytes"])
    l3 = _below("l3", stats["l3"], 0)
    remote = stats["remote"]
    shared = () if remote is None else (_below("remote", stats["l4"], 0),)
    return StoreReading(
        tiers=(l1, *(each for each in (l2, l3) if each.capacity), *shared),
        evictions=_evictions(stats),
        refusals=_refusals(stats),
        prefetched={
            "claimed": prefetch["claimed"],
            "stolen": prefetch["stolen"],
            "cancelled": prefetch["cancelled"],
            "timed_out": prefetch["timed_out"],
            "failed": prefetch["failed"],
            "refused": prefetch["refused"],
        },
        write_queue_bytes=stats["write_queue_bytes"],
        in_use=l1.held / l1.capacity if l1.capacity else 0.0,
        remote=remote,
    )


def _l1(caches: list[CacheStats]) -> TierReading:
    """All prefix caches of the store as one tier."""
    capacity = used = held = blocks = reused = 0
    for cache in caches:
        l1, buffers = cache["l1"], cache["buffers"]
        block = l1["block_bytes"]
        capacity += l1["blocks"] * block + buffers["budget"]
        used += l1["used"] * block + buffers["mapped"]
        # A resident sequence's buffer is mapped, and anyone may have it: nothing holds it.
        leased = buffers["mapped"] - buffers["idle"] - cache["residents"]["bytes"]
        held += max(0, l1["used"] - l1["evictable"]) * block + max(0, leased)
        blocks += l1["evictable"] + l1["protected"]
        reused += l1["reused_blocks"] * block
    return TierReading("l1", capacity, used, held, blocks, read_bytes=reused)


def _below(tier: str, stats: TierStats, held: int) -> TierReading:
    return TierReading(
        tier=tier,
        capacity=stats["capacity"],
        used=stats["used"],
        held=held,
        blocks=stats["blocks"],
        read_bytes=stats["read_bytes"],
        read_seconds=stats["read_micros"] * _MICROS,
        write_bytes=stats["write_bytes"],
        write_seconds=stats["write_micros"] * _MICROS,
        corrupt=stats["corrupt"],
        io_errors=stats["io_errors"],
    )


def _evictions(stats: StoreStats) -> dict[tuple[str, str], int]:
    residents = [cache["residents"] for cache in stats["caches"]]
    dropped = stats["dropped_victims"]
    return {
        ("l1", "given_up"): sum(cache["l1"]["evicted_blocks"] for cache in stats["caches"]),
        ("buffers", "displaced"): sum(each["displaced"] for each in residents),
        ("buffers", "reclaimed"): sum(each["reclaimed"] for each in residents),
        ("buffers", "asked"): sum(each["evicted"] for each in residents),
        # Counted one after the other in the core, so a reading may fall between the two.
        ("l2", "demoted"): max(0, stats["l2"]["evictions"] - dropped),
        ("l2", "dropped"): dropped,
        ("l3", "given_up"): stats["l3"]["evictions"],
    }


def _refusals(stats: StoreStats) -> dict[str, int]:
    l1_full = sum(cache["l1"]["refused_blocks"] for cache in stats["caches"])
    below = {reason: int(count) for reason, count in stats["refusals"].items()}  # type: ignore[call-overload]
    return {"l1_full": l1_full, **below}
