"""Claude Code sessions as the WEKA proxy captured them: one session a line or a file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kvlab.errors import InvalidArgumentError, TraceFormatError
from kvlab.sim.formats._info import Source, TraceInfo
from kvlab.sim.formats._order import by_time
from kvlab.sim.formats.rows import Row, json_rows, open_text
from kvlab.sim.request import Request
from kvlab.sim.runs import Runs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

__all__ = ["read"]

_SPACE = 40
"""Bits of an id inside of its session; the session's number stands above them."""


def read(path: Path, *, sessions: Collection[str] | None = None, subagents: bool = True) -> Source:
    """Reads sessions of requests `t` (s), `in`, `out` (tokens) and `hash_ids`, or `hash_runs` for short.

    Ids are those of full prefix blocks; the rest of a prompt has none, and always misses. Ids of
    `hash_id_scope` "local" mean something within their session only, so each session has a name space
    of its own: what sessions share (tools, system prompt) cannot be seen. The requests of all sessions
    are merged by `t`, as if all had begun at once. A request's category is why it stopped
    ("tool_use", "end_turn"), with "subagent " before it where one asked.

    Args:
        path: JSON lines with a session a line, or a folder with a session a file; plain or gzip.
        sessions: Ids of the sessions to take; None for all.
        subagents: Whether to take what subagents asked; their times count from their start, their ids
            are those of their session.

    Raises:
        TraceFormatError: a row that is not like that; at iteration.
        InvalidArgumentError: a session is not in the trace; at iteration.
    """
    wanted = set(sessions) if sessions is not None else None
    info = TraceInfo(name=path.name)
    return Source(info, by_time(_sessions(path, info, wanted, subagents), info))


def _rows(path: Path) -> Iterator[Row]:
    if not path.is_dir():
        yield from json_rows(path)
        return
    files = sorted(file for file in path.iterdir() if file.name.endswith((".json", ".json.gz")))
    for file in files:
        with open_text(file) as text:
            try:
                fields = json.load(text)
            except (ValueError, RecursionError) as error:
                raise TraceFormatError(f"{file}: is no JSON: {error}") from None
        yield Row(file, 1, {}).row("session", fields)


def _sessions(
    path: Path, info: TraceInfo, wanted: set[str] | None, subagents: bool
) -> Iterator[Request]:
    taken = 0
    missing = set(wanted or ())
    for number, session in enumerate(_rows(path), 1):
        name = session.text("id")
        missing.discard(name)
        if wanted is not None and name not in wanted:
            continue
        size = session.integer("block_size")
        if size == 0 or info.block_tokens not in (0, size):
            raise session.error(
                "block_size", f"is {size}, expected {info.block_tokens or 'a size'}"
            )
        info.block_tokens = size
        local = session.text("hash_id_scope", "local") == "local"
        taken += 1
        space = (number << _SPACE) if local else 0
        for request, agent, start in _requests(session, subagents, info):
            stop = request.text("stop", "")
            yield Request(
                at_ms=(start + request.number("t")) * 1000,
                blocks=_blocks(request, space),
                tokens=request.integer("in"),
                output_tokens=request.integer("out", 0),
                session=name,
                category=f"subagent {stop}".strip() if agent else stop,
            )
    if missing:
        raise InvalidArgumentError(
            f"{path} has no session {', '.join(sorted(missing))}; it has {taken} of those asked for"
        )
    info.notes.append(
        f"{taken} sessions, merged as if all began at once; ids are kept apart by session, so that what "
        "sessions share does not show"
    )
    info.notes.append("only full blocks have ids: the rest of each prompt always misses")


def _requests(session: Row, subagents: bool, info: TraceInfo) -> Iterator[tuple[Row, bool, float]]:
    asked = 0
    for request in session.rows("requests"):
        if request.text("type", "n") != "subagent":
            yield request, False, 0.0
            continue
        asked += 1
        if subagents:
            start = request.number("t")
            for inner in request.rows("requests"):
                yield inner, True, start
    if asked and not subagents:
        info.notes.append(f"{asked} subagents of {session.text('id')} were left out")


def _blocks(request: Row, space: int) -> Sequence[int]:
    if "hash_runs" in request:
        field, numbers = "hash_runs", request.ids("hash_runs")
        if len(numbers) % 2:
            raise request.error(field, f"has {len(numbers)} numbers, expected start, count, ...")
        ids: Sequence[int] = numbers
        highest = max(
            (start + count for start, count in zip(numbers[::2], numbers[1::2], strict=True)),
            default=0,
        )
    else:
        field, ids = "hash_ids", request.ids("hash_ids")
        highest = max(ids, default=0)
    if highest >= 1 << _SPACE:
        raise request.error(field, f"has an id of {highest}, expected less than 2**{_SPACE}")
    if field == "hash_runs":
        return Runs(ids, space)
    return [space + block for block in ids]
