"""One self-contained page of a run: no scripts, nothing fetched, light and dark, readable on a phone."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from kvlab.sim.experiments.table import SIMULATED, Row, Value, columns_of, label, to_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kvlab.sim.experiments.artifacts import Artifacts
    from kvlab.sim.experiments.plots import Figure

__all__ = ["cell", "page"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5c6370; --line: #d9dce1; --back: #ffffff; --card: #f6f7f9;
        --tag: #856000; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --soft: #a2a8b4; --line: #3a3f47; --back: #15171a; --card: #1e2125; --tag: #e0b04a; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; font: 16px/1.5 system-ui, sans-serif;
       color: var(--ink); background: var(--back); }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.tag { display: inline-block; padding: .1rem .6rem; border: 1px solid; border-radius: 1rem; color: var(--tag);
       font-size: .85rem; font-weight: 600; }
.soft { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { position: sticky; top: 0; background: var(--card); } .name { text-align: left; }
figure { margin: 1rem 0; padding: .5rem; border: 1px solid var(--line); border-radius: .5rem; }
figure div { overflow-x: auto; }
figure svg { fill: currentColor; min-width: 34rem; width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: .85rem; }
pre { overflow-x: auto; padding: .75rem; background: var(--card); border-radius: .5rem; font-size: .8rem; }
"""

_SAID = (
    '<p class="soft">Hits, tokens and bytes are counted exactly by a replay that moves no payload. '
    "Milliseconds come from a cost model. Nothing here was measured on a serving system.</p>"
)
_INK = ("#000000", "#222222", "black")


def page(artifacts: Artifacts, summary: Sequence[Row], drawn: Sequence[tuple[Figure, str]]) -> str:
    """The page of an experiment."""
    title = escape(artifacts.title)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title} ({SIMULATED})</title><style>{_STYLE}</style></head><body>",
        f'<h1>{title}</h1><p><span class="tag">{SIMULATED}</span></p>',
        _SAID,
    ]
    if artifacts.findings:
        items = "".join(f"<li>{escape(finding)}</li>" for finding in artifacts.findings)
        parts.append(f"<h2>What came out</h2><ul>{items}</ul>")
    if drawn:
        parts.append("<h2>Plots</h2>")
        parts.extend(_figure(figure, svg) for figure, svg in drawn)
    parts.append(f"<h2>Table ({SIMULATED}; mean, and ± the standard deviation over seeds)</h2>")
    parts.append(_table(summary))
    config = escape(to_json(artifacts.config))
    parts.append(f"<h2>Configuration</h2><pre>{config}</pre>")
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _figure(figure: Figure, svg: str) -> str:
    drawing = svg[svg.index("<svg") :]
    # Text and axes take the colour of the page; the ids of one drawing must not meet those of another.
    for ink in _INK:
        drawing = drawing.replace(f": {ink}", ": currentColor").replace(
            f'"{ink}"', '"currentColor"'
        )
    drawing = drawing.replace("fill: #ffffff", "fill: none")
    for mark in ('id="', "url(#", 'href="#'):
        drawing = drawing.replace(mark, f"{mark}{figure.name}-")
    drawing = drawing.replace(
        "<svg ", f'<svg role="img" aria-label="{escape(figure.title)}, {SIMULATED}" ', 1
    )
    note = f" {escape(figure.note)}" if figure.note else ""
    caption = f"{escape(figure.title)} ({SIMULATED}).{note}"
    return f"<figure><div>{drawing}</div><figcaption>{caption}</figcaption></figure>"


def _table(rows: Sequence[Row]) -> str:
    columns = [name for name in columns_of(rows) if not name.endswith("_sd")]
    text = {name: any(isinstance(row.get(name), str) for row in rows) for name in columns}
    head = "".join(
        f'<th class="name">{escape(label(name))}</th>'
        if text[name]
        else f"<th>{escape(label(name))}</th>"
        for name in columns
    )
    lines = []
    for row in rows:
        cells = "".join(
            f"<td{' class=name' if text[name] else ''}>{escape(cell(row, name))}</td>"
            for name in columns
        )
        lines.append(f"<tr>{cells}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


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
