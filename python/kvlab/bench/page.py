"""Reports as one self-contained page, with the raw samples in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from kvlab import _html
from kvlab.bench.charts import Chart, draw_all
from kvlab.bench.metrics import FORMULAS, percentile_name
from kvlab.bench.reading import environment_line, reading
from kvlab.bench.report import ESTIMATED, MEASURED, flat, headline

if TYPE_CHECKING:
    from pathlib import Path

    from kvlab.bench.report import Report

__all__ = ["page", "write"]

_MOST_SAMPLES = 120_000
"""Characters of samples that a page takes; of larger runs it names the files instead."""


def write(
    reports: Sequence[Report], out: Path | None, charts: Path | None, title: str = ""
) -> list[Path]:
    """Writes the page, and the charts as SVG files into a directory, as far as paths are given.

    Returns:
        The files.

    Raises:
        OSError: one cannot be written.
    """
    drawn = draw_all(reports)
    files = {} if out is None else {out: page(reports, drawn, title)}
    if charts is not None:
        files |= {charts / f"{chart.name}.svg": chart.svg for chart in drawn}
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    return list(files)


def page(reports: Sequence[Report], charts: Sequence[Chart], title: str = "") -> str:
    """The page of some reports; the first is what the others are compared with."""
    tag = ESTIMATED if all(report.estimated for report in reports) else MEASURED
    if len({report.estimated for report in reports}) > 1:
        tag = f"{MEASURED} and {ESTIMATED}"
    first = reports[0].content
    title = title or f"{first['workload']['name']}: {', '.join(each.name for each in reports)}"
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in reading(reports))
    parts = [f"<h2>In words</h2><ul>{sentences}</ul>"]
    if charts:
        parts.append("<h2>Charts</h2>")
        parts.extend(
            _html.figure(each.name, each.svg, each.title, tag, each.note) for each in charts
        )
    else:
        parts.append(
            '<p class="soft">No charts: matplotlib is missing; pip install kvlab[plot]</p>'
        )
    parts.append(f"<h2>Figures ({tag})</h2>")
    parts.append(_figures(reports))
    parts.append(f"<h2>By class and half ({tag})</h2>")
    parts.append(_parts(reports))
    formulas = "".join(
        f"<li>{escape(name)}: {escape(text)}</li>" for name, text in FORMULAS.items()
    )
    parts.append(f'<h2>How each figure is made</h2><ul class="soft">{formulas}</ul>')
    parts.append("<h2>Run</h2>")
    parts.extend(_run(report) for report in reports)
    parts.append(_samples(reports))
    return _html.document(title, tag, parts)


def _figures(reports: Sequence[Report]) -> str:
    percentiles = _percentiles(reports[0])
    columns = [dict(headline(report.content, percentiles)) for report in reports]
    rows = [[label, *(column.get(label, "") for column in columns)] for label in columns[0]]
    header = ["", *(report.name for report in reports)]
    return _html.table(header, rows, [True, *(False for _ in reports)])


def _percentiles(report: Report) -> list[float]:
    found = []
    for name in report.content:
        if name.startswith("p") and name.endswith("_ttft_ms"):
            value = float(name[1:].removesuffix("_ttft_ms"))
            if percentile_name(value) + "_ttft_ms" == name:
                found.append(value)
    return found


def _parts(reports: Sequence[Report]) -> str:
    wanted = ("completed", "median_ttft_ms", "p95_ttft_ms", "median_tpot_ms", "median_e2el_ms")
    header = ["report", "part", *(name.replace("_", " ") for name in wanted), "cached %"]
    rows = []
    for report in reports:
        for row in flat(report.content)[1:]:
            if not row["completed"]:
                continue
            ratio = row["cached_token_ratio"]
            cells = [report.name, row["part"].replace(":", " ")]
            cells += [_cell(row.get(name)) for name in wanted]
            rows.append([*cells, "not known" if ratio is None else f"{100 * ratio:.1f}"])
    return _html.table(header, rows, [True, True, *(False for _ in range(len(wanted) + 1))])


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def _run(report: Report) -> str:
    content = report.content
    config = {key: value for key, value in content["config"].items() if value is not None}
    shown = {"workload": content["workload"], "config": config, "run": content["run"]}
    text = escape(json.dumps(shown, indent=1, ensure_ascii=False))
    where = escape(environment_line(content["environment"]))
    return f"<details><summary>{escape(report.name)}: {where}</summary><pre>{text}</pre></details>"


def _samples(reports: Sequence[Report]) -> str:
    """The raw samples, for whoever wants to look closer, where they are not too many."""
    samples = {report.name: report.content["samples"] for report in reports}
    text = json.dumps(samples, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    if len(text) > _MOST_SAMPLES:
        return '<p class="soft">The samples are in the reports\' files: there are too many for a page.</p>'
    return f'<script type="application/json" id="samples">{text}</script>'
