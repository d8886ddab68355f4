"""`kvlab clear`: deletes what a store holds."""

from __future__ import annotations

from pathlib import Path

import click

from kvlab import BlockStore, inspect_store
from kvlab.cli._common import json_option, print_json
from kvlab.cli._store import confirm, find_namespace, roomy

__all__ = ["clear"]


@click.command
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--namespace", help="Only this one: the first of its hexadecimal digits.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def clear(*, directory: Path, namespace: str | None, yes: bool, as_json: bool) -> None:
    """Delete everything in the store in DIRECTORY, or one namespace. It does not come back.

    The store must not be open elsewhere.
    """
    found = inspect_store(directory)
    name = None if namespace is None else find_namespace(found, namespace)
    what = "everything" if name is None else f"namespace {name.hex()[:12]}"
    confirm(f"Delete {what} in {directory}?", yes=yes, as_json=as_json, directory=directory)
    with BlockStore.open(directory, l2=0, l3=roomy(directory), free_reserve=0) as store:
        runs = store.clear(name)
    if as_json:
        print_json({"namespace": None if name is None else name.hex(), "runs": runs})
    else:
        click.echo(f"{runs} runs deleted")
