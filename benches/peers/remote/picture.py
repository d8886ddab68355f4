"""One picture of the table: the reads of every arm, where the bare sockets lie, and who noticed the flipped byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl

from peers.picture import READ, WRITE, errors, say_integrity
from peers.remote.summary import SOCKETS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from peers.remote.summary import RemoteRow

OURS = "tab:purple"


def draw(rows: Sequence[RemoteRow], path: Path) -> None:
    """Bars of the medians with their ranges, fastest on top, milliseconds on a logarithmic axis; as SVG."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "kvlab"
    from matplotlib import pyplot as plt

    ran = [(row, row.read) for row in rows if row.read is not None]
    ran.sort(key=lambda each: -each[1].median)
    figure, axis = plt.subplots(figsize=(10, 0.36 * len(ran) + 1.6))
    for place, (row, read) in enumerate(ran):
        axis.barh(
            place,
            read.median,
            height=0.7,
            color=OURS if row.name.startswith("kvlab") else READ,
            xerr=errors(read),
            capsize=2,
        )
        say_integrity(axis, place, row.integrity)
        if row.name == SOCKETS:
            axis.axvline(read.median, color=WRITE, linestyle="--", label="bare sockets")
    axis.set_yticks(range(len(ran)), [row.about.title for row, _ in ran])
    axis.set_xscale("log")
    axis.set_xlabel("ms into ready layers, median and range of the rounds; less is better")
    axis.set_title("A prefix from a server or a folder; right: one flipped byte")
    axis.grid(visible=True, axis="x", which="both", alpha=0.25)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="lower right")
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)
