"""`kvlab export`: writes a namespace of a store to one file."""

from __future__ import annotations

from pathlib import Path

import click

from kvlab import export_namespace, inspect_store
from kvlab._progress import ConsoleProgress
from kvlab.cli._common import json_option, print_json
from kvlab.cli._store import find_namespace, size_text

__all__ = ["export"]


@click.command
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--namespace",
    default="",
    help="The first of its hexadecimal digits; not needed if there is but one.",
)
@json_option
def export(*, directory: Path, file: Path, namespace: str, as_json: bool) -> None:
    """Write a namespace of the store in DIRECTORY to FILE, to be imported elsewhere.

    A namespace stands for a model, its settings and a salt: another machine finds the prompts if
    all of these are the same there. KV bytes can tell a prompt: FILE is made for its owner alone.
    """
    name = find_namespace(inspect_store(directory), namespace)
    with ConsoleProgress().stage("exporting") as update:
        done = export_namespace(
            directory, name, file, lambda bytes_done, _total: update(bytes_done)
        )
    if as_json:
        print_json({"namespace": name.hex(), **done})
        return
    click.echo(f"{done['runs']} runs of {done['blocks']} blocks, {size_text(done['bytes'])}")
    if done["damaged"] or done["unreachable"]:
        click.echo(
            f"left out: {done['damaged']} damaged runs, and {done['unreachable']} that cannot be "
            "reached without what is missing"
        )
