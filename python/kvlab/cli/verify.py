"""`kvlab verify`: reads and checks everything that a store holds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvlab import verify_store
from kvlab._progress import ConsoleProgress
from kvlab.cli._common import json_option, print_json
from kvlab.cli._store import plain, size_text

if TYPE_CHECKING:
    from kvlab._types import Verification

__all__ = ["verify"]


def render(found: Verification) -> str:
    """The result as lines for a terminal."""
    verdict = "all as written" if found["sound"] else "DAMAGED"
    size = size_text(found["bytes"])
    lines = [f"{verdict}: {found['records']} runs of {found['blocks']} blocks, {size} checked"]
    lines += [
        f"damaged: {damage['file']} at byte {damage['offset']}, layer {damage['slice']}: "
        f"{damage['reason']} ({damage['blocks']} blocks, {damage['namespace'].hex()[:12]})"
        for damage in found["damaged"]
    ]
    lines += [f"not used: {file['file']}: {file['reason']}" for file in found["unreadable"]]
    index = found["index"]
    if index is None:
        lines.append(f"the index cannot be read: {found['index_error']}")
    elif index["damaged_rows"] or index["rows_without_record"]:
        lines.append(
            f"index: {index['damaged_rows']} damaged rows, "
            f"{index['rows_without_record']} rows without a record"
        )
    if not found["sound"]:
        lines.append("what is damaged is a miss when it is asked for; kvlab gc removes it")
    return "\n".join(lines)


@click.command
@click.argument("directory", type=click.Path(path_type=Path))
@json_option
def verify(*, directory: Path, as_json: bool) -> None:
    """Read everything in the store in DIRECTORY and check every byte; exit code 1 if any is wrong.

    Changes nothing; another process may have the store open.
    """
    with ConsoleProgress().stage("checking", total=None) as update:
        found = verify_store(directory, lambda done, _total: update(done))
    if as_json:
        print_json(plain(found))
    else:
        click.echo(render(found))
    if not found["sound"]:
        sys.exit(1)
