"""`kvlab course run`: the toys of a module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from kvlab._progress import ConsoleProgress
from kvlab.cli._common import json_option, print_json
from kvlab.cli._sim import writing
from kvlab.course import toys
from kvlab.course.syllabus import load

__all__ = ["course_run"]


@click.command("run")
@click.argument("module")
@click.option("--quick", is_flag=True, help="Fewer and smaller cases.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="course-out",
    show_default=True,
    help="Where the pictures go.",
)
@json_option
def course_run(*, module: str, quick: bool, out: Path, as_json: bool) -> None:
    """Run the toys of a module, one after the other; the exit code is 1 if one failed."""
    found = load().module(module)
    for name in found.toys:
        toys.toy(name)  # before the first runs for minutes
    with writing("--out", out):
        out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    failed: list[str] = []
    for name in found.toys:
        if as_json:
            with ConsoleProgress().stage(f"toys/{name}.py"):
                done = toys.run(name, out, quick=quick, as_json=True, take=True)
        else:  # what it says is progress enough
            click.echo(f"\npython toys/{name}.py{' --quick' if quick else ''}\n", err=True)
            done = toys.run(name, out, quick=quick, as_json=False, take=False)
        if done.code != 0:
            failed.append(name)
            click.echo(
                f"kvlab: toys/{name}.py ended with exit code {done.code}\n{done.err}", err=True
            )
        elif as_json:
            results[name] = json.loads(done.out)
    if as_json:
        print_json({"module": found.id, "toys": results, "failed": failed})
    elif not failed:
        click.echo(f"\nran: {', '.join(found.toys)}; pictures are in {out}")
    if failed:
        raise SystemExit(1)
