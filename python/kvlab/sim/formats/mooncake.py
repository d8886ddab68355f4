"""Mooncake's traces (Qin and others, FAST '25): one request a line, ids of 512-token prefix blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvlab.sim.formats._info import Source, TraceInfo
from kvlab.sim.formats._order import by_time
from kvlab.sim.formats.rows import json_rows
from kvlab.sim.request import Request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["read"]


def read(path: Path, *, block_tokens: int = 512) -> Source:
    """Reads `timestamp` (ms), `input_length`, `output_length` (tokens) and `hash_ids`.

    An id stands for its block and all before it. The last block of a request is usually partial; rows
    of one time keep the order of the file.

    Args:
        path: JSON lines, plain or gzip.
        block_tokens: Tokens of a block, where a row has no `block_size`.

    Raises:
        TraceFormatError: a row that is not like that; at iteration.
    """
    info = TraceInfo(name=path.name, block_tokens=block_tokens)
    return Source(info, by_time(_rows(path, info), info))


def _rows(path: Path, info: TraceInfo) -> Iterator[Request]:
    partial = odd = 0
    for row in json_rows(path):
        size = row.integer("block_size", info.block_tokens)
        if size != info.block_tokens:
            raise row.error(
                "block_size",
                f"is {size}, and blocks of {info.block_tokens} tokens were expected; pass block_tokens={size}",
            )
        tokens, blocks = row.integer("input_length"), row.ids("hash_ids")
        partial += tokens % size != 0
        odd += len(blocks) != -(-tokens // size)
        yield Request(
            at_ms=row.number("timestamp"),
            blocks=blocks,
            tokens=tokens,
            output_tokens=row.integer("output_length", 0),
            session=row.text("session_id") if "session_id" in row else None,
            category=row.text("type", ""),
        )
    if partial:
        info.notes.append(
            f"{partial} requests end with a partial block, which counts as a block; of its tokens no more than the "
            "request has are counted"
        )
    if odd:
        info.notes.append(f"{odd} requests have more or fewer ids than their tokens fill blocks")
