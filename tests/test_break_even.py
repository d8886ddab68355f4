"""How much of what was found is restored: real reads of a held-back disk, forwards that are only said to have run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvlab import KvLayout, PrefixCache, Store

# 1 KiB a token, so that a run of many tokens takes a while on a slow disk.
LAYOUT = KvLayout([(4, 32, 4, 32)], element_bytes=4, block_tokens=16)
NAMESPACE, MODEL = bytes(range(32)), bytes(32)
FAST, SLOW = 1e-6, 1.0
"""Seconds to compute a token: next to nothing, and longer than any read here."""


def open_store(path: Path, **settings: Any) -> Store:
    sizes: dict[str, Any] = {"l1": "8MiB", "l2": "8MiB", "l3": "64MiB", "free_reserve": "1MiB"}
    return Store.open(path, **(sizes | settings))


def write(store: Store, cache: PrefixCache, tokens: Any, *, parts: int = 1) -> None:
    """Puts a prompt into L3, in so many runs."""
    for end in np.linspace(0, len(tokens), parts + 1, dtype=int)[1:]:
        request, buffer = cache.begin(tokens, NAMESPACE), cache.lease(len(tokens))
        request.restore(buffer)
        request.commit(tokens[:end], buffer)
        store.flush()
        request.close()
    store.evict()


def turn(cache: PrefixCache, tokens: Any, token_seconds: float, restore: Any = "auto") -> Any:
    """One request: what it chose, and what came."""
    request, buffer = cache.begin(tokens, NAMESPACE), cache.lease(len(tokens))
    choice = request.choose(restore, MODEL)
    restored = request.restore(buffer)
    context = sum(restored["tokens"])
    request.computed(MODEL, len(tokens) - context, context, (len(tokens) - context) * token_seconds)
    request.close()
    assert restored["failure"] is None
    assert context == choice["tokens"]
    return choice, restored["tokens"]


def ids(length: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 1000, length)


def test_a_slow_disk_is_left_alone_where_computing_is_fast_and_only_there(tmp_path: Path) -> None:
    tokens = ids(129)
    with open_store(tmp_path, l3_read_limit="4MiB") as store:
        cache = store.prefix_cache(LAYOUT)
        write(store, cache, tokens)
        for _ in range(3):
            assert turn(cache, tokens, FAST)[0]["reason"] == "not_measured"
        choice, came = turn(cache, tokens, FAST)
        assert came == (0, 0, 0, 0)
        assert (choice["reason"], choice["left"]) == ("cheapest", "l3")
        assert choice["all"]["restore_ms"] > choice["predicted"]["prefill_ms"]
        assert turn(cache, tokens, FAST, "always")[1] == (0, 0, 128, 0)
        assert store.costs()["choices"]["recomputed_tokens"] == 128
        # What computing costs is learnt anew, too.
        for seed in range(40):
            turn(cache, ids(129, 1 + seed), SLOW)
        assert turn(cache, tokens, SLOW)[1] == (0, 0, 128, 0)


def test_what_memory_has_is_restored_and_what_follows_on_a_slow_disk_is_not(tmp_path: Path) -> None:
    tokens = ids(257)
    with open_store(tmp_path, l3_read_limit="4MiB") as store:
        cache = store.prefix_cache(LAYOUT)
        write(store, cache, tokens, parts=2)
        for _ in range(3):
            turn(cache, tokens[:129], FAST)
        # The first run goes up into L1, and from there into L2.
        request, buffer = cache.begin(tokens[:129], NAMESPACE), cache.lease(257)
        request.restore(buffer)
        request.commit(tokens[:129], buffer)
        cache.flush()
        request.close()
        # A copy from memory is known to be cheap, a token costs more than that and less than the disk.
        store.evict("l1")
        for _ in range(3):
            assert turn(cache, tokens[:129], 1e-4, "always")[1] == (0, 128, 0, 0)
        for _ in range(20):
            turn(cache, ids(257, 1), 1e-4)
        choice, came = turn(cache, tokens, 1e-4)
        assert came == (0, 128, 0, 0)
        assert choice["left"] == "l3"


def test_what_was_learnt_is_kept_unless_it_is_damaged_or_the_disk_is_used_otherwise(
    tmp_path: Path,
) -> None:
    tokens = ids(129)
    for limit, damaged, known in (
        ("4MiB", False, False),
        ("4MiB", False, True),
        ("2MiB", False, False),
        ("2MiB", True, False),
    ):
        if damaged:
            (tmp_path / "COSTS").write_bytes(b"\xff" + (tmp_path / "COSTS").read_bytes()[1:])
        with open_store(tmp_path, l3_read_limit=limit) as store:
            cache = store.prefix_cache(LAYOUT)
            if store.stats()["l3"]["runs"] == 0:
                write(store, cache, tokens)
            assert turn(cache, tokens, FAST)[1] == ((0, 0, 0, 0) if known else (0, 0, 128, 0))
            for _ in range(2):
                turn(cache, tokens, FAST)
            read = store.costs()["read"]["l3"]
            assert read["learnt"]
            assert read["gb_per_s"] is None or read["gb_per_s"] < 0.1


def test_a_store_in_memory_learns_and_forgets() -> None:
    tokens = ids(129)
    with Store.open(None, l1="8MiB", l2="8MiB") as store:
        cache = store.prefix_cache(LAYOUT)
        request, buffer = cache.begin(tokens, NAMESPACE), cache.lease(129)
        request.commit(tokens, buffer)
        cache.flush()
        request.close()
        store.evict("l1")
        for _ in range(4):
            assert turn(cache, tokens, SLOW)[1] == (0, 128, 0, 0)
        costs = store.costs()
        assert costs["read"]["l2"]["learnt"]
        assert costs["choices"]["all"] == 1


@pytest.mark.parametrize("restore", ["never", "always"])
def test_the_choice_is_made_before_the_restore_and_can_be_made_again(
    restore: Any, tmp_path: Path
) -> None:
    tokens = ids(129)
    with open_store(tmp_path) as store:
        cache = store.prefix_cache(LAYOUT)
        write(store, cache, tokens)
        request, buffer = cache.begin(tokens, NAMESPACE), cache.lease(129)
        request.choose("always", MODEL)
        chosen = request.choose(restore, MODEL)
        assert request.found == (0, 0, 128, 0)
        assert sum(request.restore(buffer)["tokens"]) == chosen["tokens"]
        assert chosen["tokens"] == (128 if restore == "always" else 0)
        request.close()
        cache.validate()
