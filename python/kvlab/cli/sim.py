"""`kvlab sim`: the policy lab. Its sub-commands are the modules `kvlab.cli.sim_*`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvlab.cli import LazyGroup

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["COMMANDS", "sim"]

COMMANDS: Mapping[str, str] = {
    "ablate": "What each parameter of a page policy is worth.",
    "advise": "Which policy and which tier sizes a trace wants within a budget.",
    "calibrate": "Measure what reads and forwards cost here, for the estimates of the others.",
    "compare": "Two result files side by side; says which figures got worse.",
    "fleet": "Many machines that share one tier, on networks of several speeds.",
    "mrc": "Miss-ratio curves: hits at every size of the cache.",
    "plots": "Draw the plots and the report of a run anew.",
    "policies": "The policies, and where each can run.",
    "run": "Replay one trace under one policy at one size.",
    "sweep": "Replay under many policies, sizes, scenarios and seeds.",
    "trace": "Write a page workload as a trace.",
}
"""Every sub-command of `kvlab sim` with the line that its help shows for it."""

sim = LazyGroup(
    lazy=COMMANDS,
    name="sim",
    help="The policy lab: traces replayed under other policies and sizes. All of it is simulated.",
)
