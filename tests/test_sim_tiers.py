"""Three tiers: what adds up between them, and what a cost model makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvlab.errors import ConfigError, InvalidArgumentError
from kvlab.sim import prefix
from kvlab.sim.tiers import Costs, Read, Tiers, run
from kvlab.sim.trace import Trace, load

TRACES = Path(__file__).parent / "fixtures" / "traces"


@pytest.fixture(scope="module")
def trace() -> Trace:
    return load(TRACES / "weka.jsonl", "weka")


@pytest.mark.parametrize("write_policy", ["write_through", "write_through_selective", "write_back"])
@pytest.mark.parametrize("policy", ["lru", "gdsf", ("lru", "sieve", "s3-fifo")])
def test_tiers_share_the_hits(
    trace: Trace, write_policy: str, policy: str | tuple[str, str, str]
) -> None:
    tiers = Tiers(100, 150, None, policy=policy, write_policy=write_policy, restore="always")  # type: ignore[arg-type]
    found = run(trace, tiers)
    top = prefix.run(
        trace, policy=policy if isinstance(policy, str) else policy[0], capacity_blocks=100
    )
    ideal = prefix.run(trace, capacity_blocks=None)
    assert found.hits[0] == top.hits
    assert top.hits <= sum(found.hits) <= ideal.hits
    if write_policy == "write_through":
        assert sum(found.hits) == ideal.hits
    assert found.peak_blocks[0] <= 100
    assert found.peak_blocks[1] <= 150
    assert len(found.first_token) == len(found.queued) == found.requests == len(trace)
    assert all(
        first >= queued >= 0 for first, queued in zip(found.first_token, found.queued, strict=True)
    )
    assert run(trace, tiers) == found


def test_a_slow_disk_is_left_alone_and_a_fast_one_is_not(trace: Trace) -> None:
    costs = Costs(prefill=(0.0, 1e-4, 0.0), concurrency=1000)
    slow = replace(costs, l3=Read(1.0, 1e6))
    fast = replace(costs, l3=Read(0.0, 1e12))
    tiers = Tiers(20, 0, None, costs=slow)
    assert run(trace, tiers).left_alone_blocks > 0
    quick = run(trace, replace(tiers, costs=fast))
    assert quick.left_alone_blocks == 0
    assert quick.recomputed_tokens < run(trace, tiers).recomputed_tokens
    assert sum(quick.first_token) < sum(run(trace, tiers).first_token)
    never = run(trace, replace(tiers, restore="never"))
    assert never.hits[1:] == (0, 0)


def test_more_places_shorten_the_line(trace: Trace) -> None:
    alone, many = (
        run(trace, Tiers(100, costs=Costs(concurrency=concurrency))) for concurrency in (1, 50)
    )
    assert sum(many.queued) < sum(alone.queued)
    assert many.makespan < alone.makespan
    assert many.hits == alone.hits


def test_the_summary_is_ready_for_json(trace: Trace) -> None:
    fields = run(trace, Tiers(100)).as_dict()
    first = fields["predicted_first_token_seconds"]
    assert 0 < first["p50"] <= first["p99"]
    assert fields["hits"][1:] == (0, 0)


def test_what_cannot_be_is_refused(trace: Trace) -> None:
    with pytest.raises(InvalidArgumentError, match="l1_blocks = 0: at least 1"):
        run(trace, Tiers(0))
    with pytest.raises(InvalidArgumentError, match="l3_blocks = -1: at least 0"):
        run(trace, Tiers(1, 0, -1))
    with pytest.raises(ConfigError, match="write_through, write_through_selective or write_back"):
        run(trace, Tiers(1, write_policy="never"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="always, auto or never"):
        run(trace, Tiers(1, restore="some"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="lru"):
        run(trace, Tiers(1, policy=("lru", "lru", "best")))
    with pytest.raises(InvalidArgumentError, match="bandwidth = 0"):
        run(trace, Tiers(1, costs=Costs(l3=Read(0.0, 0.0))))
    with pytest.raises(InvalidArgumentError, match="arrivals and lengths only"):
        run(load(TRACES / "azure.csv", "azure"), Tiers(1))
