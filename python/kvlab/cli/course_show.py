"""`kvlab course show`: a module in full."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from kvlab.cli._common import json_option, print_json
from kvlab.course import progress
from kvlab.course.syllabus import Build, Checkpoint, Essay, Reading, load

if TYPE_CHECKING:
    from kvlab.course.syllabus import Item

__all__ = ["course_show"]


@click.command("show")
@click.argument("module")
@click.option("--answers", is_flag=True, help="Open the folds: answers, and what a good essay has.")
@json_option
def course_show(*, module: str, answers: bool, as_json: bool) -> None:
    """A module in full: objectives, readings, essay, builds and checkpoints."""
    found = load().module(module)
    done = progress.read().done
    if as_json:
        contents = [
            {**asdict(each), "kind": each.kind, "done": done.get(each.id)} for each in found.items
        ]
        head = {"id": found.id, "title": found.title, "summary": found.summary}
        print_json({**head, "objectives": found.objectives, "contents": contents})
        return
    has = progress.standing(found.items, done)
    click.echo(f"{found.id} {found.title}  {has.bar(12)} {has.done} of {has.items}\n")
    click.echo(textwrap.fill(found.summary, 100))
    click.echo("\nYou can afterwards:")
    for each in found.objectives:
        click.echo(textwrap.fill(each, 100, initial_indent="  - ", subsequent_indent="    "))
    for item in found.items:
        click.echo(f"\n[{'x' if item.id in done else ' '}] {item.id}  {item.title}")
        for line in _lines(item, answers=answers):
            click.echo(textwrap.fill(line, 100, initial_indent="    ", subsequent_indent="    ",
                                     break_long_words=False, break_on_hyphens=False))  # fmt: skip


def _lines(item: Item, *, answers: bool) -> list[str]:
    folded = ["(behind the fold: --answers)"]
    match item:
        case Reading():
            moved = [f"Moved: {item.moved}."] if item.moved else []
            return [f"{item.where}: {item.part}.", *moved, str(item.url or item.file)]
        case Essay():
            reference = [f"The reference essay: {item.reference}"] if item.reference else []
            return [
                item.task,
                *([f"- {each}" for each in item.points] + reference if answers else folded),
            ]
        case Build():
            brick = [f"Brick: {item.brick}: {', '.join(item.code)}"] if item.brick else []
            toy = [f"To compare with: toys/{item.toy}.py"] if item.toy else []
            other = [each for each in (item.notebook, item.command) if each]
            reference = [] if item.reference is None else [item.reference] if answers else folded
            return [item.task, *brick, *toy, *other, *reference]
        case Checkpoint():
            if item.answer:
                return [item.answer] if answers else folded
            mine = [f"--mine: {item.mine}; {item.interface}."] if item.mine else []
            return [f"kvlab course check {item.id}", *mine]
        case _:
            raise TypeError(type(item).__name__)
