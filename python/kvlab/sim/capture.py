"""Captures: what a live store was asked, recorded with `Store.open(capture=)` or `BlockStore.open(capture=)`.

A capture holds no tokens, no text and no block keys: its names are hashes keyed with a secret that is
drawn for it and never written. The file is described in `docs/format.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvlab import _core
from kvlab.sim.request import Request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

    from kvlab.sim.tiers import WritePolicy

__all__ = ["ReplayedOrder", "Rerun", "replay", "requests", "rerun"]


@dataclass(frozen=True, slots=True)
class ReplayedOrder:
    """What one order of eviction of a live store did, and what a replay of it did.

    Attributes:
        tier: 1 to 3.
        tenant: Whose order it is, by the capture's name of it; 0 for the tier's own.
        policy: The policy's name.
        capacity: What the tier, or the quota, holds: blocks in L1, bytes below.
        recorded: Names of the victims that were chosen live, in order.
        victims: The same for the replay.
    """

    tier: int
    tenant: int
    policy: str
    capacity: int
    recorded: list[int]
    victims: list[int]


@dataclass(frozen=True, slots=True)
class Rerun:
    """What would have been found for a cache under other policies or in other sizes, and what its L1 would have done.

    Attributes:
        policy: The policy's name.
        blocks: Blocks that its L1 holds.
        requests: Requests that came.
        block_refs: Blocks of all requests.
        hits: Blocks found in L1, up to the first that was not, of each request.
        l2_hits: Blocks found behind them in L2.
        l3_hits: And in L3.
        evictions: Blocks that L1 gave up.
        victims: Names of the victims of L1, in order.
    """

    policy: str
    blocks: int
    requests: int
    block_refs: int
    hits: int
    l2_hits: int
    l3_hits: int
    evictions: int
    victims: list[int]


def requests(path: str | PathLike[str]) -> Iterator[Request]:
    """The requests that came, in order: a trace for other policies and sizes.

    A request lists its whole blocks, without the one that its last token is in (which is always
    computed). Of a `BlockStore` each call of `get`, `get_many` or `get_into` is one, of blocks of a
    token each. What a killed process had not written is not there.

    Raises:
        FormatError: the file is no capture, or is damaged; the message says where.
        StoreIOError: it cannot be read.
    """
    for time_ms, category, block_tokens, blocks in _core.capture_requests(path):
        yield Request(
            at_ms=float(time_ms),
            blocks=blocks,
            tokens=len(blocks) * block_tokens,
            category=str(category) if category else "",
        )


def replay(path: str | PathLike[str]) -> list[ReplayedOrder]:
    """Drives the structures of the live store with what they were asked, without payload.

    These are the pool, sequences and tree of L1, the directory and pages of L2, and the directory of
    L3 with its quotas. They work out anew what is a candidate, what is lacking and what goes;
    `recorded` and `victims` of every order are equal, name by name. What time alone decided live is
    in the capture: when bytes on their way down had arrived, when a lease ended, what expired, and
    how many bytes L3 had too much.

    Raises:
        ConfigError: the capture names a policy that this version does not know.
        FormatError: the file is no capture, or is damaged; the message says where.
        StoreIOError: it cannot be read.
    """
    return [ReplayedOrder(**order) for order in _core.capture_replay(path)]


def rerun(
    path: str | PathLike[str],
    *,
    policy: str | None = None,
    l1_blocks: int | None = None,
    l2_blocks: int | None = 0,
    l3_blocks: int | None = 0,
    write_policy: WritePolicy = "write_through",
    run_blocks: int | None = None,
) -> list[Rerun]:
    """Drives the L1 of each cache of a capture with the same requests, commits and leases.

    As in `replay` it is the live L1 that runs, and below it a live store without payload, one for all caches,
    as in `kvlab.sim.tiers`. What is evicted is free at once, what is to be in L3 is written at once, nothing
    expires but by the policy, and all that is found is restored.

    Args:
        path: The file that was captured to.
        policy: One of those that `kvlab sim policies` lists as an eviction policy, for all tiers; None for the
            one that L1 had live.
        l1_blocks: Blocks that L1 holds; None for as many as it had.
        l2_blocks: Blocks of L2; 0 if there is none, None for one that holds all.
        l3_blocks: Blocks of L3, likewise.
        write_policy: When L3 gets what is new.
        run_blocks: The most blocks of a run: live, as many as have 16 MiB of payload. None for 4,096.

    Raises:
        ConfigError: a policy that is not known; the message lists those that are.
        InvalidArgumentError: an L1 of 0 blocks.
        FormatError: the file is no capture, or is damaged; the message says where.
        StoreIOError: it cannot be read.
    """
    found = _core.capture_rerun(
        path,
        policy=policy,
        l1_blocks=l1_blocks,
        l2_blocks=l2_blocks,
        l3_blocks=l3_blocks,
        write_policy=write_policy,
        run_blocks=run_blocks,
    )
    return [Rerun(**counts) for counts in found]
