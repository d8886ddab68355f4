"""What the sub-commands share."""

from __future__ import annotations

import json
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
"""`--json`, which every command has."""


def print_json(value: dict[str, Any]) -> None:
    """Prints one JSON object on stdout."""
    click.echo(json.dumps(value, indent=2))
