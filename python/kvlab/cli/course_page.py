"""`kvlab course page`: the course as one page."""

from __future__ import annotations

import os
from pathlib import Path

import click

from kvlab.cli._common import json_option, print_json
from kvlab.cli._sim import writing
from kvlab.course import progress
from kvlab.course.syllabus import load

__all__ = ["course_page"]


@click.command("page")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default="course.html",
    show_default=True,
    help="The page.",
)
@json_option
def course_page(*, out: Path, as_json: bool) -> None:
    """Write the course as one self-contained page, ticked as the state is; the browser keeps what is ticked in it."""
    from kvlab.course.page import page
    from kvlab.course.toys import checkout

    syllabus, has = load(), progress.read()
    repository = checkout()
    way = None
    if repository is not None:
        way = Path(os.path.relpath(repository, out.resolve().parent)).as_posix()
    with writing("--out", out):
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page(syllabus, has.done, way), encoding="utf-8")
    whole = progress.standing(syllabus.items, has.done)
    if as_json:
        print_json({"file": str(out), "done": whole.done, "items": whole.items})
        return
    click.echo(f"wrote {out}: {whole}")
    if way is None:
        click.echo("no checkout of kvlab here: toys, code and essays are named, not linked")
