"""Each live policy through the whole store, and captures of what it did."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from kv_pattern import LAYOUT, serve
from kvlab import ConfigError, FormatError, Store, StoreIOError
from kvlab.sim import capture

POLICIES = ["lru", "slru", "lfu", "s3-fifo", "sieve", "w-tinylfu", "gdsf"]
SMALL: dict[str, Any] = {
    "l1": "256KiB",
    "l2": "512KiB",
    "l3": "1MiB",
    "free_reserve": 0,
    "io_workers": 2,
}
NAMESPACE = b"n" * 32
BLOCK = 5


def prompts(count: int, seed: int) -> list[list[int]]:
    """Conversations that go on from one another, each a few blocks and one token longer."""
    generator = random.Random(seed)
    told: list[list[int]] = [[]]
    for number in range(count):
        before = generator.choice(told[-20:])
        own = [number * 1000 + at for at in range(BLOCK * generator.randrange(1, 5))]
        told.append(before[: BLOCK * 12] + own)
    return [[*tokens, 7] for tokens in told[1:]]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_store_evicts_by_each_policy_and_a_replay_agrees(tmp_path: Path, policy: str) -> None:
    asked = prompts(100, seed=3)
    file = tmp_path / "capture"
    with Store.open(tmp_path / "store", **SMALL, policy=policy, capture=file) as store:
        cache = store.prefix_cache(LAYOUT)
        for tokens in asked:
            serve(cache, NAMESPACE, tokens)
        cache.validate()
    orders = capture.replay(file)
    assert {order.tier for order in orders} == {1, 2, 3}
    for order in orders:
        assert order.policy == policy
        assert order.victims, f"nothing left tier {order.tier}"
        assert order.victims == order.recorded
    lengths = [len(request.blocks) for request in capture.requests(file)]
    assert lengths == [(len(tokens) - 1) // BLOCK for tokens in asked]
    with Store.open(tmp_path / "store", **SMALL, policy=policy) as store:
        assert store.stats()["l3"]["blocks"] > 0
        cache = store.prefix_cache(LAYOUT)
        for tokens in asked[-20:]:
            serve(cache, NAMESPACE, tokens)
        cache.validate()


def test_equal_names_are_equal_prefixes(tmp_path: Path) -> None:
    file = tmp_path / "capture"
    first, other = list(range(23)), [*range(10), *range(50, 63)]
    with Store.open(None, l1="4MiB", l2=0, capture=file) as store:
        cache = store.prefix_cache(LAYOUT)
        for namespace, tokens in [(b"a" * 32, first), (b"a" * 32, other), (b"b" * 32, first)]:
            serve(cache, namespace, tokens)
    one, two, three = capture.requests(file)
    assert (one.tokens, two.tokens) == (20, 20)
    assert list(one.blocks[:2]) == list(two.blocks[:2])
    assert len({*one.blocks, *two.blocks, *three.blocks}) == 4 + 2 + 4
    assert one.at_ms <= two.at_ms <= three.at_ms
    content = file.read_bytes()
    assert all(token.to_bytes(4, "little") * 2 not in content for token in first[1:])


def test_a_capture_is_a_new_file_and_a_sound_one(tmp_path: Path) -> None:
    file = tmp_path / "capture"
    file.write_bytes(b"something")
    with pytest.raises(StoreIOError, match="capture"):
        Store.open(None, capture=file)
    with pytest.raises(FormatError, match=r"no capture of version 2; record one with"):
        list(capture.requests(file))
    with pytest.raises(FormatError):
        capture.replay(file)
    with pytest.raises(StoreIOError):
        capture.replay(tmp_path / "none")


def test_a_policy_that_is_not_live_is_refused(tmp_path: Path) -> None:
    known = "lru, slru, lfu, s3-fifo, sieve, w-tinylfu, gdsf"
    for name in ["belady", "lfu-plain", ""]:
        with pytest.raises(ConfigError, match=f"policy = {name}: use one of: {known}"):
            Store.open(tmp_path / "store", policy=name)
