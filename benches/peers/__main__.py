"""`make bench-peers`: runs the arms in turns, prints the tables, writes results.json, results.md and the pictures."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import click

import kvlab
from peers import machine, picture, schedule, summary, trees
from peers.arms import ARMS
from peers.cycle import Task
from peers.payload import Shape
from peers.ttft import table, turns


def size(_context: click.Context, _parameter: click.Parameter, value: str) -> int:
    """Reads a size as kvlab does."""
    try:
        return kvlab.parse_size(value)
    except kvlab.InvalidArgumentError as error:
        raise click.BadParameter(str(error)) from error


def numbers(_context: click.Context, _parameter: click.Parameter, value: str) -> list[int]:
    """Reads lengths in tokens, whole blocks of 16."""
    try:
        found = [int(each) for each in value.split(",") if each.strip()]
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not numbers separated by commas") from error
    if any(each < 16 or each % 16 for each in found):
        raise click.BadParameter(f"{value!r}: each must be a multiple of 16 above 0")
    return found


@click.command(help=__doc__)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option(
    "--bytes",
    "total",
    default="475MB",
    show_default=True,
    callback=size,
    help="Payload of a round; rounded up to whole prompts.",
)
@click.option("--tokens", default=2048, show_default=True, type=click.IntRange(256))
@click.option("--arms", default="", help="Names of arms, separated by commas; default: all.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    help="On the disk to measure; default: --output.",
)
@click.option("--output", type=click.Path(path_type=Path), default=Path("peers-out"))
@click.option("--leaves", default=10_000, show_default=True, type=click.IntRange(1))
@click.option(
    "--prefixes",
    default="512,2048",
    show_default=True,
    callback=numbers,
    help="Prefixes of the first-token bench, in tokens; empty leaves it out.",
)
@click.option("--first-token-rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="Print the JSON instead of the table.")
def main(
    *,
    rounds: int,
    total: int,
    tokens: int,
    arms: str,
    directory: Path | None,
    output: Path,
    leaves: int,
    prefixes: list[int],
    first_token_rounds: int,
    as_json: bool,
) -> None:
    """Runs the bench."""
    one = Shape(tokens=tokens)
    shape = Shape(tokens=tokens, prompts=-(-total // one.prompt_bytes))
    output.mkdir(parents=True, exist_ok=True)
    directory = directory or output
    outcomes = schedule.prepare(ARMS)
    wanted = {name.strip() for name in arms.split(",") if name.strip()}
    unknown = wanted - {outcome.about.name for outcome in outcomes}
    if unknown:
        known = ", ".join(outcome.about.name for outcome in outcomes)
        raise click.BadParameter(f"no arm is called {sorted(unknown)}; there are {known}")
    if wanted:
        outcomes = [outcome for outcome in outcomes if outcome.about.name in wanted]
    start = perf_counter()

    def told(what: str) -> None:
        click.echo(f"[{perf_counter() - start:5.0f} s] {what}", err=True)

    task = Task(arm="", shape=shape, directory=str(directory.resolve()))
    schedule.run(outcomes, task, rounds, told)
    rows = summary.summarise(outcomes, shape)
    told("the trees")
    found = trees.run(rounds, groups=20, leaves=leaves, evictions=50)
    firsts = (
        turns.run(turns.ENGINES, prefixes, first_token_rounds, directory, told) if prefixes else []
    )
    result: dict[str, Any] = {
        "machine": machine.describe(directory),
        "settings": {
            "rounds": rounds,
            "prompts": shape.prompts,
            "tokens": shape.tokens,
            "prompt_bytes": shape.prompt_bytes,
            "leaves": leaves,
            "prefixes": prefixes,
            "first_token_rounds": first_token_rounds,
            "seconds": round(perf_counter() - start),
        },
        "store": summary.as_dict(rows),
        "trees": [asdict(each) for each in found],
        "first_token": table.as_dict(firsts),
    }
    text = json.dumps(result, indent=2)
    (output / "results.json").write_text(text + "\n")
    tables = [summary.markdown(rows), summary.markdown_trees(found, leaves)]
    if firsts:
        tables.append(table.markdown(firsts))
        table.draw(firsts, output / "first-token.svg")
    tables.append(summary.remarks(result["machine"], result["settings"]))
    shown = "\n".join(tables)
    (output / "results.md").write_text(shown)
    picture.draw(rows, output / "results.svg")
    click.echo(text if as_json else shown)


if __name__ == "__main__":
    main()
