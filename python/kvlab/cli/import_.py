"""`kvlab import`: takes over what another store exported."""

from __future__ import annotations

from pathlib import Path

import click

from kvlab import BlockStore
from kvlab._progress import ConsoleProgress
from kvlab.cli._common import json_option, print_json
from kvlab.cli._store import plain

__all__ = ["import_"]


@click.command("import")
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--capacity", default="20GiB", show_default=True, help="What the store may take.")
@json_option
def import_(*, directory: Path, file: Path, capacity: str, as_json: bool) -> None:
    """Store what FILE, an export, holds in the store in DIRECTORY, which is made if need be.

    The store must not be open elsewhere. What it has already stays as it is.
    """
    with (
        ConsoleProgress().stage("importing") as update,
        BlockStore.open(directory, l2=0, l3=capacity) as store,
    ):
        done = store.import_namespace(file, lambda bytes_done, _total: update(bytes_done))
    if as_json:
        print_json(plain(done))
        return
    click.echo(
        f"namespace {done['namespace'].hex()[:12]}: {done['runs']} runs stored, "
        f"{done['present']} were there, {done['expired']} expired, {done['refused']} refused, "
        f"{done['damaged']} damaged" + ("" if done["complete"] else "; the file was cut")
    )
