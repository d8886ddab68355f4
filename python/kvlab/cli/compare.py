"""`kvlab compare`: reports of runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvlab.cli._common import json_option, print_json
from kvlab.cli._sim import items, writing
from kvlab.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvlab.bench.compare import Comparison, Delta

__all__ = ["REGRESSION", "compare"]

REGRESSION = 1
"""The exit code if a limit of `--fail-on` does not hold."""

_path = click.Path(path_type=Path, dir_okay=False)


@click.command("compare")
@click.argument("reports", type=_path, nargs=-1)
@click.option(
    "--baseline", type=_path, help="What the others are compared with. [default: the first]"
)
@click.option("--candidate", "candidates", type=_path, multiple=True, help="May be repeated.")
@click.option("--metrics", multiple=True, help="Figures to look at. [default: the usual ones]")
@click.option(
    "--fail-on",
    multiple=True,
    metavar="LIMIT",
    help="Exit with 1 if e.g. 'median_ttft_ms>+10%' or 'failed>0'; may be repeated.",
)
@click.option("--markdown", is_flag=True, help="Print tables of Markdown.")
@json_option
def compare(
    *,
    reports: tuple[Path, ...],
    baseline: Path | None,
    candidates: tuple[Path, ...],
    metrics: tuple[str, ...],
    fail_on: tuple[str, ...],
    markdown: bool,
    as_json: bool,
) -> None:
    """Compare reports of `kvlab bench`: the first with each of the others.

    A change is called better or worse if the spread of 95 % does not include no change.
    """
    from kvlab.bench import compare as comparing
    from kvlab.bench.report import labelled, read

    limits = [comparing.parse_limit(text) for text in fail_on]
    paths = [*((baseline,) if baseline else ()), *reports, *candidates]
    if len(paths) < 2:
        raise InvalidArgumentError("compare needs at least two reports: a baseline and a candidate")
    loaded = []
    for path in paths:
        with writing("report", path):
            loaded.append((path, read(path)))
    first, *others = labelled(loaded)
    found = [
        comparing.compare(first, other, metrics=items(metrics), limits=limits) for other in others
    ]
    if as_json:
        print_json({"comparisons": [each.as_dict() for each in found]})
    else:
        for each in found:
            (_markdown if markdown else _show)(each)
    if any(each.broken for each in found):
        raise click.exceptions.Exit(REGRESSION)


def _show(found: Comparison) -> None:
    click.echo(_title(found))
    rows = [("", "before", "after", "change", "95 % spread", "")]
    rows += [_cells(delta) for delta in found.deltas]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        cells = [
            text.ljust(width) if at in (0, 5) else text.rjust(width)
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  " + "  ".join(cells).rstrip())
    _tail(found)


def _markdown(found: Comparison) -> None:
    click.echo(f"### {_title(found)}\n")
    click.echo(
        "| figure | before | after | change | 95 % spread | |\n|---|---:|---:|---:|---:|---|"
    )
    for delta in found.deltas:
        cells: Sequence[str] = _cells(delta)
        click.echo("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    click.echo()
    _tail(found)


def _title(found: Comparison) -> str:
    kind = "estimated: " if found.estimated else ""
    return f"{kind}{found.baseline} -> {found.candidate}"


def _tail(found: Comparison) -> None:
    spreads = sorted({delta.spread for delta in found.deltas if delta.spread})
    if spreads:
        click.echo(f"spread: 95 %, from {' and '.join(spreads)}")
    for note in found.notes:
        click.echo(f"note: {note}")
    for sentence in found.broken:
        click.echo(f"FAILED {sentence}")


def _cells(delta: Delta) -> tuple[str, str, str, str, str, str]:
    name = delta.metric if delta.part == "all" else f"{delta.part}/{delta.metric}"
    change = "" if delta.percent is None else f"{delta.percent:+.1f} %"
    spread = "" if delta.low is None else f"{delta.low:+.1f} to {delta.high:+.1f} %"
    mark = {True: "better", False: "WORSE", None: ""}[delta.better]
    return name, _number(delta.before), _number(delta.after), change, spread, mark


def _number(value: float | None) -> str:
    if value is None:
        return "not known"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"
