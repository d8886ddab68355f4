"""A shared tier in Python."""

from __future__ import annotations

import doctest
from collections.abc import Sequence
from typing import Any

import pytest

import kvlab.tier
from kv_pattern import LAYOUT, serve
from kvlab import BlockStore, RemoteError, Store, Tier

SIZES: dict[str, Any] = {"l1": "1MiB", "l2": "1MiB", "l3": 0}
A = b"a" * 32
PROMPT = list(range(1000, 1043))  # 8 whole blocks of 5, and 3 tokens


class InDict(Tier):
    """Values in a dictionary, and an error to raise instead."""

    name = "dict"

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.ttls: set[float] = set()
        self.error: BaseException | None = None

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self._fail()
        return [self.values.get(key) for key in keys]

    def put(self, items: Sequence[tuple[bytes, bytes]], ttl: float) -> None:
        self._fail()
        self.values.update(items)
        self.ttls.add(ttl)

    def remove(self, keys: Sequence[bytes]) -> list[bool]:
        self._fail()
        return [self.values.pop(key, None) is not None for key in keys]


def test_stores_share_through_an_object() -> None:
    tier = InDict()
    with Store.open(None, **SIZES, remote=tier, remote_ttl="1h") as one:
        assert serve(one.prefix_cache(LAYOUT), A, PROMPT) == (0, 0, 0, 0)
        one.flush()
        health = one.remote_health()
        assert health is not None
        assert health["healthy"]
        assert health["servers"][0]["address"] == "dict"
        assert health["servers"][0]["used_memory"] is None
    assert tier.ttls == {3600.0}
    with Store.open(None, **SIZES, remote=tier) as other:
        assert serve(other.prefix_cache(LAYOUT), A, PROMPT) == (0, 0, 0, 40)


def test_what_it_raises_is_a_miss_and_counted() -> None:
    tier = InDict()
    with Store.open(None, **SIZES, remote=tier) as one:
        serve(one.prefix_cache(LAYOUT), A, PROMPT)
        one.flush()
    for error, kind in (
        (TimeoutError("late"), "timeouts"),
        (ConnectionRefusedError("gone"), "refused"),
        (PermissionError("no"), "auth"),
        (ValueError("a bug"), "other"),
    ):
        with Store.open(None, **SIZES, remote=tier) as other:
            tier.error = error
            assert serve(other.prefix_cache(LAYOUT), A, PROMPT) == (0, 0, 0, 0)
            remote = other.stats()["remote"]
            assert remote is not None
            assert remote["errors"][kind] >= 1  # type: ignore[literal-required]
            tier.error = None


def test_wrong_values_and_wrong_numbers_of_them_are_misses() -> None:
    tier = InDict()
    with Store.open(None, **SIZES, remote=tier) as one:
        serve(one.prefix_cache(LAYOUT), A, PROMPT)
        one.flush()
    kept = dict(tier.values)
    for change in (
        lambda value: value[:-1] + bytes([value[-1] ^ 1]),
        lambda value: value[: len(value) // 2],
        lambda value: b"",
        lambda value: b"something else",
    ):
        tier.values = {name: change(value) for name, value in kept.items()}
        with Store.open(None, **SIZES, remote=tier) as other:
            assert serve(other.prefix_cache(LAYOUT), A, PROMPT) == (0, 0, 0, 0)

    class Short(InDict):
        def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
            return super().get(keys)[:-1]

        def get_ranges(self, wanted: Any) -> list[bytes | None]:
            return self.get([name for name, _, _ in wanted])

    with Store.open(None, **SIZES, remote=Short()) as other:
        assert serve(other.prefix_cache(LAYOUT), A, PROMPT) == (0, 0, 0, 0)
        remote = other.stats()["remote"]
        assert remote is not None
        assert remote["errors"]["protocol"] >= 1


def test_removing_says_what_it_raised() -> None:
    tier = InDict()
    with BlockStore.open(None, l2="1MiB", remote=tier) as store:
        store.put(A, b"bytes")
        store.flush()
        assert store.remove([A]) == 1
        assert not any(tier.values.values())
        tier.error = ConnectionError("no network")
        with pytest.raises(RemoteError, match="no network"):
            store.remove([A])


def test_the_example_works() -> None:
    assert doctest.testmod(kvlab.tier).failed == 0
