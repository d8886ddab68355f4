"""From samples to figures, and from figures to the table."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from peers.arm import About
    from peers.machine import Machine
    from peers.payload import Shape
    from peers.schedule import Outcome
    from peers.trees import TreeOutcome

LIMIT = "direct"
"""The arm that the others are compared with, round by round."""


@dataclass(frozen=True)
class Figure:
    """Median of the rounds, and their range."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(samples: Sequence[float]) -> Figure | None:
        """None without samples."""
        if not samples:
            return None
        return Figure(statistics.median(samples), min(samples), max(samples))


@dataclass(frozen=True)
class Row:
    """One arm."""

    about: About
    version: str
    acknowledged: Figure | None
    """GB/s until the peer says that it has it."""
    stable: Figure | None
    """GB/s until it is on stable storage: by its own sync, else by the bench's after all was written."""
    own_sync: bool
    cold: Figure | None
    warm: Figure | None
    cold_to_limit: Figure | None
    """Time of a cold read over that of the limit in the same round."""
    disk: float | None
    """Bytes on disk over bytes of payload."""
    memory: float | None
    """Most memory that it took above the payload's own, in bytes: median of the rounds."""
    integrity: str
    not_run: str


def rate(seconds: Sequence[float], shape: Shape) -> float:
    """GB/s (10^9) of prompts that took so many seconds each."""
    return shape.prompt_bytes * len(seconds) / sum(seconds) / 1e9


def summarise(outcomes: Sequence[Outcome], shape: Shape) -> list[Row]:
    """A row for each arm, in the order given, those that did not run included."""
    limits = {
        round_: sum(samples.cold)
        for outcome in outcomes
        if outcome.about.name == LIMIT
        for round_, samples in enumerate(outcome.rounds)
    }
    rows = []
    for outcome in outcomes:
        # An arm that failed half way has no figures to be quoted.
        rounds = [] if outcome.not_run else outcome.rounds
        own_sync = bool(outcome.about.sync)
        stable = []
        for samples in rounds:
            seconds = (
                sum(samples.durable) if own_sync else sum(samples.acknowledged) + samples.settle
            )
            stable.append(shape.bytes / seconds / 1e9)
        ratios = [
            sum(samples.cold) / limits[round_]
            for round_, samples in enumerate(rounds)
            if round_ in limits
        ]
        disks = [samples.disk_bytes / shape.bytes for samples in rounds]
        memories = [float(samples.peak_bytes) for samples in rounds]
        rows.append(
            Row(
                about=outcome.about,
                version=outcome.version,
                acknowledged=Figure.of([rate(each.acknowledged, shape) for each in rounds]),
                stable=Figure.of(stable),
                own_sync=own_sync,
                cold=Figure.of([rate(each.cold, shape) for each in rounds]),
                warm=Figure.of([rate(each.warm, shape) for each in rounds]),
                cold_to_limit=Figure.of(ratios),
                disk=statistics.median(disks) if disks else None,
                memory=statistics.median(memories) if memories else None,
                integrity=outcome.integrity,
                not_run=outcome.not_run.splitlines()[0] if outcome.not_run else "",
            )
        )
    return rows


def as_dict(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(row) for row in rows]


def cell(figure: Figure | None, digits: int = 2) -> str:
    """Median and range."""
    if figure is None:
        return "-"
    return f"{figure.median:.{digits}f} ({figure.low:.{digits}f}-{figure.high:.{digits}f})"


def markdown(rows: Sequence[Row]) -> str:
    """The table, fastest cold read first, and the arms that did not run below it."""
    ran = [row for row in rows if row.cold is not None]
    ran.sort(key=lambda row: -(row.cold.median if row.cold else 0))
    columns = (
        *("arm", "version", "cold read GB/s", "x limit", "warm read GB/s"),
        *("write, acknowledged GB/s", "write, stable GB/s"),
        *("disk", "memory MiB", "one flipped byte"),
    )
    lines = [
        f"| {' | '.join(columns)} |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in ran:
        stable = cell(row.stable) + ("" if row.own_sync else " *")
        lines.append(
            f"| {row.about.title} | {row.version or '-'} | {cell(row.cold)} "
            f"| {cell(row.cold_to_limit)} | {cell(row.warm)} | {cell(row.acknowledged)} "
            f"| {stable} | {row.disk or 0:.2f} | {(row.memory or 0) / 2**20:.0f} "
            f"| {row.integrity} |"
        )
    lines += [
        "",
        "\\* has no sync of its own: closing it and the bench's sync of its files, after all was written, are added.",
    ]
    missing = [row for row in rows if row.cold is None]
    if missing:
        lines += ["", "Not run:", ""]
        lines += [f"- {row.about.title}: {row.not_run}" for row in missing]
    return "\n".join(lines) + "\n"


def markdown_trees(trees: Sequence[TreeOutcome], leaves: int) -> str:
    """The table of the trees."""
    evict = f"evict 128 tokens of {leaves:,} leaves us"
    lines = [
        f"| tree | version | match, full hit us | insert, cold us | {evict} |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for tree in trees:
        if tree.not_run:
            continue
        cells = [
            cell(Figure.of(samples), digits=1) for samples in (tree.match, tree.insert, tree.evict)
        ]
        lines.append(f"| {tree.title} | {tree.version} | {' | '.join(cells)} |")
    missing = [tree for tree in trees if tree.not_run]
    if missing:
        lines += ["", "Not run:", ""]
        lines += [f"- {tree.title}: {tree.not_run}" for tree in missing]
    return "\n".join(lines) + "\n"


def machine_line(machine: Machine) -> str:
    """What it was measured on."""
    return (
        f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['memory_gib']} GiB, "
        f"{machine['kernel']}, {machine['file_system']}; Python {machine['python']}, "
        f"torch {machine['torch']}, kvlab {machine['kvlab']['version']} "
        f"({machine['kvlab']['profile']})"
    )


def remarks(machine: Machine, settings: Mapping[str, Any]) -> str:
    """What it was measured on, and how much."""
    return (
        f"{machine_line(machine)}. {settings['rounds']} rounds after one for warming up, "
        f"{settings['prompts']} prompts of {settings['tokens']:,} tokens "
        f"({settings['prompt_bytes'] / 1e6:.1f} MB each) in each, {settings['seconds']} s in all.\n"
    )
