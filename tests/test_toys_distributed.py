"""The shared tier's toy: rendezvous hashing moves what it must, and break-even is where both ways take as long."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toy_runs

sys.path.insert(0, str(toy_runs.TOYS))

from distributed import MACHINES, ROUND_TRIPS, break_even, modulo, rendezvous

NAMES = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=9, unique=True)


@settings(deadline=None, max_examples=25)
@given(NAMES, st.lists(st.text(max_size=12), min_size=1, max_size=30, unique=True), st.data())
def test_only_the_keys_of_the_dead_move(
    servers: list[str], keys: list[str], data: st.DataObject
) -> None:
    dead = data.draw(st.sampled_from(servers))
    left = [server for server in servers if server != dead]
    for key in keys:
        before, after = rendezvous(key, servers), rendezvous(key, left)
        assert before in {after, dead}
        # The order in which a client lists the servers decides nothing.
        assert rendezvous(key, data.draw(st.permutations(servers))) == before


def test_modulo_moves_most(tmp_path: Path) -> None:
    shown = toy_runs.quick("distributed", tmp_path)
    for ours, plain in zip(shown["placed"]["rendezvous"], shown["placed"]["modulo"], strict=True):
        count = ours["servers"]
        assert ours["dies"] == pytest.approx(1 / count, abs=0.1)
        assert plain["dies"] == pytest.approx(1 - 1 / count, abs=0.1)
        assert ours["fullest"] < 2


def test_modulo_is_even() -> None:
    servers = ["a", "b", "c"]
    assert {modulo(str(key), servers) for key in range(50)} == set(servers)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine[0])
def test_the_shortest_prefix_is_where_fetching_begins_to_win(
    machine: tuple[str, str, int, float, str],
) -> None:
    found = break_even(*machine)
    # The two prefixes that were computed give the two parts of the cost back.
    (short, long), (first, second) = (2_048, 32_768), found["compute_seconds"]
    square = (second / long - first / short) / (long - short)
    linear = first / short - square * short
    checked = 0
    for row in found["rows"]:
        shortest = row["shortest_tokens"]
        wire = found["kv_bytes_per_token"] * 8 / (row["gigabits"] * 1e9)
        for tokens in (1, shortest - 1, shortest) if shortest else (1, 131_072):
            computing = linear * tokens + square * tokens**2
            assert (ROUND_TRIPS + wire * tokens < computing) == (
                shortest is not None and tokens >= shortest
            )
            checked += tokens > 0
        if row["gigabits"] > found["any_prefix_gigabits"]:
            assert shortest is not None
    assert checked > len(found["rows"])
