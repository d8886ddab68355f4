"""What the findings of the policy lab are kept as: tables, pictures and how they were made.

The same run on the same versions gives the same files, byte for byte; versions stand in metadata.json.
Floats of rows are kept to 4 significant digits.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvlab.sim.experiments.artifacts import environment
from kvlab.sim.experiments.plots import COLOURS
from kvlab.sim.experiments.table import (
    SIMULATED,
    Row,
    columns_of,
    is_metric,
    is_spread,
    packed,
    summarise,
    to_csv,
    to_json,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent / "artifacts"
PICTURE_COLOURS = 48
"""Of a picture's palette: lines, bars and smoothed letters need no more."""


def chosen(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    """The rows with some of their columns."""
    return [{name: row[name] for name in columns if name in row} for row in rows]


def shortened(rows: Sequence[Row], digits: int) -> list[Row]:
    """The rows with floats of some significant digits."""
    return [
        {
            name: float(f"{value:.{digits}g}") if isinstance(value, float) else value
            for name, value in row.items()
        }
        for row in rows
    ]


def write(
    name: str,
    *,
    title: str,
    config: Mapping[str, Any],
    rows: Sequence[Row],
    tables: Mapping[str, Sequence[Row]] | None = None,
    spreads: Sequence[str] = (),
    over: Sequence[str] = ("seed",),
    pictures: Mapping[str, Figure] | None = None,
) -> None:
    """Writes one directory of artifacts.

    Args:
        name: Of the directory.
        title: What it is called.
        config: All that the results depend on.
        rows: One a replay. Those that differ in the seed are summed up: means and spreads are kept.
        tables: Further tables: written to NAME.csv, and into results.json; floats to 6 digits.
        spreads: The metrics whose standard deviation is kept. They are those of results.csv; what else rows
            have stands in results.json.
        over: The columns that rows of one mean differ in.
        pictures: By name.
    """
    directory = ROOT / name
    (directory / "plots").mkdir(parents=True, exist_ok=True)
    summary = summarise(rows, over)
    kept = [
        column
        for column in columns_of(summary)
        if column != "seed" and (not is_spread(column) or column.removesuffix("_sd") in spreads)
    ]
    short = shortened(chosen(summary, kept), 4)
    main = [name for name in kept if not is_metric(name) or name in spreads]
    extra = {key: shortened(table, 6) for key, table in (tables or {}).items()}
    results = {"kind": SIMULATED, "title": title, "config": dict(config), **extra, "rows": short}
    files = {
        "config.json": to_json(dict(config)),
        "results.json": to_json(packed(results)),
        "metadata.json": to_json({"environment": environment()}),
    }
    files |= {
        f"{key}.csv": to_csv([{"origin": SIMULATED, **row} for row in table])
        for key, table in {**extra, "results": chosen(short, main)}.items()
    }
    for file, text in files.items():
        (directory / file).write_text(text, encoding="utf-8", newline="\n")
    for key, figure in (pictures or {}).items():
        (directory / "plots" / f"{key}.png").write_bytes(_png(figure))
    print(f"wrote {directory.name}: {len(rows)} replays")


def _png(figure: Figure) -> bytes:
    """A picture with a palette: a third of the bytes of one with all colours."""
    from matplotlib import pyplot as plt
    from PIL import Image

    drawn, out = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=80)
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(PICTURE_COLOURS).save(out, "png", optimize=True)
    return out.getvalue()


def panels(
    title: str, count: int, *, width: float = 4.6, height: float = 3.4
) -> tuple[Figure, list[Axes]]:
    """A picture of some panels beside each other, labelled as simulated."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, count, figsize=(width * count, height), squeeze=False, layout="constrained"
    )
    figure.suptitle(f"{title} ({SIMULATED})", fontsize=10)
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(visible=True, axis="y", alpha=0.25)
        axis.tick_params(labelsize=8)
    return figure, list(axes[0])


def legend(figure: Figure, axis: Axes) -> None:
    """What the colours of one panel, and so of all, mean, beside the panels."""
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", fontsize=7.5, frameon=False)


def bars(
    axis: Axes,
    places: Sequence[str],
    series: Mapping[str, Sequence[tuple[float, float]]],
    label: str,
) -> None:
    """Bars by place and series, with their spread: `(height, spread)` for each place."""
    width = 0.8 / len(series)
    for at, (name, values) in enumerate(series.items()):
        offset = (at - (len(series) - 1) / 2) * width
        axis.bar(
            [place + offset for place in range(len(places))],
            [height for height, _ in values],
            width,
            yerr=[spread for _, spread in values],
            label=name,
            color=COLOURS[at % len(COLOURS)],
            error_kw={"linewidth": 0.7},
        )
    axis.set_xticks(range(len(places)), places, rotation=25, ha="right", fontsize=8)
    axis.set_ylabel(label, fontsize=9)


def number(row: Row, column: str) -> float:
    """A number of a row; 0 if it has none there."""
    value = row.get(column)
    return float(value) if isinstance(value, int | float) else 0.0


def change(before: float, after: float) -> float:
    """By how many per cent."""
    return 100 * (after / before - 1) if before else 0.0
