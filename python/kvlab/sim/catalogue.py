"""What can be named: policies, and where each can run."""

from __future__ import annotations

from dataclasses import dataclass

from kvlab import _core
from kvlab.sim.experiments.requests import BAD_EXAMPLES, FORESEEING

__all__ = ["Policy", "live_policies", "policies", "request_policies"]


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy by its name.

    Attributes:
        name: What options call it.
        modes: Those of the simulator that it runs in.
        live: Whether the tiers can use it.
        note: What else is to be known.
    """

    name: str
    modes: tuple[str, ...]
    live: bool
    note: str = ""


def request_policies(mode: str) -> list[str]:
    """The names that prefix or flat mode knows.

    Raises:
        ConfigError: the mode is unknown.
    """
    return _core.sim_policies(mode)


def live_policies() -> list[str]:
    """The names of the policies that the tiers can use."""
    return _core.sim_live_policies()


def policies() -> list[Policy]:
    """Every policy once."""
    modes: dict[str, list[str]] = {}
    for mode in ("prefix", "flat"):
        for name in request_policies(mode):
            modes.setdefault(name, []).append(mode)
    notes = dict(_NOTES)
    for name, about, params, per_tier in _core.sim_page_policies():
        modes.setdefault(name, []).append("page")
        if not per_tier:
            notes.setdefault(name, f"{about} ({', '.join(params)})" if params else about)
    live = live_policies()
    return [
        Policy(name, tuple(runs), name in live, notes.get(name, "")) for name, runs in modes.items()
    ]


_NOTES = {
    **dict.fromkeys(BAD_EXAMPLES, "a bad example: a prompt ages from its root"),
    **dict.fromkeys(FORESEEING, "an oracle: knows the future"),
}
