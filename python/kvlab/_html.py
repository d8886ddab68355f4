"""Self-contained pages: nothing fetched, light and dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["document", "figure", "table"]

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

_INK = ("#000000", "#222222", "black")


def document(title: str, tag: str, parts: Sequence[str], *, style: str = "") -> str:
    """A page.

    Args:
        title: In the window and above the page.
        tag: What is said of all figures beside the title, such as "simulated".
        parts: Pieces of HTML.
        style: Rules of this page's own, behind those of all.
    """
    head = escape(title)
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{head} ({tag})</title><style>{_STYLE}{style}</style></head><body>",
        f'<h1>{head}</h1><p><span class="tag">{tag}</span></p>',
        *parts,
        "</body></html>\n",
    ]
    return "\n".join(lines)


def figure(name: str, svg: str, title: str, tag: str, note: str = "") -> str:
    """A drawing with its caption, in the colours of the page.

    Args:
        name: Tells its ids from those of other drawings of the page.
        svg: As matplotlib writes it.
        title: What it shows.
        tag: What is said of its figures.
        note: Behind the title.
    """
    drawing = svg[svg.index("<svg") :]
    # Text and axes take the colour of the page; the ids of one drawing must not meet those of another.
    for ink in _INK:
        drawing = drawing.replace(f": {ink}", ": currentColor").replace(
            f'"{ink}"', '"currentColor"'
        )
    drawing = drawing.replace("fill: #ffffff", "fill: none")
    for mark in ('id="', "url(#", 'href="#'):
        drawing = drawing.replace(mark, f"{mark}{name}-")
    drawing = drawing.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}, {tag}" ', 1)
    caption = f"{escape(title)} ({tag})." + (f" {escape(note)}" if note else "")
    return f"<figure><div>{drawing}</div><figcaption>{caption}</figcaption></figure>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], names: Sequence[bool]) -> str:
    """A table that scrolls sideways where it is too wide.

    Args:
        header: The columns' names.
        rows: Their cells.
        names: Of each column, whether it is text that stands to the left.
    """
    head = "".join(
        f'<th class="name">{escape(text)}</th>' if left else f"<th>{escape(text)}</th>"
        for text, left in zip(header, names, strict=True)
    )
    lines = []
    for row in rows:
        cells = "".join(
            f"<td{' class=name' if left else ''}>{escape(text)}</td>"
            for text, left in zip(row, names, strict=True)
        )
        lines.append(f"<tr>{cells}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
