"""`kvlab course undo`: take back that items are done."""

from __future__ import annotations

import click

from kvlab.cli._common import json_option
from kvlab.cli._course import tell_changed
from kvlab.course import progress
from kvlab.course.syllabus import load

__all__ = ["course_undo"]


@click.command("undo")
@click.argument("items", nargs=-1, required=True)
@json_option
def course_undo(*, items: tuple[str, ...], as_json: bool) -> None:
    """Take back that items, such as 0.1.R1 or 0.1.A, are done."""
    syllabus = load()
    names = [syllabus.item(name).id for name in items]
    with progress.changing() as has:
        changed = has.unmark(names)
    tell_changed(syllabus, has, changed, names, "not done", as_json=as_json)
