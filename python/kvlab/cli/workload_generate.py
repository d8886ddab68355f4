"""`kvlab workload generate`: a workload from a generator."""

from __future__ import annotations

from pathlib import Path

import click

from kvlab.cli._common import json_option, print_json
from kvlab.cli._sim import read_numbers, writing
from kvlab.errors import InvalidArgumentError

__all__ = ["workload_generate"]


@click.command("generate")
@click.argument("generator", required=False)
@click.option("--seed", type=click.IntRange(min=0), help="[default: the generator's]")
@click.option("--name", help="What the workload is called. [default: the generator's name]")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="KEY=NUMBER",
    help="Of the generator, such as requests=100; may be repeated.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="[default: NAME.jsonl]"
)
@click.option("--list", "only_list", is_flag=True, help="List the generators and their options.")
@json_option
def workload_generate(
    *,
    generator: str | None,
    seed: int | None,
    name: str | None,
    options: tuple[str, ...],
    out: Path | None,
    only_list: bool,
    as_json: bool,
) -> None:
    """Write a workload; the same generator, options and seed give the same bytes."""
    from kvlab.workload import dump
    from kvlab.workload.generators import GENERATORS, generate

    if only_list:
        _list(as_json=as_json)
        return
    if generator is None:
        raise InvalidArgumentError(
            f"no generator: give one of {', '.join(GENERATORS)}, or --list to see their options"
        )
    made = generate(generator, seed=seed, name=name, **read_numbers(options))
    path = out or Path(f"{made.header.name}.jsonl")
    with writing("--out", path):
        dump(made, path)
    sessions = len({request.session for request in made.requests})
    if as_json:
        print_json(
            {
                "path": str(path),
                "name": made.header.name,
                "generator": made.header.generator,
                "seed": made.header.seed,
                "options": dict(made.header.options),
                "requests": len(made.requests),
                "sessions": sessions,
                "bytes": path.stat().st_size,
            }
        )
    else:
        click.echo(f"{path}: {len(made.requests):,} requests of {sessions:,} sessions")


def _list(*, as_json: bool) -> None:
    from kvlab.workload.generators import GENERATORS

    if as_json:
        print_json(
            {
                name: {"about": each.about, "seed": each.seed, "options": dict(each.options)}
                for name, each in GENERATORS.items()
            }
        )
        return
    for name, each in GENERATORS.items():
        options = ", ".join(f"{key}={value}" for key, value in each.options.items())
        click.echo(f"{name} (seed {each.seed}): {each.about}\n    {options}")
