"""Draws what `cargo bench --bench disk_matrix -- --json` says: speed by block size, for each way to read and write.

A panel for each of direct and buffered, and for each number of workers; the raw arms are dashed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from collections.abc import Sequence

COLOURS = {
    "write": "tab:orange",
    "cold read": "tab:blue",
    "warm read": "tab:green",
    "read and write": "tab:purple",
}


class Cell(TypedDict):
    """One arm of one case, in GB/s."""

    kibibytes: int
    mode: str
    workers: int
    arm: str
    median: float
    min: float
    max: float
    samples: int


def draw(cells: Sequence[Cell], title: str, path: Path) -> bool:
    """Draws medians with their ranges, as SVG; False where matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "kvlab"
    from matplotlib import pyplot as plt

    modes = sorted({cell["mode"] for cell in cells}, reverse=True)
    workers = sorted({cell["workers"] for cell in cells})
    figure, axes = plt.subplots(
        len(modes),
        len(workers),
        figsize=(4 * len(workers), 3 * len(modes)),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for row, mode in enumerate(modes):
        for column, count in enumerate(workers):
            axis = axes[row][column]
            panel = [cell for cell in cells if (cell["mode"], cell["workers"]) == (mode, count)]
            for arm in dict.fromkeys(cell["arm"] for cell in panel):
                line = sorted(
                    (cell for cell in panel if cell["arm"] == arm),
                    key=lambda cell: cell["kibibytes"],
                )
                raw = arm.startswith("raw ")
                medians = [cell["median"] for cell in line]
                axis.errorbar(
                    [cell["kibibytes"] for cell in line],
                    medians,
                    yerr=[
                        [cell["median"] - cell["min"] for cell in line],
                        [cell["max"] - cell["median"] for cell in line],
                    ],
                    label=arm,
                    color=COLOURS[arm.removeprefix("raw ")],
                    linestyle="--" if raw else "-",
                    marker="" if raw else "o",
                    capsize=2,
                )
            axis.set_title(f"{mode}, {count} worker{'s' if count > 1 else ''}", fontsize=9)
            axis.set_xscale("log", base=2)
            axis.set_xticks(
                sizes := sorted({cell["kibibytes"] for cell in panel}),
                [str(size) for size in sizes],
            )
            axis.grid(visible=True, alpha=0.25)
    # Once all panels are drawn: it ends the scaling of the axis that they share.
    axes[0][0].set_ylim(bottom=0)
    figure.supxlabel("block, KiB")
    figure.supylabel("GB/s")
    figure.suptitle(title)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    figure.set_layout_engine("constrained")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return True


def main() -> None:
    """Reads the result and draws it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("result", type=Path, help="what the bench wrote with --json")
    parser.add_argument("picture", type=Path, help="where to draw it, as SVG")
    arguments = parser.parse_args()
    try:
        result = json.loads(arguments.result.read_text())
        cells: list[Cell] = result["results"]
        title = f"L3 by block size, {result['title']}"
        drawn = draw(cells, title, arguments.picture)
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"{arguments.result}: not a result of disk_matrix ({error!r})")
    if not drawn:
        sys.exit("No picture: matplotlib is not installed.")


if __name__ == "__main__":
    main()
