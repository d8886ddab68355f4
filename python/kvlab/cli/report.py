"""`kvlab report`: a page with charts of runs."""

from __future__ import annotations

from pathlib import Path

import click

from kvlab.cli._common import json_option, print_json
from kvlab.cli._sim import writing

__all__ = ["report"]

_path = click.Path(path_type=Path, dir_okay=False)


@click.command("report")
@click.argument("reports", type=_path, nargs=-1, required=True)
@click.option("--out", type=_path, help="The page. [default: beside the first report]")
@click.option(
    "--charts",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the charts there, too, as SVG files.",
)
@click.option("--title", default="", help="Above the page. [default: workload and modes]")
@json_option
def report(
    *, reports: tuple[Path, ...], out: Path | None, charts: Path | None, title: str, as_json: bool
) -> None:
    """Make one self-contained page of reports of `kvlab bench`; the first is what others are compared with."""
    from kvlab.bench.page import write
    from kvlab.bench.reading import reading
    from kvlab.bench.report import labelled, read

    loaded = []
    for path in reports:
        with writing("report", path):
            loaded.append((path, read(path)))
    named = labelled(loaded)
    out = out or reports[0].with_suffix(".html")
    with writing("--out or --charts", out):
        files = write(named, out, charts, title)
    sentences = reading(named)
    if as_json:
        print_json({"reading": sentences, "files": [str(path) for path in files]})
        return
    for sentence in sentences:
        click.echo(sentence)
    for path in files:
        click.echo(f"wrote {path}")
