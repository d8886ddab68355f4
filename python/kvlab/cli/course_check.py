"""`kvlab course check`: run checkpoints."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvlab._progress import ConsoleProgress
from kvlab.cli._common import json_option, print_json
from kvlab.course import progress
from kvlab.course.syllabus import load
from kvlab.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from kvlab.course.checking import Outcome
    from kvlab.course.syllabus import Checkpoint

__all__ = ["course_check"]


@click.command("check")
@click.argument("what", metavar="[MODULE|CHECKPOINT]", required=False)
@click.option(
    "--mine",
    "file",
    type=click.Path(path_type=Path),
    help="Your Python file: its functions are checked in place of the references, and marked as done if they pass.",
)
@json_option
def course_check(*, what: str | None, file: Path | None, as_json: bool) -> None:
    """Run the checkpoints of a module, one of them, or all; the exit code is 1 if any did not pass.

    Without --mine they hold kvlab and the course's own references against PyTorch, brute force and each other: that is
    what you will be held against. `kvlab course show MODULE` says which functions --mine looks for.
    """
    from kvlab.course.checking import check, checkable, load_mine

    asked = load().checkpoints(what)
    chosen = [each for each in asked if checkable(each)]
    mine = None
    absent: list[str] = []
    if file is not None:
        mine = load_mine(file)
        chosen = _defined(asked, mine, file)
        absent = [each.id for each in asked if each.mine is not None and each not in chosen]
    elif not chosen:
        raise InvalidArgumentError(
            f"{what} is a question; kvlab course show {asked[0].id[:3]} --answers has its answer"
        )
    outcomes: list[Outcome] = []
    with ConsoleProgress().stage("checking", len(chosen), "pieces") as update:
        for each in chosen:
            outcomes.append(check(each, mine))
            update(len(outcomes))
    marked: list[str] = []
    if mine is not None and any(outcome.result == "passed" for outcome in outcomes):
        with progress.changing() as has:
            marked = has.mark(each.id for each in outcomes if each.result == "passed")
    results = Counter(outcome.result for outcome in outcomes)
    if as_json:
        print_json(
            {
                "checkpoints": [asdict(outcome) for outcome in outcomes],
                "passed": results["passed"],
                "failed": results["failed"],
                "not_run": results["not run"],
                "marked": marked,
                "absent": absent,
            }
        )
    else:
        _tell(outcomes, marked)
        if absent:
            click.echo(f"your file has no function for {', '.join(absent)}")
    if results["passed"] < len(outcomes):
        raise SystemExit(1)


def _defined(asked: Sequence[Checkpoint], mine: ModuleType, file: Path) -> list[Checkpoint]:
    """The checkpoints whose function the learner's file has.

    Raises:
        InvalidArgumentError: it has none of them.
    """
    found = [each for each in asked if callable(getattr(mine, each.mine_name or "", None))]
    if not found:
        wanted = dict.fromkeys(each.mine for each in asked if each.mine is not None)
        looked = (
            f"one of {', '.join(wanted)}"
            if wanted
            else "nothing: these checkpoints are not about code of yours"
        )
        raise InvalidArgumentError(f"--mine {file}: looked for {looked}")
    return found


def _tell(outcomes: Sequence[Outcome], marked: Sequence[str]) -> None:
    for outcome in outcomes:
        whose = f"{outcome.mine}: " if outcome.mine else ""
        click.echo(f"{outcome.id}  {outcome.result:<7} {outcome.seconds:7.2f} s  {outcome.task}")
        click.echo(f"       {whose}{outcome.said}")
    passed = sum(outcome.result == "passed" for outcome in outcomes)
    click.echo(f"{passed} of {len(outcomes)} passed")
    if marked:
        click.echo(f"now done: {', '.join(marked)}")
