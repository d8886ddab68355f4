"""Page mode from Python: sweeps, policies of one's own, bad input."""

from __future__ import annotations

import json
import re
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlab.errors import ConfigError, InvalidArgumentError
from kvlab.sim import PolicyBase
from kvlab.sim.page import PolicyChoice, WorkloadSpec, expand_workload, simulate, sweep
from kvlab.sim.scenarios import (
    SCENARIOS,
    PolicySpec,
    Scenario,
    TierSpec,
    page_policies,
    scenario,
    tiers,
)
from kvlab.sim.schemes import SCHEMES, SchemePlan, footprint
from kvlab.sim.workloads import PAGE_WORKLOADS, Page, PageWorkload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kvlab._core import PolicyContext

ROOT = Path(__file__).parents[1]
TWO = (TierSpec("fast", 8, 1.0, 2.0, 4.0), TierSpec("slow", 80, 1.0, 2.0, 4.0))


def pages(*sizes: int) -> list[Page]:
    return [Page(n, (16 * n, 16 * n + 16), 0, 0, size, "fp16") for n, size in enumerate(sizes)]


class Lru(PolicyBase):
    """The built-in one, in Python."""

    def __init__(self) -> None:
        self.last: dict[int, int] = {}

    def on_access(self, context: PolicyContext, page: Page, hit_tier: str | None) -> None:
        self.last[page.id] = context.step

    def on_insert(self, context: PolicyContext, page: Page, tier: str) -> None:
        self.last[page.id] = context.step

    def score_page(self, context: PolicyContext, page: Page, tier: str) -> float:
        return self.last.get(page.id, -1)


class Recorder(PolicyBase):
    """Writes down what it hears."""

    name = "recorder"

    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []

    def on_access(self, context: PolicyContext, page: Page, hit_tier: str | None) -> None:
        assert context.tier_of(page.id) == hit_tier
        self.heard.append(("access", context.step, page.id, hit_tier))

    def on_miss(self, context: PolicyContext, page: Page) -> None:
        self.heard.append(("miss", page.id))

    def on_insert(self, context: PolicyContext, page: Page, tier: str) -> None:
        assert context.tier_of(page.id) == tier
        self.heard.append(("insert", page.id, tier))

    def on_evict(self, context: PolicyContext, page: Page, tier: str) -> None:
        self.heard.append(("evict", page.id, tier))

    def on_promote(self, context: PolicyContext, page: Page, source: str, target: str) -> None:
        self.heard.append(("promote", page.id, source, target))

    def select_eviction_candidate(
        self, context: PolicyContext, tier: str, candidates: Sequence[Page], incoming: Page
    ) -> Page:
        ids = [page.id for page in candidates]
        self.heard.append(("select", tier, ids, incoming.id, context.free_bytes(tier)))
        return candidates[0]

    def maybe_prefetch(self, context: PolicyContext, page: Page) -> Iterable[int]:
        return [2] if page.id == 1 else []


def test_a_policy_in_python_hears_every_hook_in_order() -> None:
    policy = Recorder()
    workload = PageWorkload("three", pages(4, 4, 4), [0, 0, 1])
    row = simulate(workload, Scenario("two", TWO, prefetch=True), policy)
    assert policy.heard == [
        ("access", 0, 0, None),
        ("miss", 0),
        ("insert", 0, "slow"),
        ("insert", 0, "fast"),
        ("promote", 0, "slow", "fast"),
        ("access", 1, 0, "fast"),
        ("access", 2, 1, None),
        ("miss", 1),
        ("insert", 1, "slow"),
        ("insert", 1, "fast"),
        ("promote", 1, "slow", "fast"),
        ("insert", 2, "slow"),
        ("select", "fast", [0, 1], 2, 0),
        ("evict", 0, "fast"),
        ("insert", 2, "fast"),
        ("promote", 2, "slow", "fast"),
    ]
    assert (row.policy, row.misses, row.prefetches, row.wasted_prefetches) == ("recorder", 2, 1, 1)
    assert row.resident_bytes == {"fast": 8, "slow": 4}


@settings(deadline=None, max_examples=30)
@given(
    name=st.sampled_from(list(PAGE_WORKLOADS)[:8]),
    seed=st.integers(0, 1000),
    preset=st.sampled_from(["medium", "tight", "cxl_like"]),
)
def test_a_policy_in_python_does_what_the_built_in_one_does(
    name: str, seed: int, preset: str
) -> None:
    scene = Scenario(preset, tiers(preset))
    workload = expand_workload(name, scene, seed)
    built_in, own = (simulate(workload, scene, policy) for policy in ("lru", Lru()))
    assert own.policy == "Lru"
    assert replace(own, policy="lru") == built_in


class Broken(PolicyBase):
    def score_page(self, context: PolicyContext, page: Page, tier: str) -> float:
        message = f"no score for page {page.id}"
        raise LookupError(message)


def test_what_a_policy_raises_comes_out_with_its_traceback() -> None:
    workload = PageWorkload("two", pages(8, 8), [0, 1])
    with pytest.raises(LookupError, match="no score for page 0") as caught:
        simulate(workload, Scenario("two", TWO), Broken())
    frames = [frame.name for frame in traceback.extract_tb(caught.tb)]
    assert frames[-1] == "score_page"
    with pytest.raises(LookupError):
        sweep(policies=["lru", Broken], scenarios=["tight"], workloads=["rag_burst"])


@pytest.mark.parametrize("choice", [5, -1, "first", None])
def test_a_choice_that_is_no_candidate_is_refused(choice: object) -> None:
    class Stray(PolicyBase):
        def select_eviction_candidate(self, *_: object) -> Page:
            return replace(pages(8)[0], id=choice)  # type: ignore[arg-type]

    workload = PageWorkload("two", pages(8, 8), [0, 1])
    with pytest.raises((InvalidArgumentError, TypeError, OverflowError)):
        simulate(workload, Scenario("two", TWO), Stray())


def test_a_prefetch_of_no_page_is_refused() -> None:
    class Eager(PolicyBase):
        def maybe_prefetch(self, context: PolicyContext, page: Page) -> Iterable[int]:
            return [9]

    workload = PageWorkload("two", pages(8, 8), [0, 1])
    with pytest.raises(InvalidArgumentError, match="page 9"):
        simulate(workload, Scenario("two", TWO, prefetch=True), Eager())


def test_a_sweep_is_the_same_with_any_number_of_threads() -> None:
    policies: list[PolicyChoice] = ["lru", PolicySpec("regret_aware", {"weight": 0}, "w0"), Lru]
    heard: list[tuple[int, int]] = []

    def run(jobs: int) -> bytes:
        rows = sweep(
            policies=policies,
            scenarios=["tight", SCENARIOS["cxl_like_fp16"]],
            workloads=["chat_continuation", WorkloadSpec("rag_burst", {"num_pages": 40})],
            seeds=[1, 2],
            jobs=jobs,
            progress=lambda done, total: heard.append((done, total)),
        )
        return json.dumps([row.as_dict() for row in rows]).encode()

    alone = run(1)
    assert heard == [(done, 24) for done in range(1, 25)]
    assert run(3) == alone
    labels = [
        (row["seed"], row["scenario"], row["workload"], row["policy"]) for row in json.loads(alone)
    ]
    assert labels[:4] == [
        (1, "tight", "chat_continuation", "lru"),
        (1, "tight", "chat_continuation", "w0"),
        (1, "tight", "chat_continuation", "Lru"),
        (1, "tight", "rag_burst", "lru"),
    ]


@pytest.mark.parametrize("policy", sorted(page_policies()))
def test_every_policy_runs_and_keeps_within_the_tiers(policy: str) -> None:
    scene = replace(SCENARIOS["tight"], prefetch=True, compute_ms=0.5)
    row = simulate(expand_workload("mixed_locality", scene), scene, policy)
    assert row.accesses == 360
    assert row.misses >= row.cold_misses > 0
    assert all(row.peak_bytes[tier.name] <= tier.capacity_bytes for tier in scene.tiers)
    assert row.elapsed_ms is not None
    assert row.elapsed_ms >= 360 * 0.5
    assert set(row.flat()) > {"peak_bytes.gpu_fast", "tier_hit_rates.nvme_like", "policy"}


def test_overlap_hides_transfers_and_a_limit_brings_them_back() -> None:
    base = SCENARIOS["tight"]
    workload = expand_workload("rag_burst", base)
    serial = simulate(workload, base, "lru")
    free = simulate(workload, replace(base, compute_ms=50.0), "lru")
    one = tuple(replace(tier, concurrency=1) for tier in base.tiers)
    queued = simulate(workload, replace(base, tiers=one, compute_ms=0.0), "lru")
    assert serial.elapsed_ms is None
    assert free.misses == serial.misses == queued.misses
    assert free.mean_latency_ms < queued.mean_latency_ms <= serial.mean_latency_ms + 1e-9
    assert (free.queued_ms, free.late_prefetches) == (0.0, 0)
    assert queued.queued_ms is not None
    assert queued.queued_ms > 0


def test_a_plan_of_schemes_goes_by_head_group_then_layer() -> None:
    plan = SchemePlan.parse("fp16,layers:0-1=int4,heads:1=int2")
    assert plan == SchemePlan("fp16", {0: "int4", 1: "int4"}, {1: "int2"})
    assert SchemePlan.parse(str(plan)) == plan
    assert [plan.of(0, 0), plan.of(1, 1), plan.of(5, 1), plan.of(5, 0)] == [
        "int4",
        "int2",
        "int2",
        "fp16",
    ]
    scene = replace(SCENARIOS["tight"], scheme=plan)
    mixed, full = (
        simulate(expand_workload("rag_burst", each), each, "lru")
        for each in (scene, SCENARIOS["tight"])
    )
    assert mixed.scheme == str(plan)
    assert mixed.bytes_moved < full.bytes_moved
    assert mixed.hit_rate > full.hit_rate
    assert footprint(2047, "int4") == 1023
    assert [scheme.decode_ms for scheme in SCHEMES.values()] == [0.0, 0.01, 0.03, 0.06]


@pytest.mark.parametrize(
    "text", ["int3", "fp16,layers=int4", "fp16,rows:1=int4", "fp16,heads:x=int4"]
)
def test_a_plan_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="scheme"):
        SchemePlan.parse(text)


def test_a_policy_by_name_may_bring_parameters() -> None:
    assert PolicySpec.parse("lru") == PolicySpec("lru", {}, "lru")
    parsed = PolicySpec.parse("regret_aware:weight=0,horizon=64")
    assert (parsed.name, parsed.params) == ("regret_aware", {"weight": 0.0, "horizon": 64.0})
    assert PolicySpec.parse("per_tier:lru").name == "per_tier:lru"
    with pytest.raises(ConfigError, match="name=number"):
        PolicySpec.parse("regret_aware:weight")
    for name, (about, params) in page_policies().items():
        assert about
        assert set(params) <= set(re.findall(r"\w+", " ".join(params))), name


def test_names_that_are_unknown_are_told_the_known_ones() -> None:
    scene = SCENARIOS["tight"]
    workload = expand_workload("rag_burst", scene)
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: simulate(workload, scene, "best"), "regret_aware"),
        (lambda: simulate(workload, scene, PolicySpec("lru", {"weight": 1})), "takes none"),
        (lambda: scenario("huge"), "small_fp16_prefetch"),
        (lambda: tiers("huge"), "cxl_like"),
        (lambda: expand_workload("chess", scene), "chat_continuation"),
        (lambda: expand_workload(WorkloadSpec("rag_burst", {"size": 1}), scene), "num_pages"),
        (lambda: expand_workload("rag_burst", replace(scene, scheme="int3")), "fp16, fp8"),
        (lambda: scene.with_engine("fast"), "exact, compat"),  # type: ignore[arg-type]
    ]
    for call, known in cases:
        with pytest.raises(ConfigError, match=known):
            call()


def test_what_cannot_be_run_is_refused_by_name() -> None:
    def with_tier(**fields: float) -> Scenario:
        return Scenario("bad", (replace(TWO[0], **fields), TWO[1]))  # type: ignore[arg-type]

    two = PageWorkload("two", pages(8, 8), [0, 1])
    cases = [
        (two, with_tier(capacity_bytes=0), "capacity_bytes"),
        (two, with_tier(capacity_bytes=-1), "capacity_bytes"),
        (two, with_tier(read_ms=-1.0), "read_ms"),
        (two, with_tier(bytes_per_ms=0.0), "bytes_per_ms"),
        (two, with_tier(concurrency=0), "concurrency"),
        (two, Scenario("one", TWO[:1]), "2 to 255"),
        (two, Scenario("same", (TWO[0], TWO[0])), "named"),
        (two, Scenario("late", TWO, compute_ms=-1.0), "compute_ms"),
        (PageWorkload("large", pages(9), [0]), Scenario("two", TWO), "page 0 of 9 bytes"),
        (PageWorkload("none", pages(0), [0]), Scenario("two", TWO), "0 bytes"),
        (PageWorkload("stray", pages(8), [0, 1]), Scenario("two", TWO), "row 1 uses page 1"),
        (PageWorkload("back", pages(8), [0, 0], steps=[1, 0]), Scenario("two", TWO), "step 0"),
        (PageWorkload("short", pages(8), [0, 0], steps=[1]), Scenario("two", TWO), "steps"),
    ]
    for workload, scene, said in cases:
        with pytest.raises(InvalidArgumentError, match=said):
            simulate(workload, scene, "lru")
    bads: list[dict[str, object]] = [
        {"policies": []},
        {"scenarios": []},
        {"workloads": []},
        {"seeds": []},
        {"jobs": 0},
    ]
    for bad in bads:
        usual = {"policies": ["lru"], "scenarios": ["medium"], "workloads": ["rag_burst"]}
        with pytest.raises(InvalidArgumentError, match=next(iter(bad))):
            sweep(**{**usual, **bad})  # type: ignore[arg-type]


def test_an_empty_trace_gives_a_row_of_nothing() -> None:
    row = simulate(PageWorkload("empty", [], []), Scenario("two", TWO), "predictive")
    assert (row.accesses, row.hit_rate, row.mean_latency_ms, row.bytes_moved) == (0, 0.0, 0.0, 0)


def test_pages_may_start_in_a_tier() -> None:
    started = [
        replace(page, tier=tier) for page, tier in zip(pages(8, 8), ("fast", None), strict=True)
    ]
    row = simulate(PageWorkload("warm", started, [0, 1]), Scenario("two", TWO), "lru")
    assert (row.misses, row.cold_misses, row.inserted_bytes) == (1, 1, 16)
    lost = [replace(started[0], tier="attic")]
    with pytest.raises(ConfigError, match="fast, slow"):
        simulate(PageWorkload("lost", lost, [0]), Scenario("two", TWO), "lru")
    crowd = [replace(page, tier="fast") for page in pages(8, 8)]
    with pytest.raises(InvalidArgumentError, match="start fewer"):
        simulate(PageWorkload("crowd", crowd, [0]), Scenario("two", TWO), "lru")


@pytest.mark.parametrize("name", ["basic_simulation", "compare_policies"])
def test_the_examples_run(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [name])
    scope = {"__name__": "__main__"}
    path = ROOT / "examples" / f"{name}.py"
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), scope)  # noqa: S102 - our own
    assert "simulated" in capsys.readouterr().out
