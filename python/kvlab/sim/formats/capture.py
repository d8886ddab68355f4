"""What a live kvlab store was asked, as `Store.open(capture=)` records it."""

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
    """Reads the requests of a capture; ids stand for a block and all before it.

    Args:
        path: The file that was captured to.

    Raises:
        FormatError: the file is no capture, or is damaged; at iteration.
    """
    info = TraceInfo(
        name=path.name,
        notes=["the block that a prompt's last token is in has no id: it is always computed"],
    )
    return Source(info, by_time(_requests(path, info), info))


def _requests(path: Path, info: TraceInfo) -> Iterator[Request]:
    mixed = 0
    for request in capture.requests(path):
        if request.blocks:
            size = request.tokens // len(request.blocks)
            mixed += info.block_tokens not in (0, size)
            info.block_tokens = info.block_tokens or size
        yield request
    if mixed:
        # Several models, whose blocks differ.
        info.block_tokens = 0
        info.notes.append(
            f"{mixed} requests have blocks of another size: tokens are shared out over a request's blocks"
        )
