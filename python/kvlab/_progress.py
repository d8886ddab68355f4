"""Progress on stderr: a bar on a terminal, one line a stage anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, Protocol

Update = Callable[[int], None]
"""Receives the bytes done so far (not the increment)."""

Unit = Literal["bytes", "pieces"]


class Progress(Protocol):
    """Where a long step reports to."""

    def stage(
        self, text: str, total: int | None = None, unit: Unit = "bytes"
    ) -> AbstractContextManager[Update]:
        """Open a stage.

        Args:
            text: What is being done, as a short phrase.
            total: Bytes the stage will handle, or None when that is unknown.
            unit: What is counted, where it is not bytes.

        Returns:
            A context manager that yields a function to call with the bytes (or pieces) done so far.
        """
        ...


class ConsoleProgress:
    """Reports to stderr, so that stdout stays free for results and JSON."""

    @contextmanager
    def stage(self, text: str, total: int | None = None, unit: Unit = "bytes") -> Iterator[Update]:
        """Show one stage; see `Progress.stage`."""
        if sys.stderr.isatty() and (bar := _rich_bar(text, total, unit)) is not None:
            with bar as update:
                yield update
            return
        started = time.monotonic()
        print(f"kvlab: {text} ...", file=sys.stderr, flush=True)
        yield lambda _done: None
        elapsed = time.monotonic() - started
        print(f"kvlab: {text}: done in {elapsed:.1f} s", file=sys.stderr, flush=True)


def _rich_bar(text: str, total: int | None, unit: Unit) -> AbstractContextManager[Update] | None:
    """A rich progress bar, or None where rich is not installed (it comes with the CLI)."""
    try:
        from rich import progress
        from rich.console import Console
    except ImportError:
        return None

    @contextmanager
    def bar() -> Iterator[Update]:
        columns: list[progress.ProgressColumn] = [
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
        ]
        if unit == "pieces":
            columns.append(progress.MofNCompleteColumn())
        elif total is not None:
            columns.append(progress.DownloadColumn())
        columns.append(progress.TimeElapsedColumn())
        with progress.Progress(*columns, console=Console(stderr=True)) as shown:
            task = shown.add_task(text, total=total)
            yield lambda done: shown.update(task, completed=done)
            shown.update(task, total=total or 1, completed=total or 1)

    return bar()
