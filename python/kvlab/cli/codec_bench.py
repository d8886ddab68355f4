"""`kvlab codec-bench`: what a codec of L3 saves, and what it does to a model."""

from __future__ import annotations

import json
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import click

from kvlab.cli._common import json_option, print_json
from kvlab.cli.demo import DTYPES, read_dtypes
from kvlab.errors import InvalidArgumentError

__all__ = ["codec_bench"]

_TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_BLOCK = 16


@click.command("codec-bench")
@click.option("--model", default="smollm2-135m", show_default=True, help="Name, path or hub id.")
@click.option(
    "--text",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="UTF-8 text to score; by default the demo's agent prompt.",
)
@click.option("--prefix", type=click.IntRange(min=_BLOCK), default=1024, show_default=True)
@click.option("--score", type=click.IntRange(min=3), default=256, show_default=True)
@click.option("--windows", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--dtype", multiple=True, help=f"{', '.join(DTYPES)}; fp32 and bf16 by default.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Directory for codec-bench.json and the picture."
)
@json_option
def codec_bench(
    *,
    model: str,
    text: Path | None,
    prefix: int,
    score: int,
    windows: int,
    dtype: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Score text behind a prefix that came back from disk through each codec, against the exact prefix."""
    if prefix % _BLOCK:
        message = f"--prefix {prefix}: give a multiple of {_BLOCK}, so that all of it is stored"
        raise InvalidArgumentError(message)
    dtypes = read_dtypes(dtype) or ["fp32", "bf16"]
    source = text or resources.files("kvlab.demo") / "prompts" / "agent_prefix.md"
    try:
        content = source.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        message = f"--text {text}: not UTF-8 ({error.reason} at byte {error.start})"
        raise InvalidArgumentError(message) from error
    # Imported after the arguments were read: it brings torch, which takes seconds.
    from rich import progress
    from rich.console import Console

    from kvlab.codec_bench import show
    from kvlab.codec_bench.measure import Plan, measure

    console = Console(stderr=as_json)
    rows: list[dict[str, Any]] = []
    with progress.Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("windows", total=windows * len(dtypes))
        for name in dtypes:
            with tempfile.TemporaryDirectory(prefix="kvlab-codec-", dir=out and _made(out)) as root:
                plan = Plan(
                    model, _TORCH_NAMES[name], content, prefix, score, windows, Path(root) / "store"
                )
                rows += measure(plan, lambda: bar.advance(task))
    result = {"model": model, "prefix": prefix, "score": score, "windows": windows, "rows": rows}
    console.print(show.table(rows))
    if out is not None:
        (out / "codec-bench.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
        if not show.picture(rows, out / "codec-bench.svg"):
            console.print("no picture: matplotlib is missing; pip install 'kvlab[plot]'")
    if as_json:
        print_json(result)


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path
