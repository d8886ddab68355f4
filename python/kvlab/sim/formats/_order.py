"""Requests in the order in which they arrived."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kvlab.sim.formats._info import TraceInfo
    from kvlab.sim.request import Request

__all__ = ["by_time"]


def by_time(requests: Iterable[Request], info: TraceInfo) -> Iterator[Request]:
    """Sorts requests by arrival, stably, counted from the first one.

    All of them are held for that. What was out of order is told in the notes.
    """
    rows = list(requests)
    late = sum(after.at_ms < before.at_ms for before, after in pairwise(rows))
    if late:
        info.notes.append(f"{late} rows came before the one above them: sorted by time, stably")
    rows.sort(key=lambda row: row.at_ms)
    start = rows[0].at_ms if rows else 0.0
    if start != 0:
        info.notes.append("times are counted from the first arrival")
    for row in rows:
        yield replace(row, at_ms=row.at_ms - start) if start else row
