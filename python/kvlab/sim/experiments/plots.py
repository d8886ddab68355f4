"""Plots of results, each labelled as simulated; the same rows give the same SVG."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from kvlab.sim.experiments.table import SIMULATED, Row, Value, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLOURS", "ORACLE", "Figure", "draw", "draw_all"]

COLOURS = (
    "#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c",
    "#ccb974", "#64b5cd",
)  # fmt: skip
_MARKERS = "os^vDPX*<>"
ORACLE = "#222222"


@dataclass(frozen=True, slots=True)
class Figure:
    """What to draw of some rows.

    Attributes:
        name: Of the file, without its ending.
        title: Above the plot; "simulated" is added.
        kind: "line" and "scatter" have a number on the x axis, "bars" a name.
        rows: Summary rows: means, and `NAME_sd` for the spread.
        x: The column on the x axis.
        y: The column on the y axis.
        series: The column that tells lines, bars or point colours apart.
        panel: The column that tells panels apart, if there are several.
        log_x: Whether the x axis is logarithmic.
        note: Below the plot.
    """

    name: str
    title: str
    kind: Literal["line", "bars", "scatter"]
    rows: Sequence[Row]
    x: str
    y: str
    series: str
    panel: str | None = None
    log_x: bool = False
    note: str = ""


def draw_all(figures: Sequence[Figure]) -> list[tuple[Figure, str]]:
    """The figures that have something to show, with their SVG; none where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    shown = [
        figure
        for figure in figures
        if any(_number(row, figure.y) is not None for row in figure.rows)
    ]
    return [(figure, draw(figure)) for figure in shown]


def draw(figure: Figure) -> str:
    """One figure as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    panels = _distinct(figure.rows, figure.panel) if figure.panel else [None]
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "svg.hashsalt": "kvlab",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(style):
        drawn, axes = plt.subplots(
            lines, columns, figsize=(max(6.4, 4.6 * columns), 3.6 * lines + 0.6), squeeze=False
        )
        series = _distinct(figure.rows, figure.series)
        colours = {
            name: ORACLE if str(name).startswith("belady") else COLOURS[at % len(COLOURS)]
            for at, name in enumerate(series)
        }
        for place, panel in enumerate(panels):
            axis = axes[place // columns][place % columns]
            rows = [
                row for row in figure.rows if figure.panel is None or row.get(figure.panel) == panel
            ]
            _PAINT[figure.kind](axis, figure, rows, colours)
            axis.set_ylabel(label(figure.y))
            axis.grid(visible=True, axis="y", alpha=0.25)
            if panel is not None:
                axis.set_title(_text(panel))
        for place in range(len(panels), lines * columns):
            axes[place // columns][place % columns].set_axis_off()
        handles, names = axes[0][0].get_legend_handles_labels()
        drawn.suptitle(f"{figure.title} ({SIMULATED})")
        drawn.legend(handles, names, loc="outside right upper", fontsize=8, frameon=False)
        drawn.set_layout_engine("constrained")
        out = io.StringIO()
        drawn.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(drawn)
    return out.getvalue()


def _lines(axis: Axes, figure: Figure, rows: Sequence[Row], colours: dict[Value, str]) -> None:
    for at, (name, colour) in enumerate(colours.items()):
        points = _points(figure, [row for row in rows if row.get(figure.series) == name])
        if not points:
            continue
        axis.errorbar(
            [x for x, _, _ in points],
            [y for _, y, _ in points],
            yerr=[spread for _, _, spread in points] if any(point[2] for point in points) else None,
            label=_text(name),
            color=colour,
            marker=_MARKERS[at % len(_MARKERS)],
            markersize=3.5,
            linewidth=1.4,
            linestyle="--" if colour == ORACLE else "-",
            capsize=2,
        )
    if figure.log_x:
        axis.set_xscale("log")
    axis.set_xlabel(label(figure.x))


def _scatter(axis: Axes, figure: Figure, rows: Sequence[Row], colours: dict[Value, str]) -> None:
    for at, (name, colour) in enumerate(colours.items()):
        points = _points(figure, [row for row in rows if row.get(figure.series) == name])
        axis.scatter(
            [x for x, _, _ in points],
            [y for _, y, _ in points],
            label=_text(name),
            color=colour,
            marker=_MARKERS[at % len(_MARKERS)],
            s=26,
            alpha=0.85,
        )
    if figure.log_x:
        axis.set_xscale("log")
    axis.set_xlabel(label(figure.x))


def _bars(axis: Axes, figure: Figure, rows: Sequence[Row], colours: dict[Value, str]) -> None:
    places = _distinct(rows, figure.x)
    width = 0.8 / max(1, len(colours))
    for at, (name, colour) in enumerate(colours.items()):
        for row in rows:
            height = _number(row, figure.y)
            if row.get(figure.series) != name or height is None:
                continue
            axis.bar(
                places.index(row.get(figure.x)) + (at - (len(colours) - 1) / 2) * width,
                height,
                width,
                yerr=_number(row, f"{figure.y}_sd"),
                color=colour,
                error_kw={"linewidth": 0.8},
            )
        axis.bar(0, 0, 0, color=colour, label=_text(name))
    axis.set_xticks(range(len(places)), [_text(place) for place in places], rotation=25, ha="right")


_PAINT = {"line": _lines, "scatter": _scatter, "bars": _bars}


def _points(figure: Figure, rows: Sequence[Row]) -> list[tuple[float, float, float]]:
    points = []
    for row in rows:
        x, y = _number(row, figure.x), _number(row, figure.y)
        if x is not None and y is not None:
            points.append((x, y, _number(row, f"{figure.y}_sd") or 0.0))
    return sorted(points) if figure.kind == "line" else points


def _number(row: Row, column: str) -> float | None:
    value: Any = row.get(column)
    return float(value) if isinstance(value, int | float) else None


def _distinct(rows: Sequence[Row], column: str) -> list[Value]:
    return list(dict.fromkeys(row.get(column) for row in rows))


def _text(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
