"""One self-contained page of a run: no scripts, nothing fetched, light and dark, readable on a phone."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from kvlab import _html
from kvlab.sim.experiments.table import SIMULATED, Row, Value, columns_of, label, to_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kvlab.sim.experiments.artifacts import Artifacts
    from kvlab.sim.experiments.plots import Figure

__all__ = ["cell", "page"]

_SAID = (
    '<p class="soft">Hits, tokens and bytes are counted exactly by a replay that moves no payload. '
    "Milliseconds come from a cost model. Nothing here was measured on a serving system.</p>"
)


def page(artifacts: Artifacts, summary: Sequence[Row], drawn: Sequence[tuple[Figure, str]]) -> str:
    """The page of an experiment."""
    parts = [_SAID]
    if artifacts.findings:
        items = "".join(f"<li>{escape(finding)}</li>" for finding in artifacts.findings)
        parts.append(f"<h2>What came out</h2><ul>{items}</ul>")
    if drawn:
        parts.append("<h2>Plots</h2>")
        parts.extend(
            _html.figure(figure.name, svg, figure.title, SIMULATED, figure.note)
            for figure, svg in drawn
        )
    parts.append(f"<h2>Table ({SIMULATED}; mean, and ± the standard deviation over seeds)</h2>")
    parts.append(_table(summary))
    config = escape(to_json(artifacts.config))
    parts.append(f"<h2>Configuration</h2><pre>{config}</pre>")
    return _html.document(artifacts.title, SIMULATED, parts)


def _table(rows: Sequence[Row]) -> str:
    columns = [name for name in columns_of(rows) if not name.endswith("_sd")]
    names = [any(isinstance(row.get(name), str) for row in rows) for name in columns]
    cells = [[cell(row, name) for name in columns] for row in rows]
    return _html.table([label(name) for name in columns], cells, names)


def cell(row: Mapping[str, Value], name: str) -> str:
    """A value as a table has it, with its spread."""
    spread = row.get(f"{name}_sd")
    text = _show(row.get(name), name)
    return f"{text} ± {_show(spread, name)}" if isinstance(spread, int | float) else text


def _show(value: Value, name: str) -> str:
    if value is None:
        return "inf" if name == "capacity_blocks" else ""
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"
