"""`kvlab workload`: what is sent to a model. Its sub-commands are the modules `kvlab.cli.workload_*`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvlab.cli import LazyGroup

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["COMMANDS", "workload"]

COMMANDS: Mapping[str, str] = {
    "generate": "Write a workload from a generator and a seed.",
    "import": "Make a workload of recorded conversations or of a request log.",
    "show": "What is in a workload, and what an ideal cache reuses of it.",
    "trace": "Write a workload as a trace, for `kvlab sim` and other simulators.",
    "validate": "Check a workload; an error names file, line and field.",
}
"""Every sub-command of `kvlab workload` with the line that its help shows for it."""

workload = LazyGroup(
    lazy=COMMANDS,
    name="workload",
    help="Workloads: requests as agents and people send them, in a file of JSON lines.",
)
