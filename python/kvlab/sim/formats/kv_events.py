"""KV-cache events of vLLM and SGLang, as a subscriber wrote them down: one batch a line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvlab.sim.formats._info import Source, TraceInfo
from kvlab.sim.formats._order import by_time
from kvlab.sim.formats.rows import Row, json_rows
from kvlab.sim.request import Request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["read"]

_FIELDS = {
    "BlockStored": ("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id"),
    "BlockRemoved": ("block_hashes",),
    "AllBlocksCleared": (),
}


def read(path: Path) -> Source:
    """Reads batches `{"ts": seconds, "events": [...]}`, or `[ts, events]` as the wire has them.

    An event is an object with a `type`, or a list that begins with it: `BlockStored` (`block_hashes`,
    `parent_block_hash`, `token_ids`, `block_size`), `BlockRemoved`, `AllBlocksCleared`.

    Engines tell what they store, not what they look up. Each `BlockStored` becomes a request for its
    blocks and all before them: the request that computed them. Requests that found all they asked for
    left no event and are missing here, so that hit ratios come out too low.

    Args:
        path: JSON lines, plain or gzip.

    Raises:
        TraceFormatError: a row that is not like that; at iteration.
    """
    info = TraceInfo(
        name=path.name,
        notes=["what was found in full left no event: hit ratios are lower bounds"],
    )
    return Source(info, by_time(_requests(path, info), info))


def _requests(path: Path, info: TraceInfo) -> Iterator[Request]:
    parents: dict[int, int | None] = {}
    ignored = orphans = 0
    for time, event, kind in _events(path):
        if kind != "BlockStored":
            ignored += 1
            continue
        size = event.integer("block_size")
        if size == 0 or info.block_tokens not in (0, size):
            raise event.error("block_size", f"is {size}, expected {info.block_tokens or 'a size'}")
        info.block_tokens = size
        before = event.value("parent_block_hash") if "parent_block_hash" in event else None
        parent = None if before is None else event.id("parent_block_hash", before)
        if parent is not None and parent not in parents:
            orphans += 1
            parents[parent] = None
        for block in event.ids("block_hashes"):
            # Stored again after it went: what comes before it is what it was.
            parents.setdefault(block, parent)
            parent = block
        blocks = _chain(parents, parent)
        yield Request(
            at_ms=time * 1000,
            blocks=blocks,
            tokens=len(blocks) * size,
            category=f"lora {event.text('lora_id')}" if "lora_id" in event else "",
        )
    if orphans:
        info.notes.append(
            f"{orphans} blocks hang from one that was stored before the events begin: their prefix starts there"
        )
    if ignored:
        info.notes.append(f"{ignored} removals are left out: a replay decides itself what goes")
    info.notes.append("only full blocks are stored: lengths are those of full blocks")


def _chain(parents: dict[int, int | None], last: int | None) -> list[int]:
    blocks = []
    while last is not None:
        blocks.append(last)
        last = parents[last]
    blocks.reverse()
    return blocks


def _events(path: Path) -> Iterator[tuple[float, Row, str]]:
    for row in json_rows(path, lists=("ts", "events")):
        time = row.number("ts")
        for index, value in enumerate(row.items("events")):
            name = f"events[{index}]"
            event = row.row(name, _named(value))
            kind = event.text("type")
            if kind not in _FIELDS:
                raise event.error("type", f"is {kind!r}, expected {', '.join(_FIELDS)}")
            yield time, event, kind


def _named(event: Any) -> Any:
    """An event with its fields by name, where the wire has only their order."""
    if isinstance(event, list) and event and event[0] in _FIELDS:
        fields = _FIELDS[event[0]]
        return {"type": event[0], **dict(zip(fields, event[1:], strict=False))}
    return event
