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
    from kvlab.bench.charts import draw_all
    from kvlab.bench.page import page
    from kvlab.bench.reading import reading
    from kvlab.bench.report import labelled, read

    loaded = []
    for path in reports:
        with writing("report", path):
            loaded.append((path, read(path)))
    named = labelled(loaded)
    drawn = draw_all(named)
    out = out or reports[0].with_suffix(".html")
    files = {out: page(named, drawn, title)}
    if charts is not None:
        files |= {charts / f"{chart.name}.svg": chart.svg for chart in drawn}
    for path, text in files.items():
        with writing("--out" if path == out else "--charts", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
    sentences = reading(named)
    if as_json:
        print_json({"reading": sentences, "files": [str(path) for path in files]})
        return
    for sentence in sentences:
        click.echo(sentence)
    click.echo(f"wrote {out}" + (f" and {len(drawn)} charts" if charts is not None else ""))
