"""Charts of reports; the same reports give the same SVG."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kvlab.bench.outcome import SOURCES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kvlab.bench.report import Report

__all__ = ["TIERS", "Chart", "draw_all", "svg_of"]

_COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c")
TIERS = {
    "compute": "#8c8c8c",
    "l1": "#55a868",
    "l2": "#4c72b0",
    "l3": "#dd8452",
    "remote": "#8172b3",
    "cached": "#55a868",
}
"""The colours of where tokens come from."""
_POINTS = 300
_SESSIONS = 6
_MIB = float(1 << 20)


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing.

    Attributes:
        name: Of its file, without the ending.
        title: What it shows.
        note: How to read it.
        svg: As matplotlib writes it.
    """

    name: str
    title: str
    note: str
    svg: str


def draw_all(reports: Sequence[Report]) -> list[Chart]:
    """The charts that have something to show; none where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    made = []
    for name, title, note, paint in _CHARTS:
        svg = _drawn(reports, paint)
        if svg is not None:
            made.append(Chart(name, title, note, svg))
    return made


Paint = Callable[["Figure", Sequence["Report"]], bool]


def _drawn(reports: Sequence[Report], paint: Paint) -> str | None:
    return svg_of(lambda figure: paint(figure, reports))


def svg_of(paint: Callable[[Figure], bool]) -> str | None:
    """What `paint` draws, as SVG; None if it has nothing to show, or matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "svg.hashsalt": "kvlab",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(style):
        figure = plt.figure(figsize=(7.2, 3.6), layout="constrained")
        out = io.StringIO()
        if shown := paint(figure):
            figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return out.getvalue() if shown else None


def _colours(reports: Sequence[Report]) -> dict[str, str]:
    return {report.name: _COLOURS[at % len(_COLOURS)] for at, report in enumerate(reports)}


def _classes(figure: Figure, reports: Sequence[Report]) -> bool:
    """Median TTFT by class, with a line up to the 95th percentile."""
    axis = figure.subplots()
    colours = _colours(reports)
    names = list(dict.fromkeys(name for report in reports for name in report.content["classes"]))
    width = 0.8 / len(reports)
    drawn = False
    for at, report in enumerate(reports):
        figures = [report.content["classes"].get(name, {}) for name in names]
        places = [place for place, part in enumerate(figures) if part.get("median_ttft_ms")]
        xs = [place + (at - (len(reports) - 1) / 2) * width for place in places]
        medians = [figures[place]["median_ttft_ms"] for place in places]
        axis.bar(xs, medians, width, color=colours[report.name], label=report.name)
        for x, place in zip(xs, places, strict=True):
            high = figures[place].get("p95_ttft_ms")
            if high is not None:
                axis.plot(
                    [x, x], [figures[place]["median_ttft_ms"], high], color="#222222", linewidth=0.9
                )
        drawn = drawn or bool(places)
    axis.set_yscale("log")
    axis.set_ylabel("TTFT, ms")
    axis.set_xticks(range(len(names)), names, rotation=15 if len(names) > 3 else 0)
    axis.grid(visible=True, axis="y", alpha=0.25)
    _legend(figure, axis)
    return drawn


def _distribution(figure: Figure, reports: Sequence[Report]) -> bool:
    axis = figure.subplots()
    drawn = False
    for report in reports:
        values = np.sort([row["ttft_ms"] for row in report.samples() if row["ttft_ms"]])
        if not len(values):
            continue
        share = np.arange(1, len(values) + 1) / len(values)
        kept = _thin(len(values))
        axis.step(
            values[kept],
            share[kept],
            where="post",
            label=report.name,
            color=_colours(reports)[report.name],
            linewidth=1.4,
        )
        drawn = True
    axis.set_xscale("log")
    axis.set_xlabel("TTFT, ms")
    axis.set_ylabel("share of requests")
    axis.set_ylim(0, 1.02)
    axis.grid(visible=True, alpha=0.25)
    _legend(figure, axis)
    return drawn


def _order(figure: Figure, reports: Sequence[Report]) -> bool:
    axis = figure.subplots()
    drawn = False
    for report in reports:
        rows = _first_round(report)
        if len(rows) < 2:
            continue
        kept = _thin(len(rows))
        axis.plot(
            kept,
            [rows[at]["ttft_ms"] for at in kept],
            marker="o",
            markersize=2.5,
            linewidth=0.8,
            label=report.name,
            color=_colours(reports)[report.name],
        )
        drawn = True
        if report.content["restart_seconds"]:
            border = next((at for at, row in enumerate(rows) if row["half"] == "second"), None)
            if border is not None:
                axis.axvline(border - 0.5, color="#222222", linestyle=":", linewidth=1.0)
                axis.annotate(
                    f" restart of {report.name}",
                    (border - 0.5, 1.0),
                    xycoords=("data", "axes fraction"),
                    va="top",
                    fontsize=8,
                )
    axis.set_yscale("log")
    axis.set_xlabel("requests of the first round, as they were sent")
    axis.set_ylabel("TTFT, ms")
    axis.grid(visible=True, axis="y", alpha=0.25)
    _legend(figure, axis)
    return drawn


def _sources(figure: Figure, reports: Sequence[Report]) -> bool:
    shares = {report.name: sources(report.content) for report in reports}
    shown = {name: share for name, share in shares.items() if share is not None}
    if not any(part for share in shown.values() for key, part in share.items() if key != "compute"):
        return False
    axis = figure.subplots()
    left = np.zeros(len(shown))
    names = list(shown)
    for key in ("cached", *SOURCES, "compute"):
        widths = np.array([100 * shown[name].get(key, 0.0) for name in names])
        if widths.any():
            axis.barh(names, widths, left=left, color=TIERS[key], label=key, height=0.6)
        left += widths
    axis.invert_yaxis()
    axis.set_xlabel("% of prompt tokens")
    axis.set_xlim(0, 100)
    _legend(figure, axis)
    return True


def _held(figure: Figure, reports: Sequence[Report]) -> bool:
    """What was found of each session's history, by tier, at each of its turns."""
    report = _most_tiers(reports)
    if report is None:
        return False
    sessions: dict[str, list[Mapping[str, Any]]] = {}
    for row in _first_round(report):
        sessions.setdefault(row["session"], []).append(row)
    shown = sorted(sessions.items(), key=lambda item: -len(item[1]))[:_SESSIONS]
    shown = [(name, rows) for name, rows in shown if len(rows) > 1]
    if not shown:
        return False
    token_bytes = report.content["config"].get("kv_bytes_per_token")
    scale = token_bytes / _MIB if token_bytes else 1.0
    figure.set_size_inches(7.2, 2.0 * -(-len(shown) // 3) + 0.6)
    axes = figure.subplots(-(-len(shown) // 3), min(3, len(shown)), squeeze=False, sharey=True)
    for at, axis in enumerate(axes.flat):
        if at >= len(shown):
            axis.set_axis_off()
            continue
        name, rows = shown[at]
        rows = sorted(rows, key=lambda row: row["turn"])
        bottom = np.zeros(len(rows))
        for tier in SOURCES:
            heights = np.array([(row.get(f"cached_{tier}") or 0) * scale for row in rows])
            if heights.any():
                axis.bar(range(len(rows)), heights, bottom=bottom, color=TIERS[tier], width=0.8)
            bottom += heights
        border = next((x for x, row in enumerate(rows) if row["half"] == "second"), None)
        if border and report.content["restart_seconds"]:
            axis.axvline(border - 0.5, color="#222222", linestyle=":", linewidth=1.0)
        axis.set_title(name if len(name) <= 24 else f"{name[:21]}...", fontsize=8)
        axis.set_xticks(range(len(rows)), [str(row["turn"]) for row in rows], fontsize=7)
    figure.supxlabel(f"turn ({report.name})", fontsize=9)
    figure.supylabel("KV found, MiB" if token_bytes else "tokens found", fontsize=9)
    _tier_legend(figure, [tier for tier in SOURCES if _any(report, f"cached_{tier}")])
    return True


def _fill(figure: Figure, reports: Sequence[Report]) -> bool:
    report = _most_tiers(reports)
    if report is None:
        return False
    rows = _first_round(report)
    tiers = [tier for tier in SOURCES if _any(report, f"held_{tier}_bytes")]
    if not tiers or len(rows) < 2:
        return False
    axis = figure.subplots()
    kept = _thin(len(rows))
    for tier in tiers:
        values = [(rows[at].get(f"held_{tier}_bytes") or 0) / _MIB for at in kept]
        axis.plot(kept, values, color=TIERS[tier], label=tier, linewidth=1.4)
    axis.set_xlabel(f"requests of the first round ({report.name})")
    axis.set_ylabel("KV held, MiB")
    axis.grid(visible=True, axis="y", alpha=0.25)
    _legend(figure, axis)
    return True


_CHARTS: tuple[tuple[str, str, str, Paint], ...] = (
    ("ttft_by_class", "Time to the first token by class",
     "Bars are medians, lines reach to the 95th percentile. The scale is logarithmic.", _classes),
    ("ttft_distribution", "Time to the first token: all requests",
     "Further left is faster; steps are whole requests.", _distribution),
    ("ttft_by_order", "Time to the first token, request by request", "", _order),
    ("sources", "Where the prompts' tokens came from", "Grey was computed.", _sources),
    ("held_by_session", "KV bytes of a session found at each turn, by tier",
     "What the tiers held of a session's prompt when the turn came; a dotted line is a restart.", _held),
    ("tier_fill", "KV bytes in each tier", "L3 has copies of what is above it.", _fill),
)  # fmt: skip


def sources(content: Mapping[str, Any]) -> dict[str, float] | None:
    """Shares of the prompt tokens by source, 0 to 1; None where the server did not say."""
    total, cached = content["total_input_tokens"], content["total_cached_tokens"]
    if not total or cached is None or content["cached_tokens_absent"]:
        return None
    split = content["cached_tokens_by_source"]
    known = (
        {source: count / total for source, count in split.items()}
        if split and sum(split.values()) == cached
        else {"cached": cached / total}
    )
    return {**known, "compute": 1.0 - cached / total}


def _first_round(report: Report) -> list[dict[str, Any]]:
    rows = [row for row in report.samples() if row["round"] == 0 and row["status"] == "ok"]
    return sorted(rows, key=lambda row: row["sent_ms"])


def _most_tiers(reports: Sequence[Report]) -> Report | None:
    """The report whose prompts came from the most tiers; None if none says."""
    counts = {
        report.name: sum(_any(report, f"cached_{tier}") for tier in SOURCES) for report in reports
    }
    best = max(reports, key=lambda report: counts[report.name])
    return best if counts[best.name] else None


def _any(report: Report, column: str) -> bool:
    return any(report.content["samples"].get(column, ()))


def _thin(count: int) -> list[int]:
    """Up to so many places, evenly, the first and last among them."""
    if count <= _POINTS:
        return list(range(count))
    return sorted({round(at * (count - 1) / (_POINTS - 1)) for at in range(_POINTS)})


def _legend(figure: Figure, axis: Axes) -> None:
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=4, fontsize=8, frameon=False)


def _tier_legend(figure: Figure, tiers: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=TIERS[tier], label=tier) for tier in tiers]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=8, frameon=False)
