"""`kvlab course`: the course. Its sub-commands are the modules `kvlab.cli.course_*`; alone it lists what there is."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from kvlab.cli import LazyGroup
from kvlab.cli._common import print_json
from kvlab.course import progress
from kvlab.course.syllabus import load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvlab.course.progress import Progress
    from kvlab.course.syllabus import Item, Syllabus

__all__ = ["COMMANDS", "counts", "course"]

COMMANDS: Mapping[str, str] = {
    "check": "Run checkpoints, against kvlab's references or your own functions.",
    "done": "Note items as done.",
    "page": "Write the course as one page with boxes to tick.",
    "run": "Run the toys of a module.",
    "show": "A module in full.",
    "undo": "Take back that items are done.",
}
"""Every sub-command of `kvlab course` with the line that its help shows for it."""


def counts(syllabus: Syllabus, has: Progress) -> dict[str, Any]:
    """How much is resident, for the JSON of several commands."""
    whole = progress.standing(syllabus.items, has.done)
    return {"done": whole.done, "items": whole.items, "resident": whole.resident}


@click.pass_context
def _list(context: click.Context, /, *, as_json: bool) -> None:
    """Without a sub-command: everything there is, and what of it is done."""
    if context.invoked_subcommand is not None:
        if as_json:
            raise click.UsageError(f"give --json behind {context.invoked_subcommand}")
        return
    syllabus, has = load(), progress.read()
    if as_json:
        print_json(_as_json(syllabus, has))
        return
    whole = progress.standing(syllabus.items, has.done)
    click.echo(f"{syllabus.title}\n")
    click.echo(f"{whole.bar()} {whole} ({whole.resident:.0%})")
    for layer in syllabus.layers:
        part = progress.standing(layer.items, has.done)
        click.echo(f"\n{layer.id}  {layer.title}  {part.bar(12)} {part.done} of {part.items}")
        for module in layer.modules:
            part = progress.standing(module.items, has.done)
            click.echo(
                f"\n  {module.id}  {module.title}  {part.bar(12)} {part.done} of {part.items}"
            )
            for item in module.items:
                box = "x" if item.id in has.done else " "
                click.echo(f"    [{box}] {item.id:<7} {_kind(item)}{item.title}")
    click.echo(f"\n{syllabus.rule}")
    click.echo("Next: kvlab course show 0.1, run 0.1 --quick, check 0.1, done 0.1.R1, page")


def _kind(item: Item) -> str:
    return "" if item.kind == "checkpoint" else f"{item.kind}: "


def _as_json(syllabus: Syllabus, has: Progress) -> dict[str, Any]:
    known = {item.id for item in syllabus.items}
    return {
        "title": syllabus.title,
        "rule": syllabus.rule,
        **counts(syllabus, has),
        "state": str(progress.state_path()),
        "of_other_versions": sorted(set(has.done) - known),
        "layers": [
            {
                "id": layer.id,
                "title": layer.title,
                **asdict(progress.standing(layer.items, has.done)),
                "modules": [
                    {
                        "id": module.id,
                        "title": module.title,
                        **asdict(progress.standing(module.items, has.done)),
                        "contents": [
                            {**asdict(item), "kind": item.kind, "done": has.done.get(item.id)}
                            for item in module.items
                        ],
                    }
                    for module in layer.modules
                ],
            }
            for layer in syllabus.layers
        ],
    }


course = LazyGroup(
    lazy=COMMANDS,
    name="course",
    help="The course: KV caching and context management, by building it. Alone it lists what there is.",
    invoke_without_command=True,
    callback=_list,
    params=[click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object.")],
)
