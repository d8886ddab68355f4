"""Tables of results: written, summed up, compared; and advice on traces that are made to ask for it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlab.errors import InvalidArgumentError
from kvlab.sim import prefix
from kvlab.sim.advise import Budget, advise
from kvlab.sim.cost_file import ASSUMED
from kvlab.sim.experiments.compare import compare
from kvlab.sim.experiments.parallel import run_all
from kvlab.sim.experiments.table import Row, summarise, to_csv, to_json
from kvlab.sim.formats import TraceInfo
from kvlab.sim.request import Request
from kvlab.sim.trace import Trace

NUMBERS = st.floats(min_value=0, max_value=1e9)


@st.composite
def tables(draw: st.DrawFn) -> list[Row]:
    """Policies by seeds, with a metric that should grow and one that should not."""
    policies = draw(st.lists(st.sampled_from(["lru", "sieve", "arc"]), min_size=1, unique=True))
    seeds = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True))
    return [
        {"policy": policy, "seed": seed, "hit_ratio": draw(NUMBERS), "misses": draw(NUMBERS)}
        for policy in policies
        for seed in seeds
    ]


@settings(deadline=None)
@given(tables())
def test_json_comes_back_and_csv_has_a_line_a_row(rows: list[Row]) -> None:
    content = {"kind": "simulated", "rows": rows, "config": {"names": ["a", "b"], "empty": []}}
    assert json.loads(to_json(content)) == content
    assert len(to_csv(rows).splitlines()) == len(rows) + 1


@settings(deadline=None)
@given(tables())
def test_a_summary_has_every_row_once_and_means_between_its_ends(rows: list[Row]) -> None:
    summary = summarise(rows)
    assert sum(int(str(row["n"])) for row in summary) == len(rows)
    for row in summary:
        own = [float(str(each["misses"])) for each in rows if each["policy"] == row["policy"]]
        mean = float(str(row["misses"]))
        assert min(own) - 1e-6 <= mean <= max(own) + 1e-6
        assert ("misses_sd" in row) == (len(own) > 1)


@settings(deadline=None)
@given(tables(), st.data())
def test_what_got_worse_one_way_got_better_the_other(rows: list[Row], data: st.DataObject) -> None:
    assert compare(rows, rows).deltas == []
    other = [{**row, "hit_ratio": data.draw(NUMBERS), "misses": data.draw(NUMBERS)} for row in rows]
    there = compare(rows, other, threshold=0)
    back = compare(other, rows, threshold=0)
    assert [delta.worse for delta in there.deltas] == [not delta.worse for delta in back.deltas]
    assert compare(rows, other, threshold=float("inf")).regressions <= there.regressions
    assert compare(rows, other, metrics=["misses"]).rows == len(rows)


def test_a_threshold_lets_little_pass() -> None:
    before: list[Row] = [{"policy": "lru", "misses": 100}]
    after: list[Row] = [{"policy": "lru", "misses": 102}]
    assert compare(before, after, threshold=1).regressions == 1
    assert compare(before, after, threshold=3).regressions == 0
    none: list[Row] = [{"policy": "lru", "misses": 0}]
    assert compare(none, after, threshold=1000).regressions == 1
    with pytest.raises(InvalidArgumentError, match="two rows of"):
        compare(before * 2, after)


def test_results_come_in_order_and_the_first_failure_ends_it() -> None:
    done: list[int] = []
    squares = [partial(pow, n, 2) for n in range(20)]
    assert run_all(squares, workers=3, progress=done.append) == [n * n for n in range(20)]
    assert done[-1] == 20
    calls: list[int] = []

    def fail() -> int:
        raise KeyError("broken")

    def count() -> int:
        time.sleep(0.002)
        calls.append(1)
        return 1

    with pytest.raises(KeyError, match="broken"):
        run_all([fail, *[count] * 5000], workers=1)
    assert len(calls) < 5000
    with pytest.raises(InvalidArgumentError, match="workers = 0"):
        run_all(squares, workers=0)


def trace_of(prompts: Iterable[int]) -> Trace:
    """Prompts of 4 blocks of 16 tokens, by number."""
    requests = (
        Request(at_ms=float(at), blocks=range(4 * prompt, 4 * prompt + 4), tokens=64)
        for at, prompt in enumerate(prompts)
    )
    return Trace.from_requests(requests, TraceInfo(name="made", block_tokens=16))


def test_a_sample_with_or_without_the_block_of_all_prompts_tells_the_same() -> None:
    # 40 tails behind one block: in the sample it is half of all uses, without it none.
    requests = [Request(at_ms=float(n), blocks=(0, 1 + n * 7 % 40), tokens=32) for n in range(4000)]
    trace = Trace.from_requests(requests, TraceInfo(name="hot", block_tokens=16))
    exact = prefix.run(trace, capacity_blocks=80).hit_ratio
    for seed in range(6):
        (near,) = prefix.sampled_curve(trace, [80], policy="lru", rate=0.5, seed=seed)
        assert near == pytest.approx(exact, abs=0.02)
    assert prefix.sampled_curve(trace, [20], policy="sieve", rate=1.0) == [
        prefix.run(trace, policy="sieve", capacity_blocks=20).hit_ratio
    ]


SMALL = replace(ASSUMED, costs=replace(ASSUMED.costs, token_bytes=1))


def test_a_loop_wants_another_policy_than_prompts_that_come_three_times_in_a_row() -> None:
    budget = Budget(memory=16 * 24, disk=0)
    loop = advise(trace_of(n % 10 for n in range(1200)), budget, SMALL, policies=["mru"])
    assert loop.policy == "mru"
    assert loop.confidence.level == "high"
    assert loop.confidence.gain > 0.2
    assert loop.expected["predicted_percent_saved_against_lru"] > 20
    passing = advise(trace_of(n // 3 for n in range(1200)), budget, SMALL, policies=["mru"])
    assert passing.policy == "lru"
    assert passing.expected["percent_of_oracle"] == 100
    assert passing.expected["predicted_percent_saved_against_lru"] == 0


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 60), st.integers(0, 80), st.integers(1, 12))
def test_advice_stays_within_any_budget(memory: int, disk: int, prompts: int) -> None:
    trace = trace_of(n % prompts for n in range(60))
    advice = advise(
        trace, Budget(16 * memory, 16 * disk), SMALL, policies=["lru", "sieve"], resamples=100
    )
    assert 16 <= advice.sizes["l1"] <= advice.sizes["l1"] + advice.sizes["l2"] <= 16 * memory
    assert advice.sizes["l3"] <= 16 * disk
    assert advice == advise(
        trace,
        Budget(16 * memory, 16 * disk),
        SMALL,
        policies=["lru", "sieve"],
        resamples=100,
        workers=1,
    )
