"""`kvlab sim plots`: the plots and the report of a run, drawn anew."""

from __future__ import annotations

from pathlib import Path

import click

from kvlab.cli._common import json_option, print_json
from kvlab.cli._sim import writing

__all__ = ["sim_plots"]


@click.command("plots")
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@json_option
def sim_plots(*, directory: Path, as_json: bool) -> None:
    """Draw plots and report.html from the results in DIRECTORY, as --out of another command left them.

    Needs matplotlib for the plots; without, the report has its tables only.
    """
    from kvlab.sim.experiments.artifacts import draw, read

    with writing("DIRECTORY", directory):
        files = draw(read(directory), directory)
    if as_json:
        print_json({"files": files})
    else:
        click.echo(f"drew {', '.join(files)}")
