"""What the commands on a store's directory share."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from kvlab.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kvlab._types import Inspection

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size_text(size: int) -> str:
    """Bytes for people: `1536` is `1.5 KiB`."""
    value, unit = float(size), 0
    while value >= 1024 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} B" if unit == 0 else f"{value:.1f} {UNITS[unit]}"


def age_text(seconds: float) -> str:
    """A time span for people: `7200` is `2 h`."""
    for name, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {name}"
    return f"{max(seconds, 0):.0f} s"


def since(moment: int) -> str:
    """How long ago a unix time was; a dash for 0, which stands for an unknown one."""
    return "-" if moment == 0 else age_text(time.time() - moment)


def plain(value: Any) -> Any:
    """The same with bytes as hexadecimal digits and paths as text, for JSON."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | None) else str(value)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns: the first one to the left, the others to the right."""
    every = [head, *rows]
    widths = [max(len(row[column]) for row in every) for column in range(len(head))]
    lines = (
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in every
    )
    return "\n".join(line.rstrip() for line in lines)


def disk_bytes(directory: Path) -> int:
    """What the files of a directory take on disk, holes left out; 0 where there is none."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return sum(path.stat().st_blocks * 512 for path in files)


def roomy(directory: Path, more: int = 0) -> int:
    """A capacity for a store under which opening it, and adding so many bytes, evicts nothing."""
    return max(2 * (disk_bytes(directory) + more), 1 << 30)


def find_namespace(found: Inspection, start: str) -> bytes:
    """The one namespace of a store whose hexadecimal digits begin with `start`.

    Raises:
        InvalidArgumentError: none or several do.
    """
    names = [namespace["namespace"] for namespace in found["namespaces"]]
    fitting = [name for name in names if name.hex().startswith(start.lower())]
    if len(fitting) != 1:
        known = ", ".join(name.hex()[:12] for name in names) or "none"
        problem = "no namespace begins so" if not fitting else "several namespaces begin so"
        raise InvalidArgumentError(f"--namespace {start}: {problem}; the store has {known}")
    return fitting[0]


def confirm(question: str, *, yes: bool, as_json: bool, directory: Path) -> None:
    """Asks before something is deleted, unless `--yes` was given.

    Raises:
        InvalidArgumentError: nobody can be asked: the output is JSON, or stdin is no terminal.
    """
    if yes:
        return
    if as_json or not sys.stdin.isatty():
        raise InvalidArgumentError(f"{directory}: {question} Say so with --yes.")
    click.confirm(question, abort=True, err=True)
