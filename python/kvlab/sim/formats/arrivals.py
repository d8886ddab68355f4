"""Traces of arrivals and lengths only: BurstGPT and Azure LLM inference. They have no hit ratio."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kvlab.sim.formats._info import Source, TraceInfo
from kvlab.sim.formats._order import by_time
from kvlab.sim.formats.rows import Row, csv_rows
from kvlab.sim.request import Request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["read_azure", "read_burstgpt"]

_NOTE = (
    "arrivals and lengths only: nothing says which prompts share a prefix, so there is no hit ratio"
)


def read_burstgpt(path: Path) -> Source:
    """Reads BurstGPT's CSV: `Timestamp` (s), `Request tokens`, `Response tokens`, `Model`, `Log Type`.

    `Session ID`, where a release has it, is kept. The category is the log type.

    Args:
        path: CSV with a header, plain or gzip.

    Raises:
        TraceFormatError: a row that is not like that; at iteration.
    """
    info = TraceInfo(name=path.name, has_blocks=False, notes=[_NOTE])
    return Source(info, by_time(_burstgpt(path, info), info))


def _burstgpt(path: Path, info: TraceInfo) -> Iterator[Request]:
    failed = 0
    for row in csv_rows(path, ["Timestamp", "Request tokens", "Response tokens"]):
        answer = row.integer("Response tokens")
        failed += answer == 0
        yield Request(
            at_ms=row.number("Timestamp") * 1000,
            blocks=(),
            tokens=row.integer("Request tokens"),
            output_tokens=answer,
            session=row.text("Session ID", "") or None,
            category=row.text("Log Type", ""),
        )
    if failed:
        info.notes.append(f"{failed} requests have no answer: they failed, says the source")


def read_azure(path: Path) -> Source:
    """Reads Azure's CSV of 2023 and 2024: `TIMESTAMP` (a date), `ContextTokens`, `GeneratedTokens`.

    Args:
        path: CSV with a header, plain or gzip.

    Raises:
        TraceFormatError: a row that is not like that; at iteration.
    """
    info = TraceInfo(name=path.name, has_blocks=False, notes=[_NOTE])
    return Source(info, by_time(_azure(path), info))


def _azure(path: Path) -> Iterator[Request]:
    for row in csv_rows(path, ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]):
        yield Request(
            at_ms=_date(row, "TIMESTAMP"),
            blocks=(),
            tokens=row.integer("ContextTokens"),
            output_tokens=row.integer("GeneratedTokens"),
        )


def _date(row: Row, field: str) -> float:
    """Milliseconds of a date with up to 7 digits behind the second, which datetime would cut."""
    text = row.text(field).strip()
    whole, _, rest = text.partition(".")
    digits = len(rest) - len(rest.lstrip("0123456789"))
    try:
        date = datetime.fromisoformat(whole + rest[digits:])
    except ValueError:
        raise row.error(
            field, f"is {text!r}, expected a date such as 2023-11-16 18:17:03.97"
        ) from None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return date.timestamp() * 1000 + (int(rest[:digits]) * 1000 / 10**digits if digits else 0.0)
