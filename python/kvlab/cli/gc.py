"""`kvlab gc`: gives back what a store need not keep."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from kvlab import BlockStore, inspect_store
from kvlab._progress import ConsoleProgress
from kvlab.cli._common import json_option, print_json
from kvlab.cli._store import size_text

__all__ = ["gc"]


def disk_bytes(directory: Path) -> int:
    """What the files of a directory take on disk, holes left out."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return sum(path.stat().st_blocks * 512 for path in files)


@click.command
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--capacity", default="20GiB", show_default=True, help="Evict down to this size.")
@click.option("--no-check", is_flag=True, help="Do not read everything to find what is damaged.")
@json_option
def gc(*, directory: Path, capacity: str, no_check: bool, as_json: bool) -> None:
    """Drop what is expired, damaged or too much in the store in DIRECTORY, and repair its index.

    The store must not be open elsewhere. What can be read stays what it was.
    """
    moved = inspect_store(directory)["moved_indexes"]
    before = disk_bytes(directory)
    with BlockStore.open(directory, l2=0, l3=capacity, free_reserve=0) as store:
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
