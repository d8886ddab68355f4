"""Captures of a live store (`Store.open(capture=)`): its own requests, as names that mean nothing elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvlab.sim import capture
from kvlab.sim.formats._info import Source, TraceInfo
from kvlab.sim.formats._order import by_time

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kvlab.sim.request import Request

__all__ = ["read"]


def read(path: Path) -> Source:
    """Reads the requests of a capture. Only whole blocks are known; sessions are not.

    Args:
        path: What the store wrote.

    Raises:
        FormatError: the file is no capture, or is damaged; at iteration.
    """
    info = TraceInfo(
        name=path.name,
        notes=["only whole blocks are known: the rest of each prompt is not counted"],
    )
    return Source(info, by_time(_requests(path, info), info))


def _requests(path: Path, info: TraceInfo) -> Iterator[Request]:
    for request in capture.requests(path):
        if request.blocks and not info.block_tokens:
            info.block_tokens = request.tokens // len(request.blocks)
        yield request
