"""`kvlab version`: what is installed."""

from __future__ import annotations

import platform

import click

from kvlab import build_info
from kvlab.cli._common import json_option, print_json

__all__ = ["version"]


@click.command
@json_option
def version(*, as_json: bool) -> None:
    """What is installed: kvlab, how its core was built, and the Python it runs on."""
    info = {**build_info(), "python": platform.python_version()}
    if as_json:
        print_json(info)
    else:
        click.echo(
            f"kvlab {info['version']} ({info['profile']} build, {info['os']} {info['arch']}), "
            f"Python {info['python']}"
        )
