"""`kvlab demo`: the headline demo, on a real model."""

from __future__ import annotations

from pathlib import Path

import click

from kvlab.cli._common import json_option
from kvlab.errors import InvalidArgumentError

__all__ = ["demo"]

DTYPES = ("fp32", "bf16", "fp16")


def read_list(values: tuple[str, ...]) -> list[str]:
    """Splits what a repeatable option was given: `("512,1024", "2048")` has three parts."""
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def read_tokens(values: tuple[str, ...]) -> list[int] | None:
    """The prefix lengths asked for.

    Raises:
        InvalidArgumentError: one of them is not a whole number above zero.
    """
    lengths = []
    for text in read_list(values):
        if not text.isascii() or not text.isdigit() or int(text) == 0:
            message = f"--tokens {text}: give whole numbers above zero, such as 512,1024,2048"
            raise InvalidArgumentError(message)
        lengths.append(int(text))
    return lengths or None


def read_dtypes(values: tuple[str, ...]) -> list[str] | None:
    """The data types asked for.

    Raises:
        InvalidArgumentError: one of them is not known.
    """
    dtypes = read_list(values)
    for name in dtypes:
        if name not in DTYPES:
            message = f"--dtype {name}: give one or more of {', '.join(DTYPES)}"
            raise InvalidArgumentError(message)
    return dtypes or None


@click.command
@click.option("--model", default="smollm2-135m", show_default=True, help="Name, path or hub id.")
@click.option(
    "--tokens", multiple=True, help="Prefix lengths: repeat, or separate by commas.", metavar="N"
)
@click.option("--dtype", multiple=True, help=f"{', '.join(DTYPES)}: repeat, or separate by commas.")
@click.option("--repeats", type=click.IntRange(min=1), help="Measured repeats of each arm.")
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    help="The store's directory; a new one if absent.",
)
@click.option("--keep", is_flag=True, help="Leave the store's directory in place.")
@click.option("--quick", is_flag=True, help="One short length, few repeats: under a minute.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Directory for the JSON and the picture."
)
@json_option
def demo(
    *,
    model: str,
    tokens: tuple[str, ...],
    dtype: tuple[str, ...],
    repeats: int | None,
    cache_dir: Path | None,
    keep: bool,
    quick: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Restore a real model's prompt from NVMe in a new process, and compare with recomputing it."""
    lengths = read_tokens(tokens)
    dtypes = read_dtypes(dtype)
    # Imported after the arguments were read: it brings torch, which takes seconds.
    from kvlab.demo.run import run

    run(
        model=model,
        tokens=lengths,
        dtypes=dtypes,
        repeats=repeats,
        cache_dir=cache_dir,
        keep=keep,
        quick=quick,
        out=out,
        as_json=as_json,
    )
