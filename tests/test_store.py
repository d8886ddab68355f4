"""The whole stack without a model: token ids and bytes in, the same bytes out of every tier."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kv_pattern import LAYOUT, K, compute, data_of, holds, poison, restored, rows_of, serve
from kvlab import (
    CapacityError,
    ConfigError,
    InvalidArgumentError,
    KvLayout,
    PrefixCache,
    Store,
    StoreClosedError,
)

SMALL: dict[str, Any] = {
    "l1": "1MiB",
    "l2": "4MiB",
    "l3": "8MiB",
    "free_reserve": 0,
    "io_workers": 2,
}
A, B = b"a" * 32, b"b" * 32
PROMPT = list(range(1000, 1043))  # 8 whole blocks of 5, and 3 tokens


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("write_policy", ["write_through", "write_back"])
def test_every_tier_gives_back_the_same_bytes(
    tmp_path: Path, write_policy: str, durable: bool
) -> None:
    settings = {**SMALL, "write_policy": write_policy, "durable": durable}
    with Store.open(tmp_path / "store", **settings) as store:
        cache = store.prefix_cache(LAYOUT)
        assert serve(cache, A, PROMPT) == (0, 0, 0, 0)
        assert serve(cache, A, PROMPT) == (40, 0, 0, 0)
        assert cache.evict() > 0
        assert serve(cache, A, PROMPT) == (0, 40, 0, 0)
        assert serve(cache, A, PROMPT) == (40, 0, 0, 0)  # promoted
        store.evict("l2")
        assert serve(cache, A, PROMPT) == (0, 0, 40, 0)
        cache.validate()
    with Store.open(tmp_path / "store", **settings) as store:
        assert serve(store.prefix_cache(LAYOUT), A, PROMPT) == (0, 0, 40, 0)


def test_selective_write_through_writes_what_was_used_twice(tmp_path: Path) -> None:
    settings = {**SMALL, "write_policy": "write_through_selective"}
    with Store.open(tmp_path / "store", **settings) as store:
        cache = store.prefix_cache(LAYOUT)
        serve(cache, A, PROMPT)
        serve(cache, B, PROMPT)
        assert serve(cache, A, [*PROMPT[:20], 1, 2]) == (20, 0, 0, 0)
        store.evict("l2")
        assert store.stats()["refusals"]["too_few_uses"] == 2
        assert serve(cache, A, PROMPT) == (0, 0, 20, 0)
        assert serve(cache, B, PROMPT) == (0, 0, 0, 0)


@pytest.mark.parametrize("stop", ["best_effort", "timeout", "wait_complete"])
def test_a_request_meets_its_prefetch(tmp_path: Path, stop: str) -> None:
    with Store.open(tmp_path / "store", **SMALL, prefetch_policy=stop) as store:
        cache = store.prefix_cache(LAYOUT)
        serve(cache, A, PROMPT)
        store.evict("l2")
        ticket = cache.prefetch(PROMPT, A)
        hits = serve(cache, A, PROMPT)
        assert hits[0] == 0
        assert sum(hits) == 40
        if stop != "best_effort":
            assert hits == (0, 40, 0, 0)
        assert ticket.wait(60)
        with pytest.raises(ConfigError, match="use best_effort, timeout or wait_complete"):
            cache.prefetch(PROMPT, A, stop="soon")


def test_a_conversation_reuses_prompt_and_answer(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", **SMALL) as store:
        cache = store.prefix_cache(LAYOUT)
        history: list[int] = []
        for turn in range(4):
            prompt = [*history, *range(turn * 100, turn * 100 + 13)]
            assert sum(serve(cache, A, prompt, range(7, 15))) == len(history) // K * K
            history = [*prompt, *range(7, 15)]
        store.evict("l2")
        # Four runs, one a turn, are one prefix.
        assert serve(cache, A, [*history, 1]) == (0, 0, len(history) // K * K, 0)


@pytest.mark.parametrize("length", range(1, 13))
def test_a_hit_never_includes_the_last_token(length: int) -> None:
    with Store.open(**SMALL) as store:
        cache = store.prefix_cache(LAYOUT)
        serve(cache, A, PROMPT)
        request = cache.begin(PROMPT[:length], A)
        assert request.found == ((length - 1) // K * K, 0, 0, 0)
        assert request.prompt_tokens == length


@pytest.mark.parametrize("tier", ["l1", "l2", "l3"])
@pytest.mark.parametrize("grid", [0, 1, 5, 15, 20, 50])
def test_hits_round_down_to_the_grid_in_every_tier(tmp_path: Path, grid: int, tier: str) -> None:
    with Store.open(tmp_path / "store", **SMALL) as store:
        cache = store.prefix_cache(LAYOUT)
        serve(cache, A, PROMPT)
        if tier == "l2":
            cache.evict()
        if tier == "l3":
            store.evict("l2")
        request = cache.begin(PROMPT[:38], A, grid=grid)
        expected = 37 // max(grid, K) * max(grid, K)
        assert request.found[["l1", "l2", "l3", "l4"].index(tier)] == sum(request.found) == expected
        buffer = cache.lease(38)
        assert sum(restored(request, buffer)) == expected
        assert holds(buffer, A, PROMPT, expected)


@pytest.mark.parametrize("tier", ["l1", "l2", "l3"])
def test_two_namespaces_never_share(tmp_path: Path, tier: str) -> None:
    with Store.open(tmp_path / "store", **SMALL) as store:
        cache = store.prefix_cache(LAYOUT)
        serve(cache, A, PROMPT)
        if tier == "l2":
            cache.evict()
        if tier == "l3":
            store.evict("l2")
        assert serve(cache, B, PROMPT) == (0, 0, 0, 0)
        assert sum(serve(cache, A, PROMPT)) == 40


def test_a_hit_that_starts_inside_a_run(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", **{**SMALL, "l2": 0}) as store:
        cache = store.prefix_cache(LAYOUT)
        serve(cache, A, PROMPT)
        store.flush()
        assert store.stats()["l3"]["runs"] == 1
        assert cache.evict(3) == 3  # the tail of the only leaf
        assert serve(cache, A, PROMPT) == (25, 0, 15, 0)


@pytest.mark.parametrize("tier", ["l2", "l3"])
def test_a_hit_that_ends_inside_a_run(tmp_path: Path, tier: str) -> None:
    with Store.open(tmp_path / "store", **SMALL) as store:
        cache = store.prefix_cache(LAYOUT)
        serve(cache, A, PROMPT)
        if tier == "l2":
            cache.evict()
        else:
            store.evict("l2")
        expected = (0, 20, 0, 0) if tier == "l2" else (0, 0, 20, 0)
        assert serve(cache, A, [*PROMPT[:22], 5, 5, 5, 5]) == expected
        assert sum(serve(cache, A, [*PROMPT[:22], 5, 5, 5, 5])) == 25
        assert sum(serve(cache, A, PROMPT)) == 40


@pytest.mark.parametrize(("grid", "usable"), [(0, 25), (10, 20)])
def test_damage_in_the_middle_shortens_the_restore_and_says_so(
    tmp_path: Path, grid: int, usable: int
) -> None:
    with Store.open(tmp_path / "store", **SMALL) as store:
        cache = store.prefix_cache(LAYOUT)
        for end in (15, 25, 35, 43):  # a run each
            serve(cache, A, PROMPT[:end])
        store.flush()
        assert store.stats()["l3"]["runs"] == 4
    row = rows_of(A, tuple(PROMPT[:28]))[:131].tobytes()
    (segment,) = (file for file in (tmp_path / "store").rglob("*.seg") if row in file.read_bytes())
    data = bytearray(segment.read_bytes())
    data[data.index(row)] ^= 1
    segment.write_bytes(data)
    with Store.open(tmp_path / "store", **SMALL) as store:
        cache = store.prefix_cache(LAYOUT)
        request = cache.begin(PROMPT, A, grid=grid)
        assert request.found == (0, 0, 40, 0)
        buffer = cache.lease(len(PROMPT))
        poison(buffer)
        outcome = request.restore(buffer)
        assert outcome["tokens"] == (0, 0, usable, 0)
        assert outcome["failure"]
        assert store.stats()["l3"]["corrupt"] == 1
        assert holds(buffer, A, PROMPT, usable)
        # The request goes on by computing the rest, and what was damaged is replaced.
        compute(buffer, A, PROMPT, usable)
        request.commit(PROMPT, buffer)
        request.close()
        store.evict("l2")
        assert serve(cache, A, PROMPT) == (0, 0, 40, 0)


def test_prefetch_brings_a_prompt_to_l2(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", **SMALL) as store:
        cache = store.prefix_cache(LAYOUT)
        serve(cache, A, PROMPT)
        store.evict("l2")
        ticket = cache.prefetch(PROMPT, A)
        assert ticket.wait()
        assert ticket.progress()["loaded"] == 8
        assert serve(cache, A, PROMPT) == (0, 40, 0, 0)


def test_a_fork_goes_on_without_touching_its_parent() -> None:
    with Store.open(**SMALL) as store:
        cache = store.prefix_cache(LAYOUT)
        request, buffer = cache.begin(PROMPT, A), cache.lease(60)
        compute(buffer, A, PROMPT, 0)
        request.commit(PROMPT, buffer)
        fork = request.fork()
        assert fork is not None
        assert fork.found == (40, 0, 0, 0)
        assert fork.sequence() == request.sequence()
        assert cache.stats()["l1"]["saved_blocks"] == 9
        other = [*PROMPT, *range(10)]
        mine = cache.lease(60)
        assert restored(fork, mine) == (40, 0, 0, 0)
        compute(mine, A, other, 40)
        fork.commit(other, mine)
        assert fork.wait_committed()
        blocks, tokens = request.sequence()
        theirs, more = fork.sequence()
        assert (tokens, more) == (43, 53)
        assert blocks[:8] == theirs[:8]
        assert blocks[8] != theirs[8]  # the partial tail was copied before it was written
        assert serve(cache, A, [*PROMPT, *range(100, 110)]) == (40, 0, 0, 0)
        assert serve(cache, A, [*other, 1]) == (50, 0, 0, 0)
        cache.validate()


def test_a_commit_must_go_on_from_what_the_request_holds() -> None:
    with Store.open(**SMALL) as store:
        cache = store.prefix_cache(LAYOUT)
        serve(cache, A, PROMPT)
        other = list(range(43))
        request, buffer = cache.begin(PROMPT, A), cache.lease(43)
        compute(buffer, A, other, 0)
        # Not restored, but its sequence has the blocks of PROMPT all the same.
        with pytest.raises(InvalidArgumentError, match="do not begin with the 40"):
            request.commit(other, buffer)
        with pytest.raises(InvalidArgumentError, match="do not begin with the 40"):
            request.commit(PROMPT[:39], buffer)
        request.close()
        assert serve(cache, A, other) == (0, 0, 0, 0)
        cache.validate()


def test_a_request_whose_blocks_were_given_up_restores_nothing_and_says_why() -> None:
    with Store.open(**{**SMALL, "l2": 0}) as store:
        cache = store.prefix_cache(LAYOUT)
        serve(cache, A, PROMPT)
        request, buffer = cache.begin(PROMPT, A), cache.lease(43)
        assert cache.evict() == 0  # locked
        assert restored(request, buffer) == (40, 0, 0, 0)
        compute(buffer, A, PROMPT, 40)
        request.commit(PROMPT, buffer)
        assert request.wait_committed()
        assert cache.evict() == 8
        assert request.sequence() == ([], 0)
        assert request.fork() is None
        for seed in range(6):  # other KV takes their place
            serve(cache, B, [seed] * 43)
        poison(buffer)
        outcome = request.restore(buffer)
        assert outcome["tokens"] == (0, 0, 0, 0)
        assert "given up" in str(outcome["failure"])
        # It may still commit what it computes.
        compute(buffer, A, PROMPT, 0)
        request.commit(PROMPT, buffer)
        assert request.wait_committed()
        assert serve(cache, A, PROMPT) == (40, 0, 0, 0)
        cache.validate()


def test_threads_serve_and_evict_at_once(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", **{**SMALL, "l1": "1536KiB"}) as store:
        cache = store.prefix_cache(LAYOUT)

        def work(seed: int) -> int:
            rng, reused = random.Random(seed), 0
            for _ in range(25):
                prompt = PROMPT[: rng.randrange(12, 43)] + [rng.randrange(3)] * rng.randrange(8)
                reused += sum(serve(cache, rng.choice([A, B]), prompt))
                if rng.random() < 0.3:
                    cache.evict(rng.randrange(20))
                if rng.random() < 0.1:
                    store.evict("l2")
            return reused

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(work, range(4))) > 0
        cache.validate()
        store.flush()
        stats = cache.stats()["l1"]
        assert stats["protected"] == stats["private"] == stats["in_flight"] == 0
        assert stats["sequences"] == 0


def test_a_closed_store_refuses_and_its_open_requests_end() -> None:
    store = Store.open(**SMALL)
    cache = store.prefix_cache(LAYOUT)
    serve(cache, A, PROMPT)
    request, buffer = cache.begin(PROMPT, A), cache.lease(43)
    store.close()
    store.close()
    calls: list[Callable[[], object]] = [
        lambda: request.restore(buffer),
        lambda: request.commit(PROMPT, buffer),
        request.fork,
        lambda: cache.begin(PROMPT, A),
        lambda: cache.lease(1),
        lambda: cache.prefetch(PROMPT, A),
        cache.evict,
        cache.flush,
        lambda: store.prefix_cache(LAYOUT),
        store.flush,
        store.evict,
        store.clear,
        store.stats,
        lambda: store.blocks.get(A),
    ]
    for call in calls:
        with pytest.raises(StoreClosedError):
            call()
    request.close()
    with pytest.raises(StoreClosedError):
        request.sequence()
    cache.validate()
    assert cache.stats()["l1"]["protected"] == 0
    assert data_of(buffer).shape == (buffer.nbytes,)  # memory outlives the store


def test_clear_forgets_every_tier(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", **SMALL) as store:
        cache = store.prefix_cache(LAYOUT)
        serve(cache, A, PROMPT)
        store.clear()
        assert serve(cache, A, PROMPT) == (0, 0, 0, 0)
        store.evict("l2")
        store.clear()
        assert cache.begin(PROMPT, A).found == (0, 0, 0, 0)
        assert store.stats()["l3"]["runs"] == 0


def test_l1_too_small_says_what_a_block_takes() -> None:
    with (
        Store.open(l1=2 * LAYOUT.block_bytes - 2, l2=0) as store,
        pytest.raises(ConfigError, match=f"l1 = .*{LAYOUT.block_bytes} bytes"),
    ):
        store.prefix_cache(LAYOUT)


def test_layouts_share_one_budget() -> None:
    other = KvLayout([(1, 4, 1, 4)], element_bytes=2, block_tokens=4)
    with Store.open(**SMALL) as store:
        first = store.prefix_cache(LAYOUT, l1="768KiB")
        assert store.prefix_cache(KvLayout(**shape())).layout == first.layout
        with pytest.raises(CapacityError, match=r"l1: .*larger l1"):
            store.prefix_cache(other, l1="512KiB")
        second = store.prefix_cache(other)
        assert second.layout == other != LAYOUT
        with pytest.raises(CapacityError):
            store.prefix_cache(KvLayout([(1, 8, 1, 8)], element_bytes=2))
        assert len(store.stats()["caches"]) == 2
        serve(first, A, PROMPT)
        request = first.begin(PROMPT, A)
        with pytest.raises(InvalidArgumentError, match="another KV layout"):
            request.restore(second.lease(64))


def shape() -> dict[str, Any]:
    return {"layers": [(1, 131, 2, 67), (3, 77, 1, 301)], "element_bytes": 1, "block_tokens": 5}


def test_a_layout_of_one_byte_elements_and_odd_heads() -> None:
    layout = KvLayout([(1, 3, 1, 3)] * 2, element_bytes=1, block_tokens=5)
    assert (layout.token_bytes, layout.block_tokens, layout.block_bytes) == (12, 5, 60)
    assert layout.describe() != KvLayout([(1, 3, 1, 3)] * 2, element_bytes=2).describe()
    with Store.open(**SMALL) as store:
        cache = store.prefix_cache(layout)
        buffer = cache.lease(11)
        assert buffer.capacity == 15
        assert buffer.offsets() == [(0, 4096), (8192, 12288)]
        data = data_of(buffer)
        data[:] = np.arange(data.size) % 251
        before = data.copy()
        request = cache.begin(list(range(11)), A)
        request.commit(list(range(11)), buffer)
        assert request.wait_committed()
        request.close()
        cache.evict()
        again = cache.begin(list(range(11)), A)
        assert again.found == (0, 10, 0, 0)
        poison(buffer)
        again.restore(buffer)
        for start in (0, 4096, 8192, 12288):
            assert np.array_equal(data[start : start + 30], before[start : start + 30])
            assert (data[start + 30 : start + 45] == 0xEE).all()  # not a byte beyond


@pytest.mark.parametrize(
    ("layers", "sizes", "named"),
    [
        ([], {"element_bytes": 4}, "got 0 layers"),
        ([(1, 4, 1, 4), (0, 4, 1, 0)], {"element_bytes": 4}, "layer 1"),
        ([(1, 4, 1, 4)], {"element_bytes": 0}, "element_bytes"),
        ([(1, 4, 1, 4)], {"element_bytes": 4, "block_tokens": 0}, "block_tokens"),
        ([(1, 4, 1, 4)], {"element_bytes": -4}, "element_bytes = -4"),
        ([(1, 4, -1, 4)], {"element_bytes": 4}, "v_heads of layer 0 = -1"),
        ([(1, 4, 1, 2**32)], {"element_bytes": 4}, f"v_dim of layer 0 = {2**32}"),
        ([(2**32 - 1,) * 4], {"element_bytes": 2**32 - 1}, "over 1 GiB"),
    ],
)
def test_layouts_that_cannot_be_are_named(
    layers: list[tuple[int, int, int, int]], sizes: dict[str, int], named: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        KvLayout(layers, **sizes)


@pytest.fixture
def cache() -> Iterator[PrefixCache]:
    with Store.open(**SMALL) as store:
        yield store.prefix_cache(LAYOUT)


@pytest.mark.parametrize("tokens", [0, -1, 2**64, 10**30])
def test_a_lease_of_no_tokens_is_refused(cache: PrefixCache, tokens: int) -> None:
    with pytest.raises(InvalidArgumentError, match=str(tokens)):
        cache.lease(tokens)


@pytest.mark.parametrize("tokens", [10**6, 2**63, 2**64 - 1])
def test_a_lease_beyond_the_budget_is_refused(cache: PrefixCache, tokens: int) -> None:
    before = cache.stats()["buffers"]
    with pytest.raises(CapacityError, match=r"cache buffers: .*larger l1"):
        cache.lease(tokens)
    assert cache.stats()["buffers"] == before
    assert cache.lease(1).capacity == K


def test_a_buffer_goes_back_when_the_last_array_over_it_is_gone(cache: PrefixCache) -> None:
    array = data_of(cache.lease(20))
    stats = cache.stats()["buffers"]
    assert (stats["mapped"] >= array.nbytes, stats["idle"]) == (True, 0)
    del array
    assert cache.stats()["buffers"]["idle"] == stats["mapped"]


def test_prompts_that_cannot_be_are_refused(cache: PrefixCache) -> None:
    wrong: list[tuple[Callable[[], object], str]] = [
        (lambda: cache.begin([], A), "prompt is empty"),
        (lambda: cache.begin(np.empty(0, np.int64), A), "prompt is empty"),
        (lambda: cache.prefetch([], A), "prompt is empty"),
        (lambda: cache.begin([1, -1], A), "token 1 is -1"),
        (lambda: cache.begin(np.ones((1, 4), np.int64), A), r"\[1, 4\]"),
        (lambda: cache.begin([1], b"short"), "32 bytes, got 5"),
        (lambda: cache.begin([1], A, grid=7), "grid of 7 .*block of 5"),
        (lambda: cache.begin([1], A, grid=-5), "grid = -5"),
        (lambda: cache.evict(-1), "blocks = -1"),
    ]
    for call, named in wrong:
        with pytest.raises(InvalidArgumentError, match=named):
            call()
    with pytest.raises(InvalidArgumentError, match="43 tokens do not fit"):
        cache.begin(PROMPT, A).restore(cache.lease(40))
    assert cache.begin([1], A, grid=2**64 - 1).found == (0, 0, 0, 0)  # a multiple of 5, it happens
    cache.validate()
    assert cache.stats()["l1"]["used"] == 0


LEFT_OPEN = """
import sys
sys.path.insert(0, sys.argv[2])
from test_store import A, B, LAYOUT, PROMPT, SMALL, Store, serve
store = Store.open(sys.argv[1], **SMALL)
cache = store.prefix_cache(LAYOUT)
serve(cache, A, PROMPT)
store.flush()
serve(cache, B, PROMPT)
request = cache.begin(PROMPT, A)
everything = [store, cache, request]
everything.append(everything)
del store
"""


def test_an_interpreter_that_ends_with_an_open_store_loses_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEFT_OPEN, str(tmp_path / "store"), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr
    with Store.open(tmp_path / "store", **SMALL) as store:
        recovery = store.recovery()
        assert recovery is not None
        assert recovery["clean"]
        cache = store.prefix_cache(LAYOUT)
        assert serve(cache, A, PROMPT) == (0, 0, 40, 0)
        assert serve(cache, B, PROMPT) == (0, 0, 40, 0)
