"""What the sub-commands of `kvlab workload` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvlab.errors import InvalidArgumentError

if TYPE_CHECKING:
    from kvlab.workload import ChatTokenizer, Workload

__all__ = ["file_argument", "load_tokenizer", "load_workload", "tokenizer_option"]

file_argument = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
tokenizer_option = click.option(
    "--tokenizer",
    "tokenizer_name",
    default="chars",
    show_default=True,
    help="What tokens are counted in: chars (4 characters are one), or a model such as smollm2-135m.",
)


def load_workload(path: Path) -> Workload:
    """Reads a workload.

    Raises:
        TraceFormatError: it is none.
        InvalidArgumentError: the file cannot be read.
    """
    from kvlab.workload import load

    try:
        return load(path)
    except OSError as error:
        raise InvalidArgumentError(f"{path}: {error.strerror or error}") from error


def load_tokenizer(name: str) -> ChatTokenizer:
    """A tokenizer by its name.

    Raises:
        ModelUnavailableError: the model is not here.
    """
    from kvlab.workload import tokenizer

    return tokenizer(name)
