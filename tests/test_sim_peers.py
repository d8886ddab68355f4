"""Hit counts beside those of other simulators: `benches/python/sim_peers.py` where it is quick."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("libcachesim", reason="the 'sim-test' extra is not installed")
pytest.importorskip("kvcache_sim", reason="the 'sim-test' extra is not installed")

sys.path.insert(0, str(Path(__file__).parent.parent / "benches" / "python"))

import sim_peers

from kvlab.sim import Request, prefix
from kvlab.sim.formats import TraceInfo
from kvlab.sim.trace import Trace

FLAT_ALIKE = sum(not differs for _, differs in sim_peers.FLAT.values())


@pytest.mark.parametrize("seed", range(3))
def test_conversations_hit_as_often_as_in_other_simulators(seed: int) -> None:
    sizes = (20, 40, 150)
    found = list(sim_peers.counts(sim_peers.made_up(seed), sizes))
    assert [str(count) for count in found if not count.fine] == []
    # All of flat mode, and of prefix mode at least where its cache filled.
    must = [count for count in found if not count.differs]
    assert len(must) >= len(sizes) * FLAT_ALIKE + 2 * len(sim_peers.PREFIX)


@settings(max_examples=20, deadline=None)
@given(
    blocks=st.lists(st.integers(0, 12), min_size=1, max_size=200),
    size=st.integers(2, 12),
    policy=st.sampled_from(["lru", "fifo", "sieve", "lfu-plain", "belady"]),
)
def test_objects_in_any_order_hit_as_often_as_in_libcachesim(
    blocks: list[int], size: int, policy: str
) -> None:
    requests = (Request(float(at), [block], 1) for at, block in enumerate(blocks))
    trace = Trace.from_requests(requests, TraceInfo("drawn", block_tokens=1))
    make, differs = sim_peers.FLAT[policy]
    assert not differs
    own = prefix.run(trace, policy=policy, capacity_blocks=size, mode="flat").hits
    assert own == sim_peers.flat_hits(make, blocks, size)


def test_a_policy_that_is_another_is_found_out() -> None:
    trace = sim_peers.made_up(0)
    blocks = [block for index in range(len(trace)) for block in trace.core.blocks(index)]
    make, _ = sim_peers.FLAT["fifo"]
    own = prefix.run(trace, policy="lru", capacity_blocks=40, mode="flat").hits
    assert not sim_peers.Count("lru as fifo", own, sim_peers.flat_hits(make, blocks, 40)).fine
