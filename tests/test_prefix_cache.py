"""PrefixCache through numpy: the bytes of every block, forks and grids, without a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kvlab import InvalidArgumentError, KvLayout, PrefixCache, Store, StoreClosedError

TOKEN_BYTES = 2 * (2 * 8 + 1 * 4)
NAMESPACE = bytes(range(32))
LAYOUT = KvLayout([(2, 8, 1, 4)], element_bytes=2, block_tokens=16)


@pytest.fixture
def cache() -> Iterator[PrefixCache]:
    with Store.open(None, l1="1MiB", l2="1MiB") as store:
        yield store.prefix_cache(LAYOUT)


def rows_of(ids: Any) -> Any:
    """The KV bytes that stand for a prompt: each token's depend on all tokens up to it."""
    marks = np.cumsum(ids).astype(np.uint8)
    return np.repeat(marks[:, None], TOKEN_BYTES, axis=1)


def fill(buffer: Any, ids: Any) -> None:
    """Writes a prompt's rows into a cache buffer, K heads then V, each ``[capacity, row]``."""
    memory, rows = np.frombuffer(buffer, np.uint8), rows_of(ids)
    for at, start, width in pieces(buffer):
        piece = memory[at : at + buffer.capacity * width].reshape(buffer.capacity, width)
        piece[: len(ids)] = rows[:, start : start + width]


def read(buffer: Any, tokens: int) -> Any:
    memory = np.frombuffer(buffer, np.uint8)
    parts = [
        memory[at : at + buffer.capacity * width].reshape(buffer.capacity, width)[:tokens]
        for at, _, width in pieces(buffer)
    ]
    return np.concatenate(parts, axis=1)


def pieces(buffer: Any) -> list[tuple[int, int, int]]:
    """Offset in the buffer, offset in a token's row, and bytes of a row, of each head."""
    (key, value), capacity = buffer.offsets()[0], buffer.capacity
    return [(key, 0, 16), (key + capacity * 16, 16, 16), (value, 32, 8)]


def ids_of(length: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 1000, length)


def kept(cache: PrefixCache, ids: Any, grid: int = 0) -> Any:
    """The rows that a request for ``ids`` gets back."""
    request, buffer = cache.begin(ids, NAMESPACE, grid=grid), cache.lease(len(ids))
    tokens = sum(request.restore(buffer)["tokens"])
    rows = read(buffer, tokens)
    request.close()
    return rows


def committed(cache: PrefixCache, ids: Any) -> Any:
    request, buffer = cache.begin(ids, NAMESPACE), cache.lease(len(ids))
    request.restore(buffer)
    fill(buffer, ids)
    request.commit(ids, buffer)
    cache.flush()
    return request


def test_two_sides_of_a_fork_write_one_partial_block_each_and_both_are_right(
    cache: PrefixCache,
) -> None:
    common = ids_of(40)
    parent = committed(cache, common)
    child = parent.fork()
    before = parent.sequence()
    assert child is not None
    assert child.sequence() == before
    sides = {
        name: np.concatenate([common, ids_of(30, seed)]) for seed, name in ((1, "p"), (2, "c"))
    }
    for name, request in (("c", child), ("p", parent)):
        buffer = cache.lease(70)
        fill(buffer, sides[name])
        request.commit(sides[name], buffer)
        cache.flush()
        if name == "c":
            assert parent.sequence() == before
        # The first to write copies; the other then has the block to itself.
        assert cache.stats()["l1"]["copies"] == 1
    cache.validate()
    for ids in sides.values():
        assert np.array_equal(kept(cache, ids), rows_of(ids)[:64])
    cache.evict()
    for ids in sides.values():
        assert np.array_equal(kept(cache, ids), rows_of(ids)[:64])
    parent.close()
    child.close()
    cache.validate()


def test_hits_are_rounded_down_to_the_grid(cache: PrefixCache) -> None:
    ids = ids_of(120)
    committed(cache, ids).close()
    for grid, hit in ((0, 112), (16, 112), (32, 96), (48, 96), (128, 0)):
        assert len(kept(cache, ids, grid)) == hit
    with pytest.raises(InvalidArgumentError, match="grid of 24 tokens is no multiple"):
        cache.begin(ids, NAMESPACE, grid=24)


def test_what_is_restored_may_be_evicted_while_its_request_lives(cache: PrefixCache) -> None:
    ids = ids_of(120)
    committed(cache, ids).close()
    request, buffer = cache.begin(ids, NAMESPACE), cache.lease(120)
    assert cache.evict() == 0  # still to be copied
    assert request.restore(buffer)["tokens"] == (112, 0, 0, 0)
    assert cache.evict() == 7
    assert request.fork() is None
    # It can be committed all the same.
    request.commit(ids, buffer)
    cache.flush()
    assert np.array_equal(kept(cache, ids), rows_of(ids)[:112])
    request.close()
    cache.validate()


def test_many_requests_leave_no_trace_in_the_order_of_idle_holds(cache: PrefixCache) -> None:
    for seed in range(300):
        request = committed(cache, ids_of(64, seed % 7))
        fork = request.fork()
        assert fork is not None
        request.close()
        fork.close()
        cache.validate()
    assert cache.stats()["l1"]["sequences"] == 0


def test_a_closed_store_refuses_requests_that_l1_could_serve() -> None:
    store = Store.open(None, l1="1MiB", l2="1MiB")
    cache = store.prefix_cache(LAYOUT)
    committed(cache, ids_of(40)).close()
    store.close()
    for length in (1, 40):
        with pytest.raises(StoreClosedError):
            cache.begin(ids_of(length), NAMESPACE)
    with pytest.raises(StoreClosedError):
        cache.lease(40)
    with pytest.raises(StoreClosedError):
        cache.evict()
