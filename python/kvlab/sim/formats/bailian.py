"""Traces of Alibaba's Bailian (Qwen; "KVCache Cache in the Wild", ATC '25): ids of 16-token prefix blocks."""

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


def read(path: Path, *, block_tokens: int = 16) -> Source:
    """Reads `chat_id`, `parent_chat_id` (-1 for none), `timestamp` (s), lengths, `type` and `hash_ids`.

    A request's session is the first chat of its line of parents, its category its `type`.

    Args:
        path: JSON lines, plain or gzip.
        block_tokens: Tokens of a block.

    Raises:
        TraceFormatError: a row that is not like that; at iteration.
    """
    info = TraceInfo(name=path.name, block_tokens=block_tokens)
    return Source(info, by_time(_rows(path, info), info))


def _rows(path: Path, info: TraceInfo) -> Iterator[Request]:
    roots: dict[str, str] = {}
    orphans = partial = 0
    for row in json_rows(path):
        chat, parent = row.text("chat_id"), row.text("parent_chat_id", "-1")
        if parent != "-1" and parent not in roots:
            orphans += 1
        root = roots[chat] = chat if parent == "-1" else roots.get(parent, parent)
        tokens = row.integer("input_length")
        partial += tokens % info.block_tokens != 0
        yield Request(
            at_ms=row.number("timestamp") * 1000,
            blocks=row.ids("hash_ids"),
            tokens=tokens,
            output_tokens=row.integer("output_length", 0),
            session=root,
            category=row.text("type", ""),
        )
    if orphans:
        info.notes.append(
            f"{orphans} requests go on from a chat that is not in the trace before them"
        )
    if partial:
        info.notes.append(f"{partial} requests end with a partial block, which counts as a block")
