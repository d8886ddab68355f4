"""`kvlab workload validate`: whether a file is a workload."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kvlab.cli._common import json_option, print_json
from kvlab.cli._workload import file_argument, load_workload

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["workload_validate"]


@click.command("validate")
@file_argument
@json_option
def workload_validate(*, file: Path, as_json: bool) -> None:
    """Check a workload; an error names file, line and field, and the exit code is 1."""
    workload = load_workload(file)
    if as_json:
        print_json({"path": str(file), "valid": True, "requests": len(workload.requests)})
    else:
        click.echo(f"{file}: {len(workload.requests):,} requests, all valid")
