"""Page mode in experiments: sweeps with an oracle, ablations, and traces of requests as pages."""

from __future__ import annotations

import itertools
import time
from array import array
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kvlab.errors import ConfigError, InvalidArgumentError
from kvlab.sim import page, prefix
from kvlab.sim.experiments.hierarchy import need_blocks
from kvlab.sim.experiments.table import SIMULATED
from kvlab.sim.formats import TraceInfo
from kvlab.sim.page import PolicyChoice, WorkloadSpec
from kvlab.sim.page_trace import read_page_trace
from kvlab.sim.policy_file import PolicyFile, is_policy_file
from kvlab.sim.request import Request
from kvlab.sim.scenarios import PolicySpec, Scenario, TierSpec, page_policies
from kvlab.sim.scenarios import scenario as find_scenario
from kvlab.sim.schemes import SchemePlan
from kvlab.sim.trace import Trace, find
from kvlab.sim.workloads.pages import Page, PageWorkload

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from kvlab.sim.experiments.table import Row

__all__ = [
    "ablate",
    "most_hits",
    "quantised",
    "read_policy",
    "read_workload",
    "rows_of",
    "run_requests",
    "run_scenario",
    "sweep",
]


def most_hits(workload: PageWorkload, scene: Scenario) -> int:
    """Hits in the first tier that no policy can exceed without prefetch.

    Belady's MIN with as many pages as fit if each were as small as the smallest: a bound, a little above
    what can be reached where pages differ in size. Pages fetched ahead can exceed it.
    """
    rows = [at for at in range(len(workload.trace)) if at not in workload.hints]
    if not rows:
        return 0
    requests = (Request(at_ms=0.0, blocks=(workload.trace[row],), tokens=1) for row in rows)
    trace = Trace.from_requests(requests, TraceInfo(name=workload.name, block_tokens=1))
    least = min(each.size_bytes for each in workload.pages)
    fits = max(1, scene.tiers[0].capacity_bytes // least)
    return prefix.run(trace, policy="belady", capacity_blocks=fits, mode="flat").hits


def rows_of(
    found: Sequence[page.PageRow], bounds: Mapping[tuple[str, str, int | None], int]
) -> list[Row]:
    """Rows of page mode with the part of the oracle's hits.

    Args:
        found: The runs.
        bounds: See `most_hits`, by scenario, workload and seed.
    """
    rows: list[Row] = []
    for each in found:
        row: Row = {**each.flat()}
        best = bounds[each.scenario, each.workload, each.seed]
        row["oracle_hits"] = best
        row["percent_of_oracle"] = 100.0 * ((each.accesses - each.misses) / best) if best else 100.0
        rows.append(
            {name: value for name, value in row.items() if value is not None or name == "seed"}
        )
    return rows


def sweep(
    *,
    policies: Sequence[PolicyChoice],
    scenarios: Sequence[Scenario],
    workloads: Sequence[str | WorkloadSpec],
    seeds: Sequence[int | None] = (None,),
    workers: int | None = None,
    progress: Callable[[int], None] = lambda _done: None,
) -> list[Row]:
    """`kvlab.sim.page.sweep` as rows, beside the oracle.

    Raises:
        ConfigError: an unknown name or parameter.
        InvalidArgumentError: nothing to run, two policies of one name, fewer than 1 worker, a tier or page
            that cannot be.
    """
    names = [_name(policy) for policy in policies]
    twice = next((name for at, name in enumerate(names) if name and name in names[:at]), None)
    if twice is not None:
        raise InvalidArgumentError(
            f"two policies are called {twice}: give each once, and a class a `name` of its own"
        )
    found = page.sweep(
        policies=policies,
        scenarios=scenarios,
        workloads=workloads,
        seeds=seeds,
        jobs=workers,
        progress=lambda done, _total: progress(done),
    )
    bounds: dict[tuple[str, str, int | None], int] = {}
    for seed, scene, workload in itertools.product(seeds, scenarios, workloads):
        pages = page.expand_workload(workload, scene, seed)
        bounds[scene.name, pages.name, pages.seed] = most_hits(pages, scene)
    return rows_of(found, bounds)


def _name(policy: PolicyChoice) -> str:
    """What results call it; empty where only a run of it tells."""
    if isinstance(policy, PolicySpec):
        return policy.label or policy.name
    if isinstance(policy, PolicyFile):
        return policy.name
    return policy if isinstance(policy, str) else ""


def ablate(
    policy: str,
    grid: Mapping[str, Sequence[float]],
    *,
    scenarios: Sequence[Scenario],
    workloads: Sequence[str | WorkloadSpec],
    seeds: Sequence[int | None],
    baselines: Sequence[str] = ("lru",),
    workers: int | None = None,
    progress: Callable[[int], None] = lambda _done: None,
) -> list[Row]:
    """A page policy with every combination of some parameters, beside others as they are.

    Each row has a column for each parameter; those of the baselines are empty.

    Args:
        policy: Of page mode.
        grid: Values of each parameter.
        scenarios: What it runs on.
        workloads: What is replayed.
        seeds: Seeds of the workloads.
        baselines: Other policies of page mode.
        workers: Threads.
        progress: Called with the runs done.

    Raises:
        ConfigError: an unknown name or parameter.
        InvalidArgumentError: a parameter without a value.
    """
    known = page_policies()
    if policy not in known:
        raise ConfigError(f"policy = {policy}: use one of: {', '.join(known)}")
    for name, values in grid.items():
        if not values:
            raise InvalidArgumentError(f"{name} has no value; give at least one")
    arms = []
    for values in itertools.product(*grid.values()):
        params = dict(zip(grid, values, strict=True))
        text = ",".join(f"{name}={value:g}" for name, value in params.items())
        arms.append(PolicySpec(policy, params, f"{policy}:{text}" if text else policy))
    rows = sweep(
        policies=[*baselines, *arms],
        scenarios=scenarios,
        workloads=workloads,
        seeds=seeds,
        workers=workers,
        progress=progress,
    )
    params_of = {arm.label: arm.params for arm in arms}
    return [row | dict(params_of.get(str(row["policy"]), {})) for row in rows]


def read_policy(text: str) -> PolicySpec | PolicyFile:
    """A page policy by name, perhaps with parameters, or of your own: `path/to/file.py:ClassName`.

    Raises:
        ConfigError: a parameter that is not understood, or a file without such a class.
        InvalidArgumentError: there is no such file, or what it runs raises.
    """
    return PolicyFile(text) if is_policy_file(text) else PolicySpec.parse(text)


def read_workload(text: str) -> WorkloadSpec:
    """A page workload with parameters behind colons: `rag_burst`, or `rag_burst:num_pages=96:length=320`.

    Raises:
        InvalidArgumentError: a parameter is not of the form `name=number`.
    """
    name, *parts = text.split(":")
    params: dict[str, int | float] = {}
    for part in parts:
        key, _, value = part.partition("=")
        try:
            params[key] = int(value) if value.isdecimal() else float(value)
        except ValueError:
            raise InvalidArgumentError(f"workload {text}: write {part!r} as name=number") from None
    return WorkloadSpec(name, params)


def run_requests(trace: Trace, *, policy: str, capacity_blocks: int | None) -> dict[str, Any]:
    """A trace of requests in page mode: each block is a page, the first tier has room for so many.

    Below it is a tier that holds everything. Tokens of hits are shared out evenly over the blocks, since
    a page knows nothing of its request.

    Args:
        trace: What to replay.
        policy: See `read_policy`.
        capacity_blocks: Pages in the first tier, at least 1; None for all.

    Raises:
        ConfigError: an unknown policy or parameter.
        InvalidArgumentError: a trace without blocks.
    """
    need_blocks(trace)
    chosen = read_policy(policy)
    rows = array("I")
    for request in range(len(trace)):
        rows.extend(trace.core.blocks(request))
    blocks = trace.unique_blocks
    capacity = blocks if capacity_blocks is None else capacity_blocks
    pages = [Page(at, (0, 1), 0, 0, 1, "fp16") for at in range(blocks)]
    fast, last = TierSpec("fast", capacity, 0.0, 0.0, 1.0), TierSpec("all", blocks, 0.0, 0.0, 1.0)
    scene = Scenario("blocks", (fast, last))
    start = time.perf_counter()
    row = page.run_choice(PageWorkload(trace.info.name, pages, rows), scene, chosen)
    seconds = time.perf_counter() - start
    hits = row.accesses - row.misses
    hit_tokens = trace.tokens * hits // trace.block_refs
    return {
        "kind": SIMULATED,
        "trace": trace.info.name,
        "mode": "page",
        "policy": row.policy,
        "capacity_blocks": capacity_blocks,
        "requests": len(trace),
        "block_refs": trace.block_refs,
        "unique_blocks": blocks,
        "hits": hits,
        "hit_ratio": hits / trace.block_refs,
        "tokens": trace.tokens,
        "hit_tokens": hit_tokens,
        "token_hit_ratio": hit_tokens / trace.tokens if trace.tokens else 0.0,
        "recomputed_tokens": trace.tokens - hit_tokens,
        "evictions": row.evictions,
        "seconds": seconds,
        "events_per_second": trace.block_refs / seconds,
    }


def run_scenario(
    *,
    policy: str,
    scenario: str,
    trace: Path | None = None,
    workload: str | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """One run of page mode: of a page trace in a file, or of a page workload.

    Raises:
        ConfigError: an unknown name or parameter.
        FormatError: the file is no page trace; names line and field.
        InvalidArgumentError: the file cannot be read, or a page that cannot be.
    """
    scene = find_scenario(scenario)
    if trace is not None:
        try:
            pages = read_page_trace(find(trace))
        except OSError as error:
            raise InvalidArgumentError(f"{trace}: {error.strerror or error}") from error
    else:
        pages = page.expand_workload(str(workload), scene, seed)
    row = page.run_choice(pages, scene, read_policy(policy))
    (flat,) = rows_of([row], {(row.scenario, row.workload, row.seed): most_hits(pages, scene)})
    return {"kind": SIMULATED, **flat}


def quantised(scene: Scenario, text: str) -> Scenario:
    """The scenario with its pages stored otherwise, under a name that says so.

    Args:
        scene: What it is made from.
        text: See `kvlab.sim.schemes.SchemePlan.parse`: `int4`, or `fp16,layers:0-7=int4`.

    Raises:
        ConfigError: it names no known scheme.
    """
    return replace(scene, name=f"{scene.name}+{text}", scheme=SchemePlan.parse(text))
