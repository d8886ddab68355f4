"""Captures: what a live store was asked, recorded with `Store.open(capture=)`.

A capture holds no tokens, no text and no block keys: its names are hashes keyed with a secret that is
drawn for it and never written. The file is described in `core/src/sim/capture/format.rs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvlab import _core
from kvlab.sim.request import Request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

__all__ = ["ReplayedOrder", "replay", "requests"]


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


def requests(path: str | PathLike[str]) -> Iterator[Request]:
    """The requests that came, in order: a trace for other policies and sizes.

    A request lists its whole blocks, without the one that its last token is in (which is always
    computed). What a killed process had not written is not there.

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
    """Gives fresh policies of the same names and sizes the calls that those of the live store got.

    A policy is deterministic: `recorded` and `victims` of every order are equal, name by name.

    Raises:
        ConfigError: the capture names a policy that this version does not know.
        FormatError: the file is no capture, or is damaged; the message says where.
        StoreIOError: it cannot be read.
    """
    return [ReplayedOrder(**order) for order in _core.capture_replay(path)]
