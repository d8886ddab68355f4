"""Whose turn it is, and who waits for whom."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvlab.serve.engine.scheduler import OLDEST_EVERY, next_prefill, shared_prefix, worth_waiting

IDS = st.lists(st.integers(0, 1), min_size=1, max_size=40)


@given(IDS, IDS, st.integers(1, 8))
def test_a_shared_prefix_is_whole_blocks_and_leaves_the_last_token(
    one: list[int], other: list[int], step: int
) -> None:
    shared = shared_prefix(np.array(one), np.array(other), step)
    assert shared % step == 0
    assert shared < len(one)
    assert one[:shared] == other[:shared]
    longer = shared + step
    assert longer >= len(one) or one[:longer] != other[:longer]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 100))
def test_every_prompt_gets_its_chunks_while_short_ones_keep_coming(
    chunks: list[int], start: int
) -> None:
    """The oldest prompt is done after ``OLDEST_EVERY`` turns a chunk, though a new short one comes every turn."""
    left = list(chunks)
    for turn in range(start, start + OLDEST_EVERY * chunks[0] + 1):
        place = next_prefill(left, turn)
        left[place] -= 1
        if left[0] == 0:
            return
        left = [left[0], *(n for n in left[1:] if n > 0), 1]
    raise AssertionError(f"{left[0]} chunks are left of the oldest of {chunks}")


def test_the_shortest_is_first_otherwise() -> None:
    turns = Counter(next_prefill([9, 2, 5], turn) for turn in range(OLDEST_EVERY * 10))
    assert turns == {1: 10 * (OLDEST_EVERY - 1), 0: 10}


def test_what_is_worth_waiting_for() -> None:
    def waits(shared: int, restored: int = 0, rows: int = 0) -> bool:
        return worth_waiting(shared, restored=restored, rows=rows, prompt=4000, chunk=512)

    assert waits(2000)
    assert waits(2000, rows=1536)
    assert waits(128)
    assert not waits(112)  # less than a quarter of the chunk that it comes with
    assert not waits(512, restored=512, rows=512)  # found, not computed
    assert not waits(2000, rows=2000)  # there already
