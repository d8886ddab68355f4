"""The engines' times as ratios of each engine's own, as a table and as a picture."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

from peers.picture import errors
from peers.summary import Figure, cell

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from peers.ttft.turns import Outcome

COLUMNS = (
    *("engine", "version", "prefix", "computed / restored", "restored / never evicted"),
    *("computed ms", "restored ms", "never evicted ms", "disk MB", "same answer", "flipped byte"),
)


def ratio(above: Sequence[float], below: Sequence[float]) -> Figure | None:
    """Round by round, so that the machine's drift between rounds falls out."""
    return Figure.of([a / b for a, b in zip(above, below, strict=True)])


def milliseconds(seconds: Sequence[float]) -> Figure | None:
    """Median and range."""
    return Figure.of([each * 1e3 for each in seconds])


def as_dict(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """For JSON, the samples included."""
    return [asdict(outcome) for outcome in outcomes]


def markdown(outcomes: Sequence[Outcome]) -> str:
    """A row for each engine and length, and what did not run below them."""
    lines = [f"| {' | '.join(COLUMNS)} |", "| --- | --- |" + " ---: |" * 7 + " --- | --- |"]
    for each in outcomes:
        if each.not_run:
            continue
        times = (each.computed, each.restored, each.never_evicted)
        cells = [
            *(each.title, each.version, f"{each.tokens:,}"),
            cell(ratio(each.computed, each.restored), 1),
            cell(ratio(each.restored, each.never_evicted)),
            *(cell(milliseconds(seconds), 0) for seconds in times),
            *(f"{each.disk_bytes / 1e6:.1f}", "yes" if each.same else "NO", each.integrity or "-"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    missing = [each for each in outcomes if each.not_run]
    if missing:
        lines += ["", "Not run:", ""]
        lines += [f"- {each.title}, {each.tokens:,} tokens: {each.not_run}" for each in missing]
    return "\n".join(lines) + "\n"


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Bars of restored / never evicted: what the disk adds to a first token; as SVG."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "kvlab"
    from matplotlib import pyplot as plt

    ran = [(each, ratio(each.restored, each.never_evicted)) for each in reversed(outcomes)]
    shown = [(each, found) for each, found in ran if found and not each.not_run]
    figure, axis = plt.subplots(figsize=(9, 0.4 * len(shown) + 1.4))
    for place, (_, found) in enumerate(shown):
        axis.barh(place, found.median, color="tab:blue", xerr=errors(found), capsize=2)
    axis.axvline(1.0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(shown)), [f"{each.title}, {each.tokens:,}" for each, _ in shown])
    axis.set_xlabel("time to the first token: restored / never evicted, each engine by itself")
    axis.grid(visible=True, axis="x", alpha=0.25)
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)
