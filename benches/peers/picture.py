"""One picture of the table: cold reads and stable writes of every arm, and whether it noticed the flipped byte."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from peers.summary import Figure, Row

READ, WRITE = "tab:blue", "tab:orange"
NOTICED, SERVED = "tab:green", "tab:red"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Bars of the medians with their ranges, fastest cold read on top; as SVG."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "kvlab"
    from matplotlib import pyplot as plt

    ran = sorted(
        (row for row in rows if row.cold and row.stable),
        key=lambda row: row.cold.median if row.cold else 0,
    )
    figure, axis = plt.subplots(figsize=(9, 0.55 * len(ran) + 1.6))
    for place, row in enumerate(ran):
        for offset, found, colour in ((0.2, row.cold, READ), (-0.2, row.stable, WRITE)):
            if found:
                axis.barh(
                    place + offset,
                    found.median,
                    height=0.36,
                    color=colour,
                    xerr=errors(found),
                    capsize=2,
                )
        say_integrity(axis, place, row.integrity)
    axis.set_yticks(range(len(ran)), [row.about.title for row in ran])
    axis.set_xlabel("GB/s, median and range of the rounds")
    axis.set_title("KV of a prompt: cold read and stable write; right: one flipped byte")
    axis.legend(
        handles=[
            mpl.patches.Patch(color=READ, label="cold read into tensors"),
            mpl.patches.Patch(color=WRITE, label="write, until stable"),
        ],
        loc="lower right",
    )
    axis.grid(visible=True, axis="x", alpha=0.25)
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)


def say_integrity(axis: Axes, place: int, integrity: str) -> None:
    """Right of a bar: whether its arm noticed the flipped byte."""
    noticed = integrity.startswith("noticed")
    axis.annotate(
        "noticed" if noticed else "served wrong bytes",
        (1.0, place),
        xycoords=("axes fraction", "data"),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        color=NOTICED if noticed else SERVED,
    )


def errors(figure: Figure) -> list[list[float]]:
    """The range around a median, as matplotlib wants it."""
    return [[figure.median - figure.low], [figure.high - figure.median]]
