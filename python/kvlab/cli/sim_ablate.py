"""`kvlab sim ablate`: what each parameter of a page policy is worth."""

from __future__ import annotations

import math
import time
from pathlib import Path

import click

from kvlab.cli._common import json_option
from kvlab.cli._sim import counting, finish, items, known, numbers, out_option, workers_option
from kvlab.errors import ConfigError, InvalidArgumentError

__all__ = ["sim_ablate"]


@click.command("ablate")
@click.option("--policy", default="regret_aware", show_default=True, help="Of page mode.")
@click.option(
    "--grid",
    multiple=True,
    metavar="NAME=V,V,...",
    default=("weight=0,1,6,12", "horizon=8,24,64"),
    show_default=True,
    help="Values of a parameter; repeated for more of them.",
)
@click.option(
    "--scenarios", multiple=True, default=("medium,tight",), show_default=True, help="Names."
)
@click.option(
    "--workloads",
    multiple=True,
    default=(
        "chat_continuation:num_pages=80:length=512",
        "periodic_reuse:num_pages=96:length=640:period=11",
        "adversarial_burst:num_pages=112:length=640:burst_size=14",
    ),
    show_default=True,
    help="Names, with parameters behind colons.",
)
@click.option("--seeds", multiple=True, default=("7,42,91",), show_default=True)
@click.option("--baselines", multiple=True, default=("lru,cost_aware",), show_default=True)
@click.option("--engine", default="exact", show_default=True, help="exact or compat.")
@workers_option
@out_option
@json_option
def sim_ablate(
    *,
    policy: str,
    grid: tuple[str, ...],
    scenarios: tuple[str, ...],
    workloads: tuple[str, ...],
    seeds: tuple[str, ...],
    baselines: tuple[str, ...],
    engine: str,
    workers: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Every combination of some parameters of a page policy, beside other policies. Simulated.

    As it stands: weight and horizon of regret_aware, with a weight of 0, which leaves its frequency score alone.
    """
    start = time.perf_counter()
    if engine not in {"exact", "compat"}:
        raise ConfigError(f"--engine {engine}: use one of: exact, compat")
    values = read_grid(grid)
    draws = numbers("--seeds", seeds)
    from kvlab.sim.experiments import pages
    from kvlab.sim.experiments.artifacts import Artifacts
    from kvlab.sim.experiments.studies import ablation_figures, ablation_findings
    from kvlab.sim.scenarios import page_policies, scenario

    scenes = [
        scenario(name).with_engine("compat" if engine == "compat" else "exact")
        for name in items(scenarios)
    ]
    others = known("--baselines", items(baselines), list(page_policies()))
    specs = [pages.read_workload(text) for text in items(workloads)]
    arms = len(others) + math.prod(len(each) for each in values.values())
    total = arms * len(scenes) * len(specs) * max(1, len(draws))
    with counting(f"replaying {policy}", total) as update:
        rows = pages.ablate(
            policy,
            values,
            scenarios=scenes,
            workloads=specs,
            seeds=draws or [None],
            baselines=others,
            workers=workers,
            progress=update,
        )
    for row in rows:
        row["cell"] = f"{row['scenario']}, {row['workload']}"
    names = list(values)
    done = Artifacts(
        title=f"{policy}: {' and '.join(names)}",
        config={
            "command": "ablate", "policy": policy, "grid": values, "engine": engine,
            "scenarios": [scene.name for scene in scenes], "workloads": items(workloads), "seeds": draws,
            "baselines": others,
        },
        rows=rows,
        figures=ablation_figures(rows, names, "cell"),
        findings=ablation_findings(rows, names),
        seconds=time.perf_counter() - start,
    )  # fmt: skip
    columns = (
        "scenario", "workload", "policy", "n", "hit_rate", "percent_of_oracle", "misses",
        "mean_latency_ms", "bytes_moved",
    )  # fmt: skip
    finish(done, out, as_json=as_json, columns=columns)


def read_grid(texts: tuple[str, ...]) -> dict[str, list[float]]:
    """`name=1,2,3` for each parameter.

    Raises:
        InvalidArgumentError: a text is not of that form.
    """
    grid: dict[str, list[float]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        try:
            numbers_ = [float(value) for value in values.split(",")]
        except ValueError:
            numbers_ = []
        if not name or not equals or not numbers_ or name in grid:
            raise InvalidArgumentError(f"--grid {text}: write it as weight=0,1,6, each name once")
        grid[name] = numbers_
    return grid
