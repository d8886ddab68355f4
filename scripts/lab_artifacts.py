"""What the findings of the policy lab are kept as: tables, pictures and how they were made.

The same run gives the same config.json, results.json and CSV files, byte for byte; versions and the
day stand in metadata.json. Floats are kept to 5 significant digits.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvlab.sim.experiments.artifacts import environment
from kvlab.sim.experiments.table import (
    SIMULATED,
    Row,
    Value,
    columns_of,
    summarise,
    to_csv,
    to_json,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent / "artifacts"
ORACLE = "#222222"
COLOURS = (
    "#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c",
    "#ccb974", "#64b5cd",
)  # fmt: skip


def trimmed(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    """The rows with some of their columns, floats to 5 significant digits."""
    kept = list(columns)
    return [{name: _short(row[name]) for name in kept if name in row} for row in rows]


def _short(value: Value) -> Value:
    return float(f"{value:.5g}") if isinstance(value, float) else value


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
        tables: Further tables: written to NAME.csv, and into results.json.
        spreads: The metrics whose standard deviation is kept.
        over: The columns that rows of one mean differ in.
        pictures: By name.
    """
    directory = ROOT / name
    (directory / "plots").mkdir(parents=True, exist_ok=True)
    summary = summarise(rows, over)
    kept = [
        column
        for column in dict.fromkeys(column for row in summary for column in row)
        if column != "seed" and (not column.endswith("_sd") or column[:-3] in spreads)
    ]
    short = trimmed(summary, kept)
    extra = {key: trimmed(table, list(table[0])) for key, table in (tables or {}).items()}
    files = {
        "config.json": to_json(dict(config)),
        "results.json": _results(title, config, extra, short),
        "results.csv": to_csv([{"origin": SIMULATED, **row} for row in short]),
        "metadata.json": to_json(
            {"environment": environment(), "finished": datetime.now(UTC).date().isoformat()}
        ),
    }
    files |= {
        f"{key}.csv": to_csv([{"origin": SIMULATED, **row} for row in table])
        for key, table in extra.items()
    }
    for file, text in files.items():
        (directory / file).write_text(text, encoding="utf-8", newline="\n")
    for key, figure in (pictures or {}).items():
        (directory / "plots" / f"{key}.png").write_bytes(_png(figure))
    print(f"wrote {directory.name}: {len(rows)} replays")


def _results(
    title: str, config: Mapping[str, Any], tables: Mapping[str, list[Row]], rows: Sequence[Row]
) -> str:
    """One object; the rows as lists, a line each, since there are many of them."""
    head = {"kind": SIMULATED, "title": title, "config": dict(config), **tables}
    columns = columns_of(rows)
    lines = ",\n  ".join(json.dumps([row.get(name) for name in columns]) for row in rows)
    tail = f' "columns": {json.dumps(columns)},\n "rows": [\n  {lines}\n ]\n}}\n'
    return to_json(head).removesuffix("\n}\n") + ",\n" + tail


def _png(figure: Figure) -> bytes:
    from matplotlib import pyplot as plt

    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=80, metadata={"Software": None})
    plt.close(figure)
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
