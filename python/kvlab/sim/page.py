"""Page mode: independent pages over simulated tiers, as kv-hierarchy-lab has it.

Hits, bytes and evictions are counted exactly; milliseconds are those of the scenario's model, not
of a machine. The same seed gives the same rows, bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from kvlab import _core
from kvlab.errors import ConfigError, InvalidArgumentError
from kvlab.sim.policy import PolicyBase
from kvlab.sim.policy_file import PolicyFile
from kvlab.sim.scenarios import PolicySpec, Scenario, scenario
from kvlab.sim.schemes import SCHEMES
from kvlab.sim.workloads import PAGE_WORKLOADS
from kvlab.sim.workloads.pages import PageWorkload

__all__ = [
    "PageRow",
    "PolicyChoice",
    "WorkloadSpec",
    "expand_workload",
    "run_choice",
    "simulate",
    "sweep",
]

PolicyChoice: TypeAlias = str | PolicySpec | Callable[[], PolicyBase]
"""A policy for many runs: by name, with parameters, or what makes one of your own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRow:
    """What one run counted. Times are simulated.

    Attributes:
        scenario: The scenario's name.
        workload: The workload's name.
        policy: The policy's name or label.
        scheme: How pages were stored.
        prefetch: Whether pages were fetched ahead.
        engine: `exact` or `compat`.
        seed: What the workload's choices came from.
        accesses: Rows that used a page.
        misses: Accesses whose page was not in the first tier.
        cold_misses: Times that a page was in no tier when it was used or fetched ahead.
        hit_rate: Hits in the first tier over accesses; 0 for an empty trace.
        tier_hit_rates: Accesses that found their page in a tier, over all, by tier.
        mean_latency_ms: With `compute_ms`, what an access waited for on average; without, its share
            of all hits and transfers, one after the other.
        transfer_and_hit_ms: What all hits and transfers cost, one after the other.
        bytes_moved: Bytes of all transfers: the sum of the next two.
        demand_bytes: Bytes of promotions for accesses, and of all demotions.
        prefetch_bytes: Bytes of promotions ahead of accesses.
        prefetches: Pages that were fetched ahead.
        useful_prefetches: Those used before they left the first tier.
        wasted_prefetches: Those that left it first, or were not used by the end.
        useful_prefetch_ratio: Useful ones over all; 0 if there were none.
        evictions: Pages that left a tier as victims, from any tier.
        dropped: Evictions from the last tier.
        peak_bytes: The most bytes that lay in a tier, by tier.
        resident_bytes: Bytes that lie in a tier at the end, by tier.
        inserted_bytes: Bytes that came into the tiers.
        dropped_bytes: Bytes that were dropped; with `exact`, what came in less what is there.
        double_residencies: Promotions that left the page behind in a second tier; 0 with `exact`.
        elapsed_ms: With `compute_ms`, until compute and transfers had ended.
        queued_ms: With `compute_ms`, what transfers waited for a place in their tiers.
        late_prefetches: With `compute_ms`, hits whose page was still underway.
    """

    scenario: str
    workload: str
    policy: str
    scheme: str
    prefetch: bool
    engine: str
    seed: int | None
    accesses: int
    misses: int
    cold_misses: int
    hit_rate: float
    tier_hit_rates: dict[str, float]
    mean_latency_ms: float
    transfer_and_hit_ms: float
    bytes_moved: int
    demand_bytes: int
    prefetch_bytes: int
    prefetches: int
    useful_prefetches: int
    wasted_prefetches: int
    useful_prefetch_ratio: float
    evictions: int
    dropped: int
    peak_bytes: dict[str, int]
    resident_bytes: dict[str, int]
    inserted_bytes: int
    dropped_bytes: int
    double_residencies: int
    elapsed_ms: float | None
    queued_ms: float | None
    late_prefetches: int | None

    def as_dict(self) -> dict[str, Any]:
        """The row as plain values, for JSON."""
        return asdict(self)

    def flat(self) -> dict[str, str | int | float | bool | None]:
        """The row with one value a column, for CSV: what is by tier is `hit_rates.NAME` and so on."""
        flat: dict[str, str | int | float | bool | None] = {}
        for key, value in asdict(self).items():
            if isinstance(value, dict):
                flat |= {f"{key}.{tier}": number for tier, number in value.items()}
            else:
                flat[key] = value
        return flat


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """A workload by name, with parameters of its generator besides seed and scheme.

    Attributes:
        name: One of `kvlab.sim.workloads.PAGE_WORKLOADS`.
        params: Such as `num_pages` and `length`.
    """

    name: str
    params: Mapping[str, int | float] = field(default_factory=dict)


def expand_workload(
    workload: str | WorkloadSpec, scene: Scenario, seed: int | None = None
) -> PageWorkload:
    """The workload, stored as the scenario says.

    Args:
        workload: A workload by name, perhaps with parameters.
        scene: What it is for.
        seed: What its choices come from; None for the generator's usual seed.

    Raises:
        ConfigError: the name is not known, or a parameter; the message lists what is.
        InvalidArgumentError: a parameter that cannot be.
    """
    spec = WorkloadSpec(workload) if isinstance(workload, str) else workload
    if spec.name not in PAGE_WORKLOADS:
        message = f"workload = {spec.name}: use one of: {', '.join(PAGE_WORKLOADS)}"
        raise ConfigError(message)
    known = PAGE_WORKLOADS[spec.name]
    unknown = sorted(set(spec.params) - set(known.params))
    if unknown:
        message = (
            f"parameter = {unknown[0]}: workload {spec.name} has no such parameter; "
            f"use one of: {', '.join(known.params)}"
        )
        raise ConfigError(message)
    params: dict[str, Any] = {**spec.params, "scheme": scene.scheme}
    if seed is not None:
        params["seed"] = seed
    return known.make(**params)


def simulate(
    workload: PageWorkload, scene: Scenario, policy: str | PolicySpec | PolicyBase
) -> PageRow:
    """Replays a workload. The GIL is released, but for a policy of your own.

    Args:
        workload: What is replayed.
        scene: What it is replayed on. Its `scheme` is not looked at: the pages say how they are
            stored.
        policy: A policy by name, perhaps with parameters, or a fresh one of your own.

    Raises:
        ConfigError: an unknown policy or parameter, or a page that starts in an unknown tier.
        InvalidArgumentError: a tier, page or row that cannot be; a page larger than a tier.
        Exception: what a policy of your own raised.
    """
    if isinstance(policy, str):
        policy = PolicySpec(policy)
    if isinstance(policy, PolicySpec):
        label, params = policy.label or policy.name, policy.params
    else:
        label, params = policy.name or type(policy).__name__, {}
    tiers = scene.tiers
    counted = _core.simulate_pages(
        tier_fields=[
            (t.name, t.capacity_bytes, t.read_ms, t.write_ms, t.bytes_per_ms, t.concurrency)
            for t in tiers
        ],
        sizes=[page.size_bytes for page in workload.pages],
        decode_ms=[SCHEMES[page.scheme].decode_ms for page in workload.pages],
        starts=_starts(workload, scene),
        trace=workload.trace,
        steps=None if workload.steps is None else list(workload.steps),
        hints=sorted(workload.hints),
        policy=policy.name if isinstance(policy, PolicySpec) else policy,
        params=[(name, float(value)) for name, value in params.items()],
        pages=list(workload.pages),
        prefetch=scene.prefetch,
        max_prefetches=scene.max_prefetches,
        compat=scene.with_engine(scene.engine).engine == "compat",
        compute_ms=scene.compute_ms,
    )
    by_tier: dict[str, Any] = {
        key: dict(zip((tier.name for tier in tiers), counted.pop(key), strict=True))
        for key in ("tier_hit_rates", "peak_bytes", "resident_bytes")
    }
    return PageRow(
        scenario=scene.name,
        workload=workload.name,
        policy=label,
        scheme=str(scene.scheme),
        prefetch=scene.prefetch,
        engine=scene.engine,
        seed=workload.seed,
        **by_tier,
        **counted,
    )


def _starts(workload: PageWorkload, scene: Scenario) -> list[tuple[int, int]]:
    """Pages that start in a tier, with the tier's number."""
    places = {tier.name: place for place, tier in enumerate(scene.tiers)}
    starts = []
    for page in workload.pages:
        if page.tier is None:
            continue
        if page.tier not in places:
            message = (
                f"tier = {page.tier}: page {page.id} starts there; use one of: {', '.join(places)}"
            )
            raise ConfigError(message)
        starts.append((page.id, places[page.tier]))
    return starts


def sweep(
    *,
    policies: Sequence[PolicyChoice],
    scenarios: Sequence[str | Scenario],
    workloads: Sequence[str | WorkloadSpec],
    seeds: Sequence[int | None] = (None,),
    jobs: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[PageRow]:
    """All policies on all workloads in all scenarios with all seeds.

    Args:
        policies: Policies by name, with parameters, or as what makes one of your own.
        scenarios: Scenarios, or their names.
        workloads: Workloads by name, perhaps with parameters.
        seeds: Seeds of the workloads; None is each one's usual seed.
        jobs: Threads; None is one a processor. Policies of your own share one.
        progress: Called with the runs that are done and the runs in all, from the calling thread.

    Returns:
        One row a run: seed by seed, in each scenario by scenario, workload by workload, policy by
        policy, whatever the number of threads.

    Raises:
        InvalidArgumentError: nothing to run, or fewer than 1 job.
        ConfigError: a name that is not known.
        Exception: what a run or `progress` raised, in the order of the rows; later runs are left out.
    """
    if jobs is not None and jobs < 1:
        message = f"jobs = {jobs}; use at least 1"
        raise InvalidArgumentError(message)
    for name, given in (
        ("policies", policies),
        ("scenarios", scenarios),
        ("workloads", workloads),
        ("seeds", seeds),
    ):
        if not given:
            message = f"{name} is empty; give at least one"
            raise InvalidArgumentError(message)
    scenes = [scenario(each) if isinstance(each, str) else each for each in scenarios]
    plan = [
        (workload, scene, policy)
        for seed in seeds
        for scene in scenes
        for workload in [expand_workload(each, scene, seed) for each in workloads]
        for policy in policies
    ]
    return list(_run(plan, jobs, progress))


_Run: TypeAlias = tuple[PageWorkload, Scenario, PolicyChoice]


def _run(
    plan: Sequence[_Run], jobs: int | None, progress: Callable[[int, int], object] | None
) -> Iterable[PageRow]:
    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        runs = [pool.submit(run_choice, *run) for run in plan]
        try:
            for done, run in enumerate(runs, start=1):
                yield run.result()
                if progress is not None:
                    progress(done, len(plan))
        finally:
            pool.shutdown(cancel_futures=True)


def run_choice(workload: PageWorkload, scene: Scenario, policy: PolicyChoice) -> PageRow:
    """`simulate` with a policy that is made for this run, if it is one of your own.

    Raises:
        ConfigError: as `simulate`.
        InvalidArgumentError: as `simulate`; for a policy from a file also what a hook raised.
        Exception: what any other policy of your own raised.
    """
    if isinstance(policy, str | PolicySpec):
        return simulate(workload, scene, policy)
    if isinstance(policy, PolicyFile):
        with policy.explaining():
            return simulate(workload, scene, policy())
    return simulate(workload, scene, policy())
