"""From samples to figures, and from figures to the table."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from peers.remote.arm import ASKED
from peers.summary import Figure, cell, machine_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from peers.arm import About
    from peers.machine import Machine
    from peers.payload import Shape
    from peers.remote.turn import RemoteSamples
    from peers.schedule import Outcome

SOCKETS, OURS = "sockets", "kvlab"
"""The arms that the others are compared with, round by round."""


@dataclass(frozen=True)
class RemoteRow:
    """One arm."""

    name: str
    about: About
    version: str
    read: Figure | None
    """Milliseconds, each round's the median of its reads."""
    gigabytes: Figure | None
    """GB/s of the same."""
    to_sockets: Figure | None
    """Time of a read over that of the bare sockets in the same round."""
    to_ours: Figure | None
    """Time of a read over that of kvlab's first arm in the same round."""
    write: Figure | None
    """Milliseconds until the other end has it."""
    lookup: Figure | None
    """Microseconds for 128 names."""
    stored: float | None
    """Bytes at the other end over bytes of payload."""
    memory: float | None
    """Most memory that reading took above the process's own, in bytes: median of the rounds."""
    integrity: str
    not_run: str


def summarise(outcomes: Sequence[Outcome], shape: Shape) -> list[RemoteRow]:
    """A row for each arm, in the order given, those that did not run included."""
    sockets = _reads(outcomes, SOCKETS)
    ours = _reads(outcomes, OURS)
    rows = []
    for outcome in outcomes:
        # An arm that failed half way has no figures to be quoted.
        rounds: list[RemoteSamples] = [] if outcome.not_run else outcome.rounds
        reads = [statistics.median(samples.read) for samples in rounds]
        lookups = [statistics.median(samples.lookup) for samples in rounds if samples.lookup]
        rows.append(
            RemoteRow(
                name=outcome.about.name,
                about=outcome.about,
                version=outcome.version,
                read=Figure.of([seconds * 1e3 for seconds in reads]),
                gigabytes=Figure.of([shape.prompt_bytes / seconds / 1e9 for seconds in reads]),
                to_sockets=_ratios(reads, sockets),
                to_ours=_ratios(reads, ours),
                write=Figure.of([samples.write * 1e3 for samples in rounds]),
                lookup=Figure.of([seconds * 1e6 for seconds in lookups]),
                stored=_median([samples.stored_bytes / shape.prompt_bytes for samples in rounds]),
                memory=_median([float(samples.peak_bytes) for samples in rounds]),
                integrity=outcome.integrity,
                not_run=outcome.not_run.splitlines()[0] if outcome.not_run else "",
            )
        )
    return rows


def _reads(outcomes: Sequence[Outcome], name: str) -> list[float]:
    """The reads of an arm, by round."""
    for outcome in outcomes:
        if outcome.about.name == name and not outcome.not_run:
            return [statistics.median(samples.read) for samples in outcome.rounds]
    return []


def _ratios(reads: Sequence[float], others: Sequence[float]) -> Figure | None:
    return Figure.of([one / other for one, other in zip(reads, others, strict=False)])


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def as_dict(rows: Sequence[RemoteRow]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(row) for row in rows]


def markdown(rows: Sequence[RemoteRow]) -> str:
    """The table, fastest read first, and the arms that did not run below it."""
    ran = [row for row in rows if row.read is not None]
    ran.sort(key=lambda row: row.read.median if row.read else 0)
    columns = (
        *("arm", "version", "read ms", "GB/s", "x sockets", "x kvlab", "write ms"),
        *(f"{ASKED} names us", "stored", "memory MiB", "one flipped byte"),
    )
    lines = [
        f"| {' | '.join(columns)} |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    lines += [
        f"| {row.about.title} | {row.version or '-'} | {cell(row.read, 1)} "
        f"| {cell(row.gigabytes)} | {cell(row.to_sockets)} | {cell(row.to_ours)} "
        f"| {cell(row.write, 0)} | {cell(row.lookup, 0)} | {row.stored or 0:.2f} "
        f"| {(row.memory or 0) / 2**20:.0f} | {row.integrity} |"
        for row in ran
    ]
    missing = [row for row in rows if row.read is None]
    if missing:
        lines += ["", "Not run:", ""]
        lines += [f"- {row.about.title}: {row.not_run}" for row in missing]
    lines += ["", "| arm | one value | set up |", "| --- | --- | --- |"]
    lines += [f"| {row.about.title} | {row.about.unit} | {row.about.settings} |" for row in rows]
    return "\n".join(lines) + "\n"


def remarks(machine: Machine, settings: Mapping[str, Any]) -> str:
    """What it was measured on, and how much."""
    return (
        f"{machine_line(machine)}; {settings['server']} on the loopback interface. "
        f"{settings['rounds']} rounds after one for warming up, {settings['reads']} reads of a "
        f"prefix of {settings['tokens']:,} tokens ({settings['prompt_bytes'] / 1e6:.1f} MB of "
        f"bfloat16, {settings['payload']}) in each, {settings['seconds']} s in all.\n"
    )
