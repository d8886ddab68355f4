"""A fleet of machines with a shared tier, simulated: what has to hold of any trace, and what is known of queues."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlab.errors import ConfigError, InvalidArgumentError
from kvlab.sim import prefix, tiers
from kvlab.sim.fleet import (
    Fleet,
    Load,
    Machine,
    Network,
    Outcome,
    Recorded,
    SharedTier,
    machine_of,
    prepare,
    record,
    simulate,
)
from kvlab.sim.fleet.network import Link, transfer
from kvlab.sim.fleet.routing import ROUTINGS, route
from kvlab.sim.fleet.rule import Cut, Learnt, weigh
from kvlab.sim.fleet.shared import SharedMemory
from kvlab.sim.formats import TraceInfo, read
from kvlab.sim.request import Request
from kvlab.sim.tiers import Costs, Read
from kvlab.sim.trace import Trace
from kvlab.sim.workloads import REQUEST_WORKLOADS

TRACES = Path(__file__).parent / "fixtures" / "traces"
BLOCK = 10
COSTS = Costs((1e-3, 1e-3, 1e-7), 2e-3, 1000, Read(0.0, 1e15), Read(1e-4, 1e9), overlap=0.5)
MACHINE = Machine("test", COSTS, "given")
BLOCK_BYTES = BLOCK * COSTS.token_bytes
FAST = Network(
    machine_gigabits=1e4, server_gigabits=1e4, round_trip=0.0, key_seconds=0.0, read_seconds=0.0
)


@st.composite
def prompts(draw: st.DrawFn) -> list[Request]:
    """Prompts that go on from a prefix of an earlier one, at times that are all different."""
    known: list[list[int]] = [[]]
    requests = []
    fresh, at = 0, 0.0
    for number in range(draw(st.integers(1, 30))):
        before = known[draw(st.integers(0, len(known) - 1))]
        more = draw(st.integers(0, 6))
        kept = before[: draw(st.integers(0, len(before)))]
        blocks = [*kept, *range(fresh, fresh + more)]
        fresh += more
        known.append(blocks)
        at += draw(st.integers(1, 2000))
        tokens = max(1, len(blocks) * BLOCK - draw(st.integers(0, BLOCK - 1)))
        session = f"s{draw(st.integers(0, 5))}" if number % 2 else None
        requests.append(Request(at, blocks, tokens, draw(st.integers(0, 9)), session))
    return requests


def recorded_of(requests: list[Request]) -> Recorded:
    return record(iter(requests), TraceInfo("drawn", BLOCK))


def fleet_of(
    requests: list[Request],
    machines: int = 1,
    routing: str = "round-robin",
    *,
    l1_blocks: int | None = None,
    l2_blocks: int | None = 0,
) -> Fleet:
    return prepare(
        Load.as_recorded(recorded_of(requests)),
        MACHINE,
        machines,
        routing=routing,
        l1_bytes=None if l1_blocks is None else l1_blocks * BLOCK_BYTES,
        l2_bytes=None if l2_blocks is None else l2_blocks * BLOCK_BYTES,
        workers=1,
    )


def generated(name: str = "multi_turn_tools", **params: int) -> Recorded:
    workload = REQUEST_WORKLOADS[name]
    return record(workload.make(seed=7, **params), TraceInfo(name, 16))


@settings(max_examples=60, deadline=None)
@given(prompts())
def test_stretches_are_the_trace(requests: list[Request]) -> None:
    recorded = recorded_of(requests)
    trace = Trace.from_requests(requests, TraceInfo("drawn", BLOCK))
    nodes = trace.core.prefix_ids()
    assert recorded.unique_blocks == nodes.unique_blocks
    begin = 0
    names: dict[int, int] = {}
    for request, end in enumerate(recorded.stretch_ends.tolist()):
        path = [
            block
            for stretch in recorded.stretches[begin:end].tolist()
            for block in range(
                recorded.starts[stretch], recorded.starts[stretch] + recorded.lengths[stretch]
            )
        ]
        # The same tree, whatever its blocks are called.
        for ours, theirs in zip(path, nodes.blocks(request), strict=True):
            assert names.setdefault(ours, theirs) == theirs
        begin = end
    assert len(set(names.values())) == len(names)


@settings(max_examples=40, deadline=None)
@given(prompts(), st.integers(1, 12), st.sampled_from([0, 3, 9, None]))
def test_one_machine_without_l4_is_the_simulator_of_tiers(
    requests: list[Request], l1: int, l2: int | None
) -> None:
    found = simulate(fleet_of(requests, l1_blocks=l1, l2_blocks=l2))
    trace = Trace.from_requests(requests, TraceInfo("drawn", BLOCK))
    wanted = tiers.run(trace, tiers.Tiers(l1, l2, 0, restore="always", costs=COSTS))
    assert (*found.hits[:2], 0) == wanted.hits
    assert found.hits[2] == 0
    assert found.computed_tokens == wanted.recomputed_tokens
    assert found.tokens == wanted.tokens
    # Arrivals count from the first one, and bytes of a partial block from its tokens there.
    np.testing.assert_allclose(found.queued, wanted.queued, atol=1e-3)
    np.testing.assert_allclose(found.first_token, wanted.first_token, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(prompts(), st.integers(1, 12), st.sampled_from([1e-3, 1.0, 1e4]))
def test_one_machine_finds_in_an_infinite_l4_only_what_an_infinite_tier_of_its_own_would_have(
    requests: list[Request], l1: int, gigabits: float
) -> None:
    network = replace(FAST, machine_gigabits=gigabits, server_gigabits=gigabits)
    found = simulate(fleet_of(requests, l1_blocks=l1), network, SharedTier())
    trace = Trace.from_requests(requests, TraceInfo("drawn", BLOCK))
    ideal = prefix.run(trace, capacity_blocks=None)
    assert sum(found.hits) <= ideal.hits
    assert found.hits[0] == prefix.run(trace, capacity_blocks=l1).hits
    # Found and left alone by the rule counts as found; what was still under way does not.
    assert sum(found.hits) + found.left_alone <= ideal.hits


@settings(max_examples=40, deadline=None)
@given(prompts(), st.integers(1, 4), st.integers(1, 12), st.integers(1, 3))
def test_bytes_are_those_of_the_blocks(
    requests: list[Request], machines: int, l1: int, servers: int
) -> None:
    fleet = fleet_of(requests, machines, l1_blocks=l1)
    found = simulate(fleet, FAST, SharedTier(servers=servers))
    assert found.read_bytes == found.hits[2] * BLOCK_BYTES
    assert found.written_bytes % BLOCK_BYTES == 0
    whole = sum(len(request.blocks) for request in requests)
    assert found.blocks == whole
    # Each block that was not found anywhere was written, once by each machine at most.
    unique = fleet.load.recorded.unique_blocks
    assert unique <= found.written_bytes // BLOCK_BYTES + sum(found.hits[:2])
    assert found.written_bytes // BLOCK_BYTES <= whole - sum(found.hits)


@settings(max_examples=30, deadline=None)
@given(prompts(), st.integers(1, 3), st.integers(1, 12))
def test_an_l4_without_memory_is_none(requests: list[Request], machines: int, l1: int) -> None:
    fleet = fleet_of(requests, machines, l1_blocks=l1)
    without = simulate(fleet, FAST)
    empty = simulate(fleet, FAST, SharedTier(server_bytes=0))
    assert empty.hits == without.hits
    assert empty.read_bytes == 0
    np.testing.assert_array_equal(empty.first_token, without.first_token)


def _apart(requests: list[Request]) -> list[Request]:
    """The same, an hour from each other: nothing is under way when the next one comes."""
    return [replace(each, at_ms=3.6e6 * number) for number, each in enumerate(requests)]


@settings(max_examples=40, deadline=None)
@given(prompts(), st.integers(2, 4), st.sampled_from(ROUTINGS))
def test_many_machines_and_an_infinite_l4_find_what_one_machine_would(
    requests: list[Request], machines: int, routing: str
) -> None:
    requests = _apart(requests)
    together = simulate(fleet_of(requests, machines, routing), FAST, SharedTier())
    alone = simulate(fleet_of(requests))
    assert sum(together.hits) == alone.hits[0]
    assert together.computed_tokens == alone.computed_tokens
    # At once, some are under way: never more is found.
    busy = simulate(fleet_of(requests, machines, routing), Network(), SharedTier())
    assert sum(busy.hits) <= alone.hits[0]


@settings(max_examples=25, deadline=None)
@given(prompts(), st.integers(1, 3), st.integers(1, 6))
def test_more_bandwidth_makes_the_median_no_worse(
    requests: list[Request], machines: int, l1: int
) -> None:
    fleet = fleet_of(_apart(requests), machines, l1_blocks=l1)
    medians = [
        simulate(
            fleet,
            replace(FAST, machine_gigabits=gigabits, server_gigabits=gigabits),
            SharedTier(),
        ).first_token_at(0.5)
        for gigabits in (1e-4, 1e-3, 1e-2, 1.0, 1e3)
    ]
    # The rule takes all of what it finds if that loses less than its margin.
    for slower, faster in pairwise(medians):
        assert faster <= slower * 1.05 + 0.002 + 1e-9
    assert medians[-1] <= simulate(fleet, FAST).first_token_at(0.5) + 1e-9


@pytest.mark.parametrize("load", [0.3, 0.6, 0.9])
def test_a_link_waits_as_m_d_1_says(load: float) -> None:
    """Pollaczek and Khinchine: the mean wait is load / (2 (1 - load)) services."""
    draw = random.Random(11)
    link, at, waited, count = Link(100.0), 0.0, 0.0, 200_000
    for _ in range(count):
        at += draw.expovariate(load)
        waited += link.send(at, 100) - at
    assert waited / count == pytest.approx(load / (2 * (1 - load)), rel=0.05)


def test_a_transfer_takes_the_slower_link_and_waits_for_both() -> None:
    source, target = Link(10.0), Link(5.0)
    assert transfer(source, target, 0.0, 100) == 20.0
    # The source is free at 10, the target at 20.
    assert transfer(source, Link(100.0), 0.0, 100) == 20.0
    assert transfer(Link(10.0), target, 0.0, 50) == 30.0
    assert transfer(Link(10.0), Link(10.0), 0.0, 50, most=2.0) == 25.0


def test_memory_gives_up_what_was_unused_for_longest() -> None:
    memory = SharedMemory(5)
    memory.store(1, 2)
    memory.store(2, 3)
    assert memory.find(1) == 2
    memory.store(3, 2)
    assert [memory.peek(key) for key in (1, 2, 3)] == [2, 0, 2]
    assert (memory.held, memory.evicted, memory.refused) == (4, 3, 0)
    memory.store(4, 6)
    assert (memory.peek(4), memory.refused) == (0, 6)
    memory.store(3, 3)
    assert (memory.peek(3), memory.held) == (3, 5)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 30), st.floats(1e5, 1e9), st.floats(0.0, 2.0), st.sampled_from([0.0, 0.5, 0.9])
)
def test_the_rule_decides_as_the_live_one(
    blocks: int, bandwidth: float, latency: float, overlap: float
) -> None:
    """One run in L3 of the simulator of tiers, which runs the live rule; all of it or nothing is taken."""
    read = Read(latency, bandwidth)
    costs = replace(COSTS, l3=read, overlap=overlap, token_bytes=1000, concurrency=9)
    prompt = list(range(blocks))
    requests = [
        Request(at, ids, len(ids) * BLOCK) for at, ids in ((0, prompt), (1, [1000]), (2, prompt))
    ]
    trace = Trace.from_requests(requests, TraceInfo("three", BLOCK))
    live = tiers.run(trace, tiers.Tiers(1, 0, None, restore="auto", costs=costs))
    tokens = blocks * BLOCK
    here = live.hits[0]

    def total(context: int, seconds: float) -> float:
        once, token, attended = costs.prefill
        rest = tokens - context
        forward = once + token * rest + attended * rest * (context + rest / 2)
        return seconds + forward - overlap * min(seconds, forward)

    runs = (blocks - here) * BLOCK * costs.token_bytes
    seconds = latency + runs / bandwidth
    cuts = [
        Cut(0, 0.0, total(here * BLOCK, 0.0)),
        Cut(blocks - here, seconds, total(tokens, seconds)),
    ]
    chosen, _ = weigh(cuts)
    assert chosen.blocks == live.hits[2]


def test_what_is_left_alone_is_tried_again() -> None:
    learnt = Learnt()
    cuts = [Cut(0, 0.0, 1.0), Cut(5, 1.2, 1.2)]
    asked = 0
    for _ in range(200):
        if learnt.asks():
            asked += 1
            if learnt.choose(cuts).blocks:
                learnt.read(1.2, 1.2, 1.2)
    # One in 16 asks, and then tries.
    assert 200 // 16 <= asked <= 200 // 16 * 3


def test_a_machine_learns_how_slow_the_servers_are() -> None:
    learnt = Learnt()
    for _ in range(9):
        learnt.read(1.0, 1.0, 3.0)
    assert learnt.slower == 3.0
    for _ in range(4):
        learnt.read(1.0, 3.0, 1.0)
    assert learnt.slower == 3.0
    learnt.read(1.0, 3.0, 1.0)
    assert learnt.slower == 1.0


@pytest.mark.parametrize("routing", ROUTINGS)
def test_routings(routing: str) -> None:
    recorded = generated(sessions=12)
    load = Load.as_recorded(recorded)
    chosen = route(load, 4, routing, MACHINE, seed=3)
    assert set(chosen.tolist()) == {0, 1, 2, 3}
    np.testing.assert_array_equal(chosen, route(load, 4, routing, MACHINE, seed=3))
    if routing == "sticky":
        pairs = set(zip(load.conversation.tolist(), chosen.tolist(), strict=True))
        assert len(pairs) == len(set(load.conversation.tolist()))
    if routing == "round-robin":
        assert np.ptp(np.bincount(chosen)) <= 1


def test_replicas_share_what_sessions_share_and_nothing_else() -> None:
    recorded = generated(sessions=6)
    common = int(recorded.lengths[recorded.common].sum())
    own = recorded.unique_blocks - common
    assert 0 < common < own
    # Of one machine, as much work as so many times the trace.
    rate = recorded.work(MACHINE).sum() / recorded.span
    for replicas in (2, 5):
        load = Load.of(recorded, MACHINE, 1, load=replicas * rate, spread=0.0, window=None)
        assert load.replicas == pytest.approx(replicas, rel=0.05)
        found = simulate(prepare(load, MACHINE, 1, workers=1))
        # The last request of the trace is not within it.
        assert found.blocks - found.hits[0] == pytest.approx(common + replicas * own, rel=0.1)


def test_sticky_sessions_hardly_need_a_shared_tier() -> None:
    recorded = generated(sessions=12)
    gained = {}
    for routing in ("sticky", "round-robin"):
        fleet = prepare(Load.as_recorded(recorded), MACHINE, 4, routing=routing, workers=1)
        found = simulate(fleet, FAST, SharedTier())
        gained[routing] = found.hits[2] / found.blocks
    assert gained["sticky"] < gained["round-robin"] / 4


def test_one_server_is_too_few_for_many_machines() -> None:
    recorded = generated(sessions=24)
    load = Load.of(recorded, MACHINE, 8, load=0.7, seed=2)
    fleet = prepare(load, MACHINE, 8, l1_bytes=40 * 16 * 1000, workers=1)
    slow = Network(machine_gigabits=0.05, server_gigabits=0.05)
    outcomes: list[Outcome] = [
        simulate(fleet, slow, SharedTier(servers=servers)) for servers in (1, 8)
    ]
    assert outcomes[0].server_in > outcomes[1].server_in
    assert outcomes[0].first_token_at(0.5) >= outcomes[1].first_token_at(0.5)
    bounded = simulate(fleet, slow, SharedTier(write_queue=4 * 16 * 1000))
    assert bounded.unshared_bytes > 0
    assert bounded.hits[2] < outcomes[0].hits[2]


def test_break_even_is_where_fetching_takes_as_long_as_computing() -> None:
    for model, count in (("llama-3.1-8b", 1), ("llama-3.1-70b", 4)):
        machine = machine_of(model, count=count)
        gigabits = machine.break_even_gigabits(2048)
        bytes_ = 2048 * machine.costs.token_bytes
        assert bytes_ * 8 / gigabits / 1e9 == pytest.approx(machine.prefill(2048, 0))
        assert machine.break_even_gigabits(32_768) < gigabits


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="accelerator = abacus: use one of: a100"):
        machine_of("llama-3.1-8b", accelerator="abacus")
    with pytest.raises(InvalidArgumentError, match="mfu = 2"):
        machine_of("llama-3.1-8b", mfu=2)
    with pytest.raises(InvalidArgumentError, match="give --prefill-tokens-per-second"):
        machine_of("llama-2-7b")
    assert machine_of("llama-2-7b", tokens_per_second=100).prefill(50, 0) == 0.5
    with pytest.raises(InvalidArgumentError, match="server_gigabits = 0"):
        Network(server_gigabits=0)
    with pytest.raises(InvalidArgumentError, match="round_trip = -1"):
        Network(round_trip=-1)
    source = read(TRACES / "azure.csv", "azure")
    with pytest.raises(InvalidArgumentError, match="no blocks of one size"):
        record(source, source.info)
    recorded = generated(sessions=2)
    with pytest.raises(InvalidArgumentError, match="load = 0"):
        Load.of(recorded, MACHINE, 1, load=0)
    load = Load.as_recorded(recorded)
    with pytest.raises(ConfigError, match="routing = best: use one of: round-robin"):
        prepare(load, MACHINE, 1, routing="best")
    with pytest.raises(InvalidArgumentError, match="L1 of 10 bytes"):
        prepare(load, MACHINE, 1, l1_bytes=10)
    fleet = prepare(load, MACHINE, 1, workers=1)
    with pytest.raises(InvalidArgumentError, match="servers = 0"):
        simulate(fleet, shared=SharedTier(servers=0))
    with pytest.raises(InvalidArgumentError, match="no request is left"):
        simulate(fleet, warm_up=1e9)
