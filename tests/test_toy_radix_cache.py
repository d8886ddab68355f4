"""The radix cache in plain Python against brute force, and its order of eviction."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import toy_runs

sys.path.insert(0, str(toy_runs.TOYS))

from radix_node import Match
from radix_tree import RadixCache

Prefix = tuple[bytes, tuple[int, ...]]

# Two tokens, one of them rare, so that long prefixes are shared and split at every depth.
PROMPTS = st.lists(st.sampled_from([0, 0, 0, 0, 1]), max_size=20)
NAMESPACES = st.sampled_from([b"", b"a"])
SIZE = 2


class BruteForce(RuleBasedStateMachine):
    """Every prefix that is held, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = RadixCache(SIZE)
        self.held: dict[Prefix, int] = {}
        self.locks: list[tuple[int, Prefix]] = []
        self.matches: list[tuple[Match, Prefix, list[int]]] = []
        self.next_block = 0

    def longest(self, tokens: list[int], namespace: bytes) -> int:
        end = 0
        while len(tokens) >= end + SIZE and (namespace, tuple(tokens[: end + SIZE])) in self.held:
            end += SIZE
        return end

    def is_locked(self, prefix: Prefix) -> bool:
        return any(
            prefix[0] == locked[0] and prefix[1] == locked[1][: len(prefix[1])]
            for _, locked in self.locks
        )

    def followers(self, prefix: Prefix) -> list[tuple[tuple[int, ...], int]]:
        end = len(prefix[1])
        return [
            (tokens[end:], block)
            for (namespace, tokens), block in self.held.items()
            if namespace == prefix[0] and tokens[:-SIZE] == prefix[1]
        ]

    @rule(tokens=PROMPTS, namespace=NAMESPACES)
    def insert(self, tokens: list[int], namespace: bytes) -> None:
        count = len(tokens) // SIZE
        blocks = list(range(self.next_block, self.next_block + count))
        self.next_block += count
        if count == 0 or len(tokens) % SIZE:
            with pytest.raises(ValueError, match="do not fill"):
                self.cache.insert(tokens, blocks, namespace)
        tokens = tokens[: count * SIZE]
        if count:
            present = self.longest(tokens, namespace)
            inserted = self.cache.insert(tokens, blocks, namespace)
            assert inserted.present == present
            for end in range(present + SIZE, len(tokens) + 1, SIZE):
                self.held[namespace, tuple(tokens[:end])] = blocks[end // SIZE - 1]

    @rule(tokens=PROMPTS, namespace=NAMESPACES, lock=st.booleans())
    def match(self, tokens: list[int], namespace: bytes, lock: bool) -> None:
        found = self.cache.match_prefix(tokens, namespace)
        end = self.longest(tokens, namespace)
        assert (found.tokens, found.blocks) == (end, end // SIZE)
        prefix = (namespace, tuple(tokens[:end]))
        blocks = [self.held[namespace, tuple(tokens[:at])] for at in range(SIZE, end + 1, SIZE)]
        assert self.cache.blocks_of(found) == blocks
        whole, partial = self.cache.match_partial(tokens, namespace)
        assert self.cache.blocks_of(whole) == blocks
        rest = tuple(tokens[end:])
        shared = [
            (-next((i for i in range(SIZE) if own[i : i + 1] != rest[i : i + 1]), SIZE), b)
            for own, b in self.followers(prefix)
        ]
        best = min(shared, default=(0, 0))
        assert partial == ((best[1], -best[0]) if best[0] else None)
        self.matches.append((found, prefix, blocks))
        if lock:
            self.locks.append((self.cache.lock(found), prefix))

    @precondition(lambda self: self.matches)
    @rule(data=st.data())
    def lock_earlier(self, data: st.DataObject) -> None:
        found, prefix, blocks = self.matches.pop(
            data.draw(st.integers(0, len(self.matches) - 1), label="match")
        )
        try:
            now = self.cache.blocks_of(found)
        except ValueError:
            with pytest.raises(ValueError, match="stale"):
                self.cache.lock(found)
        else:
            assert now == blocks
            self.locks.append((self.cache.lock(found), prefix))

    @precondition(lambda self: self.locks)
    @rule(data=st.data())
    def unlock(self, data: st.DataObject) -> None:
        lock, _ = self.locks.pop(data.draw(st.integers(0, len(self.locks) - 1), label="lock"))
        self.cache.unlock(lock)
        with pytest.raises(KeyError):
            self.cache.unlock(lock)

    @rule(wanted=st.integers(0, 8))
    def evict(self, wanted: int) -> None:
        evictable = sum(not self.is_locked(prefix) for prefix in self.held)
        evicted = self.cache.evict(wanted)
        assert sum(len(run.blocks) for run in evicted) == min(wanted, evictable)
        for run in evicted:
            for block in reversed(run.blocks):
                prefix = next(prefix for prefix, held in self.held.items() if held == block)
                assert not self.followers(prefix)
                assert not self.is_locked(prefix)
                del self.held[prefix]

    @rule(namespace=NAMESPACES)
    def remove_namespace(self, namespace: bytes) -> None:
        gone = {p: b for p, b in self.held.items() if p[0] == namespace and not self.is_locked(p)}
        assert sorted(self.cache.remove_namespace(namespace)) == sorted(gone.values())
        self.held = {prefix: b for prefix, b in self.held.items() if prefix not in gone}

    @invariant()
    def counters_and_nodes(self) -> None:
        protected = sum(self.is_locked(prefix) for prefix in self.held)
        assert self.cache.total_blocks == len(self.held)
        assert self.cache.protected_blocks == protected
        assert self.cache.evictable_blocks == len(self.held) - protected
        nodes = self.cache.nodes()
        assert sorted(b for node in nodes for b in node.blocks) == sorted(self.held.values())
        for node in nodes:
            assert len(node.tokens) == len(node.blocks) * SIZE > 0
            assert node.parent is not None
            assert node.parent.end == node.start
            assert node.parent.children[node.tokens[:SIZE]] is node
            assert node.parent.parent is None or node.parent.last_use >= node.last_use
            assert node.locks >= sum(child.locks for child in node.children.values())


TestBruteForce = BruteForce.TestCase


def insert(cache: RadixCache, tokens: list[int], base: int) -> Match:
    return cache.insert(tokens, range(base, base + len(tokens))).path


def evict(cache: RadixCache, wanted: int) -> list[list[int]]:
    return [run.blocks for run in cache.evict(wanted)]


def test_a_parent_goes_after_its_child_and_before_what_was_used_later() -> None:
    cache = RadixCache(1)
    insert(cache, [1, 2], 10)
    insert(cache, [1, 2, 3], 20)
    insert(cache, [5], 30)
    assert evict(cache, 9) == [[22], [10, 11], [30]]


def test_a_parent_that_becomes_childless_enters_at_its_own_last_use() -> None:
    cache = RadixCache(1)
    insert(cache, [1, 2], 10)
    insert(cache, [1, 2, 3], 20)
    insert(cache, [5], 30)
    insert(cache, [6], 40)
    assert cache.match_prefix([1, 2]).tokens == 2
    insert(cache, [7], 50)
    assert evict(cache, 9) == [[22], [30], [40], [10, 11], [50]]


def test_a_use_that_ends_inside_a_node_is_a_use_of_all_of_it() -> None:
    cache = RadixCache(1)
    insert(cache, [1, 2, 3, 4], 10)
    insert(cache, [5], 30)
    assert cache.match_prefix([1, 2, 9]).tokens == 2
    insert(cache, [6], 40)
    assert evict(cache, 9) == [[30], [10, 11, 12, 13], [40]]


def test_both_parts_of_a_split_node_keep_its_last_use() -> None:
    cache = RadixCache(1)
    insert(cache, [1, 2, 3, 4], 10)
    inside = cache.match_prefix([1, 2, 3])
    insert(cache, [5], 30)
    cache.unlock(cache.lock(inside))
    assert evict(cache, 9) == [[13], [10, 11, 12], [30]]


def test_a_long_leaf_gives_up_only_its_last_blocks_and_keeps_its_rank() -> None:
    cache = RadixCache(1)
    insert(cache, [1, 2, 3, 4], 10)
    insert(cache, [5], 30)
    assert evict(cache, 1) == [[13]]
    assert cache.match_prefix([1, 2, 3, 4]).tokens == 3
    cache.match_prefix([5])
    assert evict(cache, 2) == [[11, 12]]
    assert evict(cache, 2) == [[10], [30]]


def test_locks_keep_a_path_and_giving_them_back_is_no_use() -> None:
    cache = RadixCache(1)
    lock = cache.lock(insert(cache, [1, 2], 10))
    insert(cache, [1, 2, 3], 20)
    insert(cache, [5], 30)
    assert cache.evictable_blocks == 2
    assert evict(cache, 1) == [[22]]
    cache.unlock(lock)
    assert evict(cache, 9) == [[10, 11], [30]]


def test_a_block_size_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        RadixCache(0)


def test_the_second_request_computes_only_its_own_suffix(tmp_path: Path) -> None:
    result = toy_runs.quick("radix_cache", tmp_path)
    first, second = result["requests"]
    assert first["hit_tokens"] == 0
    assert second["hit_tokens"] == 512
    assert second["computed_tokens"] == second["prompt_tokens"] - 512 == 200
    assert second["blocks_saved"] == 512 // 16
    assert result["total_blocks"] == first["new_blocks"] + second["new_blocks"]
