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
    """What the L1 of a cache would have done under another policy or in another size.

    Attributes:
        policy: The policy's name.
        blocks: Blocks that it holds.
        requests: Requests that came.
        block_refs: Blocks of all requests.
        hits: Blocks found, up to the first that was not, of each request.
        evictions: Blocks that it gave up.
        victims: Names of the victims, in order.
    """

    policy: str
    blocks: int
    requests: int
    block_refs: int
    hits: int
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
    path: str | PathLike[str], *, policy: str | None = None, l1_blocks: int | None = None
) -> list[Rerun]:
    """Drives the L1 of each cache of a capture with the same requests, commits and leases.

    As in `replay` it is the live L1 that runs. What it evicts is free at once, and nothing expires
    but by the policy. For three tiers in other sizes give the capture's requests to
    `kvlab.sim.tiers.run`.

    Args:
        path: The file that was captured to.
        policy: One of those that `kvlab sim policies` lists as an eviction policy; None for the one
            that was live.
        l1_blocks: Blocks that L1 holds; None for as many as it had.

    Raises:
        ConfigError: a policy that is not known; the message lists those that are.
        InvalidArgumentError: 0 blocks.
        FormatError: the file is no capture, or is damaged; the message says where.
        StoreIOError: it cannot be read.
    """
    return [Rerun(**found) for found in _core.capture_rerun(path, policy, l1_blocks)]
