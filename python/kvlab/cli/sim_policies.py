"""`kvlab sim policies`: the policies, and where each can run."""

from __future__ import annotations

from dataclasses import asdict

import click

from kvlab.cli._common import json_option, print_json

__all__ = ["sim_policies"]


@click.command("policies")
@json_option
def sim_policies(*, as_json: bool) -> None:
    """The policies: in which modes each runs, and whether the tiers can use it."""
    from kvlab.sim.catalogue import policies

    found = policies()
    if as_json:
        print_json({"policies": [asdict(policy) for policy in found]})
        return
    width = max(len(policy.name) for policy in found)
    for policy in found:
        where = ", ".join(policy.modes)
        live = "live" if policy.live else "simulator only"
        click.echo(f"  {policy.name:<{width}}  {live:<14}  {where:<18}  {policy.note}".rstrip())
