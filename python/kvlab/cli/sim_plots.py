"""`kvlab sim plots`: the plots and the report of a run, drawn anew."""

from __future__ import annotations

from pathlib import Path

import click

from kvlab.cli._common import json_option, print_json
from kvlab.cli._sim import writing

__all__ = ["sim_plots"]


@click.command("plots")
@click.argument("results", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for report.html and plots/. [default: that of the results]",
)
@json_option
def sim_plots(*, results: Path, out: Path | None, as_json: bool) -> None:
    """Draw plots and report.html from RESULTS: a results.json, or the directory that --out of a command wrote.

    Needs matplotlib for the plots; without, the report has its tables only.
    """
    from kvlab.sim.experiments.artifacts import draw, read

    with writing("RESULTS", results):
        artifacts = read(results)
    directory = out or (results if results.is_dir() else results.parent)
    with writing("--out", directory):
        files = draw(artifacts, directory)
    if as_json:
        print_json({"files": files})
    else:
        click.echo(f"drew {', '.join(files)}")
