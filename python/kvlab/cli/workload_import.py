"""`kvlab workload import`: recorded conversations as a workload."""

from __future__ import annotations

from pathlib import Path

import click

from kvlab.cli._common import json_option, print_json
from kvlab.cli._sim import counting, writing
from kvlab.cli._workload import load_tokenizer, tokenizer_option
from kvlab.errors import InvalidArgumentError

__all__ = ["workload_import"]


@click.command("import")
@click.argument("format_", metavar="FORMAT")
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
@tokenizer_option
@click.option(
    "--context-tokens",
    type=click.IntRange(min=1),
    default=8_192,
    show_default=True,
    help="Conversations are cut before a prompt with its answer passes it.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="The longest answer, where none was recorded.",
)
@click.option(
    "--gap-ms",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="The time between an answer and the next call of its conversation.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Rows to read at most.")
@click.option("--name", help="What the workload is called. [default: as the file]")
@json_option
def workload_import(
    *,
    format_: str,
    path: Path,
    out: Path,
    tokenizer_name: str,
    context_tokens: int,
    max_tokens: int,
    gap_ms: float,
    limit: int | None,
    name: str | None,
    as_json: bool,
) -> None:
    """Make a workload of a file that has conversations or requests.

    FORMAT is transcripts (whole conversations in `messages`), sharegpt (`conversations` of `from` and
    `value`) or requests (one call a row, as sent to a server).
    """
    from kvlab.workload import dump
    from kvlab.workload.importers import read

    tokenizer = load_tokenizer(tokenizer_name)
    with counting(f"reading {path.name}") as update:
        try:
            workload = read(
                path,
                format_,
                tokenizer=tokenizer,
                context_tokens=context_tokens,
                max_tokens=max_tokens,
                gap_ms=gap_ms,
                limit=limit,
                name=name,
                progress=update,
            )
        except OSError as error:
            raise InvalidArgumentError(f"{path}: {error.strerror or error}") from error
    with writing("--out", out):
        dump(workload, out)
    sessions = len({request.session for request in workload.requests})
    if as_json:
        print_json(
            {
                "path": str(out),
                "name": workload.header.name,
                "requests": len(workload.requests),
                "sessions": sessions,
                "notes": list(workload.header.notes),
            }
        )
        return
    click.echo(f"{out}: {len(workload.requests):,} requests of {sessions:,} sessions")
    for note in workload.header.notes:
        click.echo(f"  note: {note}")
