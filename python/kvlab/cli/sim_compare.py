"""`kvlab sim compare`: two result files side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvlab.cli._common import json_option, print_json
from kvlab.cli._sim import items, writing
from kvlab.errors import InvalidArgumentError

if TYPE_CHECKING:
    from kvlab.sim.experiments.compare import Comparison

__all__ = ["REGRESSION", "sim_compare"]

REGRESSION = 3
"""The exit code if a figure got worse by more than the threshold."""


@click.command("compare")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--metrics", multiple=True, help="Columns to look at. [default: all with a better and a worse]"
)
@click.option(
    "--threshold",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Per cent that a figure may get worse.",
)
@json_option
def sim_compare(
    *, before: Path, after: Path, metrics: tuple[str, ...], threshold: float, as_json: bool
) -> None:
    """Compare two results: directories of runs, results.json, or what a command printed.

    Exits with 3 if a figure got worse by more than the threshold.
    """
    from kvlab.sim.experiments.compare import compare
    from kvlab.sim.experiments.table import read_results

    tables = []
    for path in (before, after):
        if not path.exists():
            raise InvalidArgumentError(f"{path}: there is no such file or directory")
        with writing("results", path):
            tables.append(read_results(path)[1])
    found = compare(tables[0], tables[1], metrics=items(metrics) or None, threshold=threshold)
    if as_json:
        print_json(found.as_dict())
    else:
        _show(found)
    if found.regressions:
        raise click.exceptions.Exit(REGRESSION)


def _show(found: Comparison) -> None:
    for delta in found.deltas:
        key = ", ".join(f"{value}" for value in delta.key.values())
        mark = "" if delta.worse is None else "WORSE" if delta.worse else "better"
        relative = "" if delta.percent is None else f"{delta.percent:+.2f} %"
        change = f"{delta.metric} {delta.before:g} -> {delta.after:g}"
        click.echo(f"  {key}: {change}  {relative}  {mark}".rstrip())
    for side, keys in (("first", found.only_before), ("second", found.only_after)):
        if keys:
            click.echo(f"  {len(keys)} rows are in the {side} results only")
    click.echo(
        f"simulated: {found.rows} rows compared, {len(found.deltas)} figures changed, "
        f"{found.regressions} worse by more than {found.threshold_percent:g} %"
    )
