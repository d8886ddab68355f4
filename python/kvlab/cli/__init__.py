"""The `kvlab` command.

Sub-commands are modules of this package, imported only when they are called, so that `kvlab size`
does not pay for what `kvlab demo` needs. A sub-command `name` is the click command `name` of the
module `kvlab.cli.name`, with `_` for `-` and behind a word of Python such as `import`; one of a group,
as `kvlab sim run`, is that of `kvlab.cli.sim_run`.
"""

from __future__ import annotations

import importlib
import keyword
import sys
from typing import TYPE_CHECKING, Any

import click

from kvlab.errors import KvlabError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["LazyGroup", "app", "main"]

COMMANDS: Mapping[str, str] = {
    "bench": "Run a workload in one mode or several: times, throughput, reuse.",
    "clear": "Delete what a store holds.",
    "codec-bench": "What int8 on disk saves, and what it does to a model's answers.",
    "compare": "Set reports of `kvlab bench` side by side.",
    "course": "Learn KV caching by building it: what to read, write, build and show.",
    "demo": "Restore a real model's prompt from NVMe in a new process, and compare.",
    "explain": "Why a prompt hits or misses a store.",
    "export": "Write a namespace of a store to one file.",
    "gc": "Drop what is expired or damaged in a store.",
    "import": "Take over what another store exported.",
    "inspect": "What is in a store.",
    "report": "A page with charts of reports of `kvlab bench`.",
    "serve": "Serve a model over HTTP as OpenAI does, with the cache in it.",
    "sim": "The policy lab: traces replayed under other policies and sizes.",
    "size": "How large a KV cache is, and where it outgrows the weights.",
    "verify": "Read everything in a store and check every byte.",
    "version": "What is installed.",
    "workload": "What agents and people send: generate, import, look at and replay it.",
}
"""Every sub-command with the line that `kvlab --help` shows for it."""


class LazyGroup(click.Group):
    """A group that imports a sub-command when it is called and lists it without importing it."""

    def __init__(
        self,
        *,
        lazy: Mapping[str, str],
        help: str,  # noqa: A002 (click's name)
        name: str | None = None,
        **more: Any,
    ) -> None:
        settings = {"help_option_names": ["-h", "--help"]}
        super().__init__(name=name, help=help, context_settings=settings, **more)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in alphabetical order."""
        del ctx
        return sorted(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the sub-command's module."""
        del ctx
        if cmd_name not in self.lazy:
            return None
        full = cmd_name if self.name is None else f"{self.name}_{cmd_name}"
        name = f"{full}_" if keyword.iskeyword(full) else full.replace("-", "_")
        module = importlib.import_module(f"kvlab.cli.{name}")
        command: click.Command = getattr(module, name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the sub-commands by the lines that were given for them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.lazy[name]) for name in self.list_commands(ctx)])


app = LazyGroup(
    lazy=COMMANDS,
    help="Keep the KV cache of prompts in memory and on NVMe; restore instead of recompute.",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits.

    The exit code is 0 when done, 1 after a `KvlabError` (one line on stderr), 2 for wrong usage.

    Args:
        arguments: What follows `kvlab`; by default what the process was given.
    """
    try:
        app.main(args=None if arguments is None else list(arguments), prog_name="kvlab")
    except KvlabError as error:
        print(f"kvlab: {error}", file=sys.stderr)
        sys.exit(1)
