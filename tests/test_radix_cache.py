"""The Rust radix cache against the one in plain Python and against brute force."""

from __future__ import annotations

import random
import sys
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvlab import (
    ConfigError,
    InvalidArgumentError,
    NotFoundError,
    PagedAllocator,
    RadixCache,
    StateError,
)
from kvlab._core import PrefixMatch

TOYS = Path(__file__).parent.parent / "toys"
sys.path.insert(0, str(TOYS))

import radix_tree as oracle
from radix_node import Match as OracleMatch

K = 2
BLOCKS = 48
# Two tokens, one of them rare, so that long prefixes are shared and split at every depth.
PROMPTS = st.lists(st.sampled_from([0, 0, 0, 0, 1]), max_size=20)
NAMESPACES = st.sampled_from([None, b"a" * 32])
Prefix = tuple[bytes | None, tuple[int, ...]]


class AgainstTheOracle(RuleBasedStateMachine):
    """Three caches do the same: Rust, plain Python, and a dict from every prefix held to its block."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = PagedAllocator(BLOCKS, block_tokens=K)
        self.cache = RadixCache(self.allocator)
        self.oracle = oracle.RadixCache(K)
        self.held: dict[Prefix, int] = {}
        self.matches: list[tuple[PrefixMatch, OracleMatch, list[int]]] = []
        self.locks: list[tuple[PrefixMatch, int, list[int]]] = []

    def longest(self, tokens: list[int], namespace: bytes | None) -> list[int]:
        """The blocks of the longest common prefix with anything held."""
        blocks = []
        for end in range(K, len(tokens) + 1, K):
            block = self.held.get((namespace, tuple(tokens[:end])))
            if block is None:
                break
            blocks.append(block)
        return blocks

    def forget(self, blocks: list[int]) -> None:
        locked = {block for _, _, blocks in self.locks for block in blocks}
        assert not locked & set(blocks)
        gone = set(blocks)
        self.held = {prefix: block for prefix, block in self.held.items() if block not in gone}

    @rule(tokens=PROMPTS, namespace=NAMESPACES)
    def insert(self, tokens: list[int], namespace: bytes | None) -> None:
        del tokens[len(tokens) // K * K :]
        needed = len(tokens) // K
        if not needed or needed > self.allocator.stats()["free"]:
            return
        sequence = self.allocator.allocate_sequence(len(tokens))
        blocks = self.allocator.block_table(sequence)
        present = self.cache.insert(np.array(tokens), blocks, namespace)
        assert self.allocator.free_sequence(sequence) == present // K
        assert present == len(self.longest(tokens, namespace)) * K
        assert self.oracle.insert(tokens, blocks, namespace or b"").present == present
        for index in range(present // K, needed):
            self.held[namespace, tuple(tokens[: (index + 1) * K])] = blocks[index]

    @rule(tokens=PROMPTS, namespace=NAMESPACES)
    def match(self, tokens: list[int], namespace: bytes | None) -> None:
        found = self.cache.match_prefix(tokens, namespace)
        theirs = self.oracle.match_prefix(tokens, namespace or b"")
        expected = self.longest(tokens, namespace)
        assert found.blocks() == self.oracle.blocks_of(theirs) == expected
        assert found.tokens == len(found) == theirs.tokens == len(expected) * K
        self.matches.append((found, theirs, expected))

    @rule(tokens=PROMPTS, namespace=NAMESPACES)
    def match_partial(self, tokens: list[int], namespace: bytes | None) -> None:
        found, block, shared = self.cache.match_partial(tokens, namespace)
        theirs, partial = self.oracle.match_partial(tokens, namespace or b"")
        assert found.blocks() == self.oracle.blocks_of(theirs) == self.longest(tokens, namespace)
        assert (block, shared) == (partial or (None, 0))

    @rule(tokens=PROMPTS.filter(len), namespace=NAMESPACES)
    def request(self, tokens: list[int], namespace: bytes | None) -> None:
        blocks, suffix = self.cache.request(tokens, namespace)
        self.oracle.match_prefix(tokens[:-1], namespace or b"")
        assert blocks == self.longest(tokens[:-1], namespace)
        assert suffix == len(tokens) - len(blocks) * K > 0

    @precondition(lambda self: self.matches)
    @rule(data=st.data())
    def lock(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.matches) - 1))
        found, theirs, blocks = self.matches.pop(index)
        before = self.cache.stats()
        try:
            lock = self.oracle.lock(theirs)
        except ValueError:
            with pytest.raises(InvalidArgumentError, match="stale"):
                found.lock()
            with pytest.raises(InvalidArgumentError, match="stale"):
                found.blocks()
            assert self.cache.stats() == before
            return
        found.lock()
        with pytest.raises(InvalidArgumentError, match="locked already"):
            found.lock()
        self.locks.append((found, lock, blocks))

    @precondition(lambda self: self.locks)
    @rule(data=st.data(), drop=st.booleans())
    def unlock(self, data: st.DataObject, drop: bool) -> None:
        found, lock, _ = self.locks.pop(data.draw(st.integers(0, len(self.locks) - 1)))
        self.oracle.unlock(lock)
        if drop:
            del found  # a match that is thrown away unlocks
            return
        found.unlock()
        with pytest.raises(StateError, match="not locked"):
            found.unlock()

    @rule(wanted=st.integers(0, 12))
    def evict(self, wanted: int) -> None:
        evictable = self.cache.stats()["evictable_blocks"]
        evicted = [block for part in self.oracle.evict(wanted) for block in part.blocks]
        assert self.cache.evict(wanted) == len(evicted) == min(wanted, evictable)
        self.forget(evicted)

    @rule(namespace=NAMESPACES)
    def clear(self, namespace: bytes | None) -> None:
        freed = self.oracle.remove_namespace(namespace or b"")
        assert self.cache.clear(namespace) == len(freed)
        self.forget(freed)

    @invariant()
    def what_is_locked_is_there(self) -> None:
        for found, _, blocks in self.locks:
            assert found.blocks() == blocks

    @invariant()
    def counters_agree(self) -> None:
        self.cache.validate()
        stats, nodes = self.cache.stats(), self.oracle.nodes()
        assert stats == {
            "nodes": len(nodes),
            "leaves": sum(not node.children for node in nodes),
            "total_blocks": len(self.held),
            "evictable_blocks": self.oracle.evictable_blocks,
            "protected_blocks": self.oracle.protected_blocks,
        }
        assert self.allocator.stats()["used"] == len(self.held)

    def teardown(self) -> None:
        self.matches.clear()
        self.locks.clear()
        assert self.cache.evict(BLOCKS) == len(self.held)
        assert self.allocator.stats()["free"] == BLOCKS


AgainstTheOracle.TestCase.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None
)
TestAgainstTheOracle = AgainstTheOracle.TestCase


def filled(tokens: list[int]) -> tuple[PagedAllocator, RadixCache, list[int]]:
    allocator = PagedAllocator(64, block_tokens=4)
    cache = RadixCache(allocator)
    sequence = allocator.allocate_sequence(len(tokens))
    blocks = allocator.block_table(sequence)
    assert cache.insert(tokens, blocks) == 0
    return allocator, cache, blocks


IDS = [0, 1, 40_000, 7, 8, 9, 10, 11]


@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        iter,
        lambda ids: array("q", ids),
        lambda ids: array("l", ids),
        lambda ids: array("I", ids),
        lambda ids: np.array(ids, np.int64),
        lambda ids: np.array(ids, np.int32),
        lambda ids: np.array(ids, np.uint32),
        lambda ids: np.array(ids, np.uint16),
        lambda ids: memoryview(array("q", ids)),
        lambda ids: [np.int64(token) for token in ids],
    ],
)
def test_every_form_of_token_ids_matches_the_same(make: Callable[[list[int]], Any]) -> None:
    _, cache, blocks = filled(IDS)
    assert cache.match_prefix(make([*IDS, 5])).blocks() == blocks
    assert cache.match_prefix(make([*IDS[:5], 0])).blocks() == blocks[:1]
    assert cache.request(make(IDS)) == (blocks[:1], 4)
    assert cache.insert(make(IDS), blocks) == 8


@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_tensors_match_like_arrays(dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
    _, cache, blocks = filled(IDS)
    ids = torch.tensor([IDS], dtype=getattr(torch, dtype))
    assert cache.match_prefix(ids[0]).blocks() == blocks
    with pytest.raises(InvalidArgumentError, match=r"\[1, 8\]"):
        cache.match_prefix(ids)
    with pytest.raises(InvalidArgumentError, match="int64, int32"):
        cache.match_prefix(ids[0].float())


@pytest.mark.parametrize("token", [-1, 2**32, 2**63 - 1, -(2**63)])
def test_a_token_out_of_range_is_named_with_its_index(token: int) -> None:
    _, cache, _ = filled(IDS)
    for ids in (np.array([1, 2, token, -7]), [1, 2, token], array("q", [1, 2, token])):
        with pytest.raises(InvalidArgumentError, match=f"token 2 is {token}: .*4294967295"):
            cache.match_prefix(ids)


@pytest.mark.parametrize("token", [2**64, -(10**30)])
def test_a_python_int_of_any_size_is_named(token: int) -> None:
    _, cache, _ = filled(IDS)
    with pytest.raises(InvalidArgumentError, match=f"token 1 is {token}"):
        cache.match_prefix([5, token])


@pytest.mark.parametrize(
    ("ids", "named"),
    [
        (np.array(IDS, np.float32), "'f'|\"f\""),
        (np.array(IDS, np.uint64), "int64, int32"),
        (np.arange(8, dtype=np.int8), "int64, int32"),
        (np.array(IDS, ">i8"), "int64, int32"),
        (b"tokens", "int64, int32"),
        (np.array([IDS]), r"\[1, 8\]"),
        (np.arange(16)[::2], r"strides \[16\]"),
    ],
)
def test_arrays_of_a_wrong_dtype_or_shape_are_refused(ids: Any, named: str) -> None:
    _, cache, _ = filled(IDS)
    before = cache.stats()
    with pytest.raises(InvalidArgumentError, match=named):
        cache.match_prefix(ids)
    with pytest.raises(InvalidArgumentError, match=named):
        cache.insert(ids, [0, 1])
    assert cache.stats() == before


@pytest.mark.parametrize("ids", [None, 5, np.array(3), "text", [1, "2"], [1, 2.5], [[1, 2]]])
def test_what_holds_no_integers_is_a_type_error(ids: Any) -> None:
    _, cache, _ = filled(IDS)
    with pytest.raises(TypeError):
        cache.match_prefix(ids)


def test_what_an_insert_refuses_leaves_everything_as_it_was() -> None:
    allocator, cache, blocks = filled(IDS)
    before = cache.stats(), allocator.stats()
    for tokens, given, error in (
        ([], [], InvalidArgumentError),
        (IDS, blocks[:1], InvalidArgumentError),
        (IDS, [*blocks, *blocks], InvalidArgumentError),
        ([9] * 8, [blocks[0], 60], NotFoundError),  # never handed out
        ([9] * 8, [blocks[0], 2**32 - 1], NotFoundError),
        ([9] * 8, [blocks[0], -1], InvalidArgumentError),
    ):
        with pytest.raises(error):
            cache.insert(tokens, given)
    with pytest.raises(InvalidArgumentError, match="32 bytes, got 3"):
        cache.match_prefix(IDS, b"abc")
    assert (cache.stats(), allocator.stats()) == before
    cache.validate()


def test_an_unknown_policy_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"policy = belady.*lru"):
        RadixCache(PagedAllocator(4), policy="belady")


def test_a_match_locks_inside_a_with_block() -> None:
    _, cache, blocks = filled(IDS)
    with cache.match_prefix(IDS) as found:
        assert cache.stats()["protected_blocks"] == 2
        assert cache.evict(10) == 0
        assert found.blocks() == blocks
    assert cache.stats()["protected_blocks"] == 0
    assert cache.evict(10) == 2


def test_a_partial_last_block_is_reused_by_copy_only() -> None:
    allocator, cache, blocks = filled([1, 2, 3, 4, 5, 6])
    assert cache.match_prefix([1, 2, 3, 4, 5, 6, 7, 8]).blocks() == blocks[:1]
    found, source, tokens = cache.match_partial([1, 2, 3, 4, 5, 9])
    assert (found.tokens, source, tokens) == (4, blocks[1], 1)
    # A whole block that continues it takes its place.
    sequence = allocator.allocate_sequence(8)
    longer = allocator.block_table(sequence)
    assert cache.insert([1, 2, 3, 4, 5, 6, 7, 8], longer) == 4
    assert cache.match_prefix([1, 2, 3, 4, 5, 6, 7, 8]).blocks() == [blocks[0], longer[1]]
    assert cache.stats()["total_blocks"] == 2
    cache.validate()


def test_the_second_of_two_requests_with_one_system_prompt_computes_its_suffix_only() -> None:
    allocator = PagedAllocator(300, block_tokens=16)
    cache = RadixCache(allocator)
    system = np.arange(4096)
    suffixes = (np.arange(100_000, 100_120), np.arange(200_000, 200_200))
    computed = []
    for suffix in suffixes:
        prompt = np.concatenate([system, suffix])
        shared, rest = cache.request(prompt)
        computed.append(rest)
        before = allocator.stats()["used"]
        whole = len(prompt) // 16
        sequence = allocator.allocate_sequence((whole - len(shared)) * 16)
        blocks = [*shared, *allocator.block_table(sequence)]
        cache.insert(prompt[: whole * 16], blocks)
        allocator.free_sequence(sequence)
        assert allocator.stats()["used"] == before + rest // 16
    assert computed == [4096 + 120, 200]
    assert cache.stats()["total_blocks"] == 4096 // 16 + 120 // 16 + 200 // 16
    cache.validate()


def test_threads_match_lock_insert_and_evict_at_once() -> None:
    allocator = PagedAllocator(200, block_tokens=2)
    cache = RadixCache(allocator)

    def work(seed: int) -> int:
        rng, hits = random.Random(seed), 0
        for _ in range(400):
            tokens = [rng.randrange(3) for _ in range(12)]
            with cache.match_prefix(tokens, lock=True) as found:
                blocks = found.blocks()
                hits += len(blocks)
                sequence = allocator.allocate_sequence(12 - found.tokens)
                own = allocator.block_table(sequence)
                cache.insert(tokens, [*blocks, *own])
                allocator.free_sequence(sequence)
                assert found.blocks() == blocks
            cache.evict(rng.randrange(4))
            if allocator.stats()["free"] < 60:
                cache.evict(60)
        return hits

    with ThreadPoolExecutor(4) as pool:
        hits = sum(pool.map(work, range(4)))
    assert hits > 0
    cache.validate()
    assert cache.stats()["protected_blocks"] == 0
    cache.evict(200)
    assert allocator.stats()["free"] == 200
