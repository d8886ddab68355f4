"""What the sub-commands of `kvlab course` share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kvlab.cli._common import print_json
from kvlab.course import progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvlab.course.progress import Progress
    from kvlab.course.syllabus import Syllabus

__all__ = ["tell_changed"]


def tell_changed(
    syllabus: Syllabus,
    has: Progress,
    changed: Sequence[str],
    names: Sequence[str],
    now: str,
    *,
    as_json: bool,
) -> None:
    """Says which items are `now` done or not, and how much of the course is."""
    whole = progress.standing(syllabus.items, has.done)
    if as_json:
        print_json(
            {
                "changed": list(changed),
                "done": whole.done,
                "items": whole.items,
                "resident": whole.resident,
                "state": str(progress.state_path()),
            }
        )
        return
    for name in dict.fromkeys(names):
        click.echo(f"{name}: {now if name in changed else f'{now} already'}")
    click.echo(f"{whole.bar()} {whole} ({whole.resident:.0%})")
