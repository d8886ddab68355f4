"""`kvlab inspect`: what is in a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvlab import inspect_store
from kvlab.cli._common import json_option, print_json
from kvlab.cli._store import age_text, plain, since, size_text, table

if TYPE_CHECKING:
    from kvlab._types import Inspection

__all__ = ["inspect"]


def render(found: Inspection, *, with_segments: bool) -> str:
    """The store as lines for a terminal."""
    disk = sum(segment["disk_bytes"] for segment in found["segments"])
    runs = sum(namespace["runs"] for namespace in found["namespaces"])
    blocks = sum(namespace["blocks"] for namespace in found["namespaces"])
    held = f"open: process {found['holder']}" if found["holder"] else "not open"
    sizes = f"{size_text(disk)} on disk, index {size_text(found['index_bytes'])}"
    lines = [
        f"store {found['store']}, format {found['format']}, {held}",
        f"{runs} runs of {blocks} blocks in {len(found['segments'])} segments: {sizes}",
        index_line(found),
        "",
        namespace_table(found),
    ]
    if with_segments:
        lines += ["", segment_table(found)]
    lines += [f"not used: {file['file']}: {file['reason']}" for file in found["unreadable"]]
    lines += [f"set aside, may be deleted: {path}" for path in found["moved_indexes"]]
    return "\n".join(lines)


def index_line(found: Inspection) -> str:
    """What the index says of the records."""
    index = found["index"]
    if index is None:
        return f"the index cannot be read ({found['index_error']}); the next open builds a new one"
    state = "closed cleanly" if index["clean"] else "open, or not closed cleanly"
    line = f"index: {index['rows']} runs, {state}"
    for name, text in (
        ("records_without_row", "records not in it yet"),
        ("rows_without_record", "rows without a record"),
        ("damaged_rows", "damaged rows"),
    ):
        count = index[name]  # type: ignore[literal-required]  # the names are those of the type
        line += f", {count} {text}" if count else ""
    return line


def namespace_table(found: Inspection) -> str:
    """One line a namespace."""
    rows = [
        [
            namespace["namespace"].hex()[:12],
            str(namespace["runs"]),
            str(namespace["blocks"]),
            str(namespace["blocks"] * namespace["block_tokens"]),
            size_text(namespace["payload_bytes"]),
            size_text(namespace["stored_bytes"]),
            str(namespace["hits"]),
            since(namespace["newest"]),
            since(namespace["oldest"]),
            age_text(namespace["ttl_seconds"]) if namespace["ttl_seconds"] else "-",
            namespace["codec"],
        ]
        for namespace in found["namespaces"]
    ]
    head = [
        "namespace",
        "runs",
        "blocks",
        "tokens",
        "payload",
        "on disk",
        "hits",
        "newest",
        "oldest",
        "ttl",
        "codec",
    ]
    return table(head, rows)


def segment_table(found: Inspection) -> str:
    """One line a segment."""
    rows = [
        [
            Path(segment["file"]).name,
            "sealed" if segment["sealed"] else "open",
            str(segment["records"]),
            size_text(segment["record_bytes"]),
            size_text(segment["disk_bytes"]),
            size_text(segment["bytes"]),
        ]
        for segment in found["segments"]
    ]
    return table(["segment", "state", "records", "live", "on disk", "length"], rows)


@click.command
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--segments", is_flag=True, help="List the segment files, too.")
@json_option
def inspect(*, directory: Path, segments: bool, as_json: bool) -> None:
    """What is in the store in DIRECTORY: namespaces, blocks, bytes, hits, ages, segments.

    Reads headers only and changes nothing; another process may have the store open, and it may be
    damaged. Hits are counted a run since it was stored, and saved now and then.
    """
    found = inspect_store(directory)
    if as_json:
        print_json(plain(found))
    else:
        click.echo(render(found, with_segments=segments))
