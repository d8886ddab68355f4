"""`kvlab workload trace`: a workload for simulators."""

from __future__ import annotations

from pathlib import Path

import click

from kvlab.cli._common import json_option, print_json
from kvlab.cli._sim import counting, writing
from kvlab.cli._workload import file_argument, load_tokenizer, load_workload, tokenizer_option

__all__ = ["workload_trace"]


@click.command("trace")
@file_argument
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
@tokenizer_option
@click.option("--block-tokens", type=click.IntRange(min=1), default=16, show_default=True)
@click.option(
    "--token-ms",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="What a token of an answer takes: when the next request of a session starts.",
)
@json_option
def workload_trace(
    *,
    file: Path,
    out: Path,
    tokenizer_name: str,
    block_tokens: int,
    token_ms: float,
    as_json: bool,
) -> None:
    """Write a workload as a trace in Mooncake's layout; `kvlab sim run --format mooncake` replays it."""
    from kvlab.workload.trace import write_trace

    workload = load_workload(file)
    tokenizer = load_tokenizer(tokenizer_name)
    with (
        writing("--out", out),
        counting(f"writing {out.name}", len(workload.requests)) as update,
    ):
        blocks = write_trace(
            workload, out, tokenizer, block_tokens=block_tokens, token_ms=token_ms, progress=update
        )
    replay = f"kvlab sim run --trace {out} --format mooncake --option block_tokens={block_tokens}"
    if as_json:
        print_json(
            {
                "path": str(out),
                "requests": len(workload.requests),
                "unique_blocks": blocks,
                "block_tokens": block_tokens,
                "tokenizer": tokenizer.name,
                "replay": replay,
            }
        )
    else:
        click.echo(f"{out}: {len(workload.requests):,} requests over {blocks:,} blocks; replay it:")
        click.echo(f"  {replay}")
