"""`kvlab gc`: gives back what a store need not keep."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from kvlab import BlockStore, inspect_store
from kvlab._progress import ConsoleProgress
from kvlab.cli._common import json_option, print_json
from kvlab.cli._store import disk_bytes, roomy, size_text

__all__ = ["gc"]


@click.command
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--capacity", help="Evict down to this size, e.g. 20GiB; by default nothing is evicted."
)
@click.option("--no-check", is_flag=True, help="Do not read everything to find what is damaged.")
@json_option
def gc(*, directory: Path, capacity: str | None, no_check: bool, as_json: bool) -> None:
    """Drop what is expired or damaged in the store in DIRECTORY, and repair its index.

    The store must not be open elsewhere. What can be read stays what it was.
    """
    moved = inspect_store(directory)["moved_indexes"]
    before = disk_bytes(directory)
    room = roomy(directory) if capacity is None else capacity
    with BlockStore.open(directory, l2=0, l3=room, free_reserve=0) as store:
        damaged = 0
        if not no_check:
            with ConsoleProgress().stage("checking") as update:
                damaged = store.scrub(lambda done, _total: update(done))["dropped"]
        stats = store.stats()["l3"]
        recovery = store.recovery()
    for path in moved:
        shutil.rmtree(path)
    after = disk_bytes(directory)
    result = {
        "disk_bytes_before": before,
        "disk_bytes_after": after,
        "runs": stats["runs"],
        "damaged_runs": damaged,
        "evicted_runs": stats["evictions"],
        "moved_indexes": len(moved),
        "recovery": recovery,
    }
    if as_json:
        print_json(result)
        return
    click.echo(
        f"{size_text(before)} before, {size_text(after)} after; {stats['runs']} runs stay; "
        f"{damaged} damaged and {stats['evictions']} others went"
    )
