"""`kvlab import`: takes over what another store exported."""

from __future__ import annotations

from pathlib import Path

import click

from kvlab import BlockStore
from kvlab._progress import ConsoleProgress
from kvlab.cli._common import json_option, print_json
from kvlab.cli._store import plain, roomy
from kvlab.errors import StoreIOError

__all__ = ["import_"]


@click.command("import")
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--capacity", help="What the store may take, e.g. 20GiB; by default nothing is evicted."
)
@json_option
def import_(*, directory: Path, file: Path, capacity: str | None, as_json: bool) -> None:
    """Store what FILE, an export, holds in the store in DIRECTORY, which is made if need be.

    The store must not be open elsewhere. What it has already stays as it is.
    """
    try:
        size = file.stat().st_size
    except OSError as error:
        raise StoreIOError(error.errno, f"{file}: {error.strerror}") from error
    room = roomy(directory, size) if capacity is None else capacity
    with (
        ConsoleProgress().stage("importing") as update,
        BlockStore.open(directory, l2=0, l3=room) as store,
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
