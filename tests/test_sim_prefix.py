"""Prefix and flat mode: against block-level models, and what they refuse."""

from __future__ import annotations

import random
from array import array
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_pattern import LAYOUT, K, serve
from kvlab import BlockStore, Store, _core
from kvlab.errors import ConfigError, InvalidArgumentError
from kvlab.sim import Request, capture, prefix
from kvlab.sim.formats import TraceInfo
from kvlab.sim.runs import Runs
from kvlab.sim.trace import Trace, load

TRACES = Path(__file__).parent / "fixtures" / "traces"


def trace(*prompts: list[int], block_tokens: int = 10) -> Trace:
    requests = [
        Request(
            at_ms=float(at), blocks=blocks, tokens=max(0, len(blocks) * 10 - 4), output_tokens=1
        )
        for at, blocks in enumerate(prompts)
    ]
    return Trace.from_requests(requests, TraceInfo("made up", block_tokens=block_tokens))


@st.composite
def conversations(draw: st.DrawFn) -> list[list[int]]:
    """Prompts that go on from prefixes of earlier ones; an id stands for its block and all before it."""
    prompts: list[list[int]] = [[]]
    ids = iter(range(10_000))
    for _ in range(draw(st.integers(1, 25))):
        before = draw(st.sampled_from(prompts))
        keep = draw(st.integers(0, len(before)))
        prompts.append(before[:keep] + [next(ids) for _ in range(draw(st.integers(0, 6)))])
    return prompts[1:]


def tail_first_lru(prompts: list[list[int]], capacity: int) -> tuple[list[int], int]:
    """Hits by request and evictions: a dict of when each block was used, searched for the oldest."""
    used: dict[int, int] = {}
    clock = evictions = 0
    found = []
    for blocks in prompts:
        hits = next((at for at, block in enumerate(blocks) if block not in used), len(blocks))
        kept = blocks[:capacity]
        while len(used) + len(kept) - hits > capacity:
            oldest = min(
                (block for block in used if block not in blocks[:hits]), key=used.__getitem__
            )
            del used[oldest]
            evictions += 1
        for block in reversed(kept):
            clock += 1
            used[block] = clock
        found.append(hits)
    return found, evictions


@settings(max_examples=60, deadline=None)
@given(prompts=conversations(), capacity=st.integers(1, 30))
def test_lru_is_tail_first_lru_of_blocks(prompts: list[list[int]], capacity: int) -> None:
    hits, evictions = tail_first_lru(prompts, capacity)
    run = prefix.run(trace(*prompts), capacity_blocks=capacity)
    assert run.hits_by_request.tolist() == hits
    assert (run.hits, run.evictions) == (sum(hits), evictions)
    (curve,) = prefix.lru_curve(trace(*prompts), [capacity])
    assert curve == run.hits


@settings(max_examples=40, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=25),
    capacity=st.integers(1, 8),
)
def test_flat_lru_is_an_ordered_dict(prompts: list[list[int]], capacity: int) -> None:
    cache: dict[int, None] = {}
    hits = 0
    for block in (block for blocks in prompts for block in blocks):
        hits += block in cache
        if block not in cache and len(cache) == capacity:
            del cache[next(iter(cache))]
        cache.pop(block, None)
        cache[block] = None
    run = prefix.run(trace(*prompts), capacity_blocks=capacity, mode="flat")
    assert run.hits == hits
    assert prefix.lru_curve(trace(*prompts), [capacity], mode="flat") == [hits]


@settings(max_examples=30, deadline=None)
@given(prompts=conversations())
def test_a_cache_that_holds_all_finds_what_was_there(prompts: list[list[int]]) -> None:
    seen: set[int] = set()
    hits = []
    for blocks in prompts:
        hits.append(sum(block in seen for block in blocks))
        seen.update(blocks)
    for policy in prefix.policies():
        run = prefix.run(trace(*prompts), policy=policy, capacity_blocks=None)
        assert run.hits_by_request.tolist() == hits
        assert (run.evictions, run.refused_blocks) == (0, 0)


@pytest.mark.parametrize("mode", ["prefix", "flat"])
def test_every_policy_counts_what_adds_up(mode: prefix.Mode) -> None:
    mooncake = load(TRACES / "mooncake.jsonl", "mooncake")
    ideal = prefix.run(mooncake, capacity_blocks=None, mode=mode)
    best = prefix.run(mooncake, policy="belady_bypass", capacity_blocks=100, mode=mode)
    for policy in prefix.policies(mode):
        run = prefix.run(mooncake, policy=policy, capacity_blocks=100, mode=mode)
        assert run.hits == sum(run.hits_by_request) <= best.hits <= ideal.hits
        assert run.peak_blocks <= 100
        assert run.tokens == run.hit_tokens + run.recomputed_tokens == mooncake.tokens
        assert run.hit_ratio == run.hits / mooncake.block_refs
        again = prefix.run(mooncake, policy=policy, capacity_blocks=100, mode=mode)
        assert again.hits_by_request == run.hits_by_request


def test_a_request_that_is_larger_than_the_cache_keeps_its_head() -> None:
    run = prefix.run(trace([0, 1, 2, 3, 4], [0, 1, 2, 3, 4]), capacity_blocks=3)
    assert run.hits_by_request.tolist() == [0, 3]
    assert run.refused_blocks == 4


def test_tokens_of_a_partial_block_are_not_counted_twice() -> None:
    run = prefix.run(trace([0, 1], [0, 1]), capacity_blocks=5)
    assert (run.hits, run.hit_tokens, run.recomputed_tokens) == (2, 16, 16)
    even = prefix.run(trace([0, 1], [0, 2], block_tokens=0), capacity_blocks=5)
    assert even.hit_tokens == 8


def test_pieces_have_lengths_of_their_own() -> None:
    pulse = load(TRACES / "ragpulse.jsonl", "ragpulse")
    run = prefix.run(pulse, capacity_blocks=None)
    assert 0 < run.hit_tokens < run.tokens
    plain = prefix.run(pulse, capacity_blocks=None, mode="flat")
    assert plain.hits > run.hits


def test_stretches_are_the_ids_they_stand_for() -> None:
    plain = trace([3, 4, 9], [3, 4, 5], [3, 4, 9, 10])
    runs = Trace.from_requests(
        [
            Request(0, Runs([3, 2, 9, 1]), 26),
            Request(1, [3, 4, 5], 26),
            Request(2, Runs([3, 2, 9, 2]), 36),
        ],
        TraceInfo("made up", block_tokens=10),
    )
    for index in range(3):
        assert runs.core.blocks(index) == plain.core.blocks(index)


def test_an_empty_trace_has_no_hits() -> None:
    for empty in (trace(), trace([], [])):
        run = prefix.run(empty, capacity_blocks=5)
        assert (run.block_refs, run.hit_ratio, run.token_hit_ratio) == (0, 0.0, 0.0)
        assert prefix.lru_curve(empty, [1, 5]) == [0, 0]


def test_progress_is_told_and_may_end_a_replay() -> None:
    many = trace(*[[number] for number in range(3000)])
    told: list[tuple[int, int]] = []
    prefix.run(many, capacity_blocks=5, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (3000, 3000)
    assert len(told) > 1

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prefix.run(many, capacity_blocks=5, progress=stop)


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_cache_of_no_blocks_is_refused(capacity: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{capacity}"):
        prefix.run(trace([1]), capacity_blocks=capacity)
    with pytest.raises(InvalidArgumentError, match=f"{capacity} blocks"):
        prefix.lru_curve(trace([1]), [capacity])


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"lru, .*belady"):
        prefix.run(trace([1]), policy="least", capacity_blocks=1)
    with pytest.raises(ConfigError, match="prefix, flat"):
        prefix.policies("flatter")  # type: ignore[arg-type]


def test_a_trace_without_blocks_has_no_hit_ratio() -> None:
    with pytest.raises(InvalidArgumentError, match="arrivals and lengths only"):
        prefix.run(load(TRACES / "azure.csv", "azure"), capacity_blocks=5)


def test_requests_that_go_back_in_time_or_have_no_ids_are_refused() -> None:
    info = TraceInfo("made up", block_tokens=10)
    with pytest.raises(InvalidArgumentError, match="a request at 1 ms follows one at 2 ms"):
        Trace.from_requests([Request(2, [1], 5), Request(1, [1], 5)], info)
    with pytest.raises(InvalidArgumentError, match="no integer from 0"):
        Trace.from_requests([Request(2, [-1], 5)], info)


def test_a_builder_is_used_once() -> None:
    builder = _core.SimTraceBuilder()
    words, ids = array("I", [1]), array("Q", [7])
    builder.push(array("d", [0]), words, ids, words, words, words, words)
    assert builder.finish(16).requests == 1
    with pytest.raises(InvalidArgumentError, match="finished already"):
        builder.finish(16)


def test_a_sample_of_all_blocks_is_exact_and_a_part_is_near() -> None:
    prompts = [[root * 1000 + block for block in range(20)] for root in range(200)]
    weights = [1 / (rank + 1) for rank in range(len(prompts))]
    big = trace(*random.Random(5).choices(prompts, weights, k=1500))
    sizes = [400, 1000, 2000]
    for policy in ("lru", "belady"):
        exact = [prefix.run(big, policy=policy, capacity_blocks=size).hit_ratio for size in sizes]
        assert prefix.sampled_curve(big, sizes, policy=policy, rate=1.0) == exact
        near = prefix.sampled_curve(big, sizes, policy=policy, rate=0.25, seed=3)
        assert near == pytest.approx(exact, abs=0.1)
    with pytest.raises(InvalidArgumentError, match="above 0 and at most 1"):
        prefix.sampled_curve(big, sizes, policy="lru", rate=0.0)


def test_a_capture_of_a_live_store_is_a_trace(tmp_path: Path) -> None:
    file = tmp_path / "capture"
    block = K
    prompts = [list(range(6 * block + 1)), [*range(4 * block), *range(900, 900 + 3 * block)]]
    with Store.open(None, l1="4MiB", l2=0, capture=file) as store:
        cache = store.prefix_cache(LAYOUT)
        for tokens in [*prompts, prompts[0]]:
            serve(cache, b"n" * 32, tokens)
    captured = load(file, "capture")
    run = prefix.run(captured, capacity_blocks=None)
    assert run.hits_by_request.tolist() == [0, 4, 6]
    assert run.hit_tokens == 10 * block


def test_a_capture_is_replayed_by_the_live_structures(tmp_path: Path) -> None:
    file = tmp_path / "capture"
    prompts = [[*range(4 * K), *range(1000 * n, 1000 * n + (2 + n) * K), 7] for n in range(1, 7)]
    room = 24 * LAYOUT.token_bytes * K
    with Store.open(None, l1=room * 2, l2="1MiB", capture=file) as store:
        cache = store.prefix_cache(LAYOUT)
        for tokens in prompts * 2:
            serve(cache, b"n" * 32, tokens)
        cache.begin(prompts[0], b"n" * 32, category=9).close()
    with pytest.raises(InvalidArgumentError, match="category = -1"):
        cache.begin(prompts[0], b"n" * 32, category=-1)
    orders = capture.replay(file)
    assert {order.tier for order in orders} == {1, 2}
    assert all(order.recorded == order.victims for order in orders)
    assert [order.recorded != [] for order in orders if order.tier == 1] == [True]
    assert [request.category for request in capture.requests(file)] == [""] * 12 + ["9"]

    ideal = capture.rerun(file, policy="arc", l1_blocks=1000)[0]
    assert (ideal.policy, ideal.requests, ideal.evictions, ideal.victims) == ("arc", 13, 0, [])
    assert ideal.hits == prefix.run(load(file, "capture"), capacity_blocks=None).hits
    small = capture.rerun(file, l1_blocks=12)[0]
    assert small.policy == "lru"
    assert small.hits < ideal.hits
    assert small.evictions > 0
    assert (small.l2_hits, small.l3_hits) == (0, 0)
    for l2_blocks, l3_blocks in ((None, 0), (6, None)):
        tiers = capture.rerun(
            file, l1_blocks=12, l2_blocks=l2_blocks, l3_blocks=l3_blocks, run_blocks=2
        )[0]
        assert (tiers.hits, tiers.victims) == (small.hits, small.victims)
        assert tiers.l2_hits + tiers.l3_hits == ideal.hits - small.hits
        assert (tiers.l3_hits > 0) == (l3_blocks is None)
    with pytest.raises(ConfigError, match="use one of: lru, "):
        capture.rerun(file, policy="luck")
    with pytest.raises(InvalidArgumentError, match="0 blocks"):
        capture.rerun(file, l1_blocks=0)


def test_a_block_store_is_captured(tmp_path: Path) -> None:
    file = tmp_path / "capture"
    keys = [bytes([n]) * 32 for n in range(1, 7)]
    with BlockStore.open(None, l2=4 * 65_536, capture=file) as store:
        for key in keys:
            assert store.put(key, b"bytes")
        assert store.get_many(keys)[0] is None
    (order,) = capture.replay(file)
    assert (order.tier, len(order.victims)) == (2, 2)
    assert order.recorded == order.victims
    assert [len(request.blocks) for request in capture.requests(file)] == [6]
