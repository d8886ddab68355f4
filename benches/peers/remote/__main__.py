"""`make bench-peers-remote`: one prefix to the layers, each arm in its way; writes remote.json, .md and .svg."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

# Before torch is loaded: threads of GNU OpenMP that spin take the processors from the server.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import click

from peers import machine, schedule
from peers.remote import picture, prefix, services, summary
from peers.remote.arm import ASKED
from peers.remote.arms import ARMS
from peers.remote.turn import RemoteTask

PAYLOADS = {"model": prefix.compute, "random": prefix.make_up}


@click.command(help=__doc__)
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1))
@click.option("--reads", default=3, show_default=True, type=click.IntRange(1), help="In a turn.")
@click.option(
    "--tokens",
    default=2048,
    show_default=True,
    type=click.IntRange(ASKED * prefix.BLOCK_TOKENS),
    help="Of the prefix; a multiple of 256.",
)
@click.option("--layers", default=30, show_default=True, type=click.IntRange(1))
@click.option(
    "--payload",
    default="model",
    show_default=True,
    type=click.Choice(sorted(PAYLOADS)),
    help="What SmolLM2-135M computes for a text, or normal numbers.",
)
@click.option("--arms", default="", help="Names of arms, separated by commas; default: all.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    help="The shared folder's file system; default: --output.",
)
@click.option("--output", type=click.Path(path_type=Path), default=Path("peers-out"))
@click.option("--json", "as_json", is_flag=True, help="Print the JSON instead of the table.")
def main(
    *,
    rounds: int,
    reads: int,
    tokens: int,
    layers: int,
    payload: str,
    arms: str,
    directory: Path | None,
    output: Path,
    as_json: bool,
) -> None:
    """Runs the bench."""
    if tokens % 256:
        raise click.BadParameter(f"--tokens {tokens}: give a multiple of 256, LMCache's chunk")
    if payload == "model" and layers != 30:
        raise click.BadParameter(f"--layers {layers}: the model has 30; give --payload random")
    shape = prefix.shape_of(tokens, layers)
    output.mkdir(parents=True, exist_ok=True)
    directory = directory or output
    outcomes = schedule.prepare(ARMS)
    wanted = {name.strip() for name in arms.split(",") if name.strip()}
    unknown = wanted - {outcome.about.name for outcome in outcomes}
    if unknown:
        known = ", ".join(outcome.about.name for outcome in outcomes)
        raise click.BadParameter(f"no arm is called {sorted(unknown)}; there are {known}")
    if wanted:
        outcomes = [outcome for outcome in outcomes if outcome.about.name in wanted]
    start = perf_counter()

    def told(what: str) -> None:
        click.echo(f"[{perf_counter() - start:5.0f} s] {what}", err=True)

    mooncake = any(each.about.name == "mooncake" and not each.not_run for each in outcomes)
    with tempfile.TemporaryDirectory(prefix="kvlab-peers-", dir=directory) as name:
        place = Path(name).resolve()
        told("the prefix")
        PAYLOADS[payload](place / "prefix", shape)
        with services.running(place, mooncake=mooncake) as running:
            task = RemoteTask(
                arm="",
                shape=shape,
                directory=str(place),
                services=running,
                prefix=str(place / "prefix"),
                reads=reads,
            )
            schedule.run(outcomes, task, rounds, told)
    rows = summary.summarise(outcomes, shape)
    result: dict[str, Any] = {
        "machine": machine.describe(directory),
        "settings": {
            "rounds": rounds,
            "reads": reads,
            "tokens": tokens,
            "layers": layers,
            "payload": "the model's" if payload == "model" else "normal numbers",
            "prompt_bytes": shape.prompt_bytes,
            "server": running.server,
            "seconds": round(perf_counter() - start),
        },
        "rows": summary.as_dict(rows),
    }
    text = json.dumps(result, indent=2)
    (output / "remote.json").write_text(text + "\n")
    shown = summary.markdown(rows) + "\n" + summary.remarks(result["machine"], result["settings"])
    (output / "remote.md").write_text(shown)
    picture.draw(rows, output / "remote.svg")
    click.echo(text if as_json else shown)


if __name__ == "__main__":
    main()
