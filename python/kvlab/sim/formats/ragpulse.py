"""RAGPulse (arXiv 2511.12979): a campus RAG service, prompts as lists of pieces by component."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from kvlab.errors import TraceFormatError
from kvlab.sim.formats._info import Source, TraceInfo
from kvlab.sim.formats._order import by_time
from kvlab.sim.formats.rows import Row, json_rows, open_text
from kvlab.sim.request import Request

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["COMPONENTS", "read"]

COMPONENTS = ("sys_prompt", "passages_ids", "history", "web_search", "user_input")
_SPACE = 40
"""Bits of an id inside of its component; the component's number stands above them."""


def read(path: Path, *, lengths: str | Path | None = None) -> Source:
    """Reads `timestamp` (s, a string, out of order), lengths, `session_id` and `hash_ids` by component.

    An id names a piece of content, of any length, that may stand in any place: a block here is a
    piece. Each component has ids of its own, so that they get a name space each. The category is
    "web" for requests with search results, else "rag".

    Args:
        path: JSON lines, plain or gzip.
        lengths: JSON of `{component: {id: tokens}}`; by default `ragpulse_lengths.json.gz` (or
            without `.gz`) beside the trace if that exists. Without, a request's
            tokens count as shared out evenly over its pieces.

    Raises:
        TraceFormatError: a row or the lengths are not like that; at iteration.
    """
    beside = [path.with_name(f"ragpulse_lengths.json{end}") for end in (".gz", "")]
    table = Path(lengths) if lengths is not None else next(filter(Path.exists, beside), None)
    info = TraceInfo(
        name=path.name,
        prefix_ids=False,
        block_lengths=_lengths(table) if table else None,
    )
    if table is None:
        info.notes.append(
            "no lengths of pieces: tokens are shared out evenly over a request's pieces"
        )
    return Source(info, by_time(_rows(path, info), info))


def _space(component: str) -> int:
    return (COMPONENTS.index(component) + 1) << _SPACE


def _lengths(path: Path) -> dict[int, int]:
    with open_text(path) as file:
        try:
            fields = json.load(file)
        except ValueError as error:
            raise TraceFormatError(f"{path}: is no JSON: {error}") from None
    tables = Row(path, 1, {}).row("lengths", fields)
    table: dict[int, int] = {}
    for component in COMPONENTS:
        if component not in tables:
            continue
        row = tables.row(component, tables.value(component))
        space = _space(component)
        for name in tables.value(component):
            table[space + _piece(row, name, name)] = row.integer(name)
    return table


def _piece(row: Row, field: str, value: object) -> int:
    """The id of a piece, which the source writes as a number or as a string of digits."""
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    found = row.id(field, number)
    return found & ((1 << _SPACE) - 1)


def _rows(path: Path, info: TraceInfo) -> Iterator[Request]:
    unknown: set[int] = set()
    for row in json_rows(path):
        parts = row.row("hash_ids", row.value("hash_ids"))
        blocks: list[int] = []
        for component in row.value("hash_ids"):
            if component not in COMPONENTS:
                raise parts.error(component, f"is unknown, expected {', '.join(COMPONENTS)}")
            space = _space(component)
            blocks.extend(
                space + _piece(parts, component, piece) for piece in parts.items(component)
            )
        if info.block_lengths is not None:
            unknown.update(block for block in blocks if block not in info.block_lengths)
        searched = "web_search" in parts and bool(parts.items("web_search"))
        yield Request(
            at_ms=row.number("timestamp") * 1000,
            blocks=blocks,
            tokens=row.integer("input_length"),
            output_tokens=row.integer("output_length", 0),
            session=row.text("session_id") if "session_id" in row else None,
            category="web" if searched else "rag",
        )
    if unknown:
        info.notes.append(f"{len(unknown)} pieces have no length: they count as 0 tokens")
    info.notes.append(
        "a block is a piece of a prompt, in any place; template tokens belong to none"
    )
