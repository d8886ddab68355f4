"""Random requests, forks and evictions over an L1 that is too small for them: never wrong bytes."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kv_pattern import LAYOUT, K, compute, holds, restored
from kvlab import InvalidArgumentError, Store
from kvlab._core import CacheBuffer, Request

ROOM = 45
LIVE = 3


@dataclass
class Live:
    """A request that is open, and its buffer once it has restored."""

    request: Request
    namespace: bytes
    tokens: list[int]
    buffer: CacheBuffer | None = None


class SmallStore(RuleBasedStateMachine):
    """L1 has 38 blocks, of which three live requests pin up to 27, and room for their buffers only."""

    prompts = st.lists(st.sampled_from([0] * 8 + [1]), min_size=1, max_size=34)
    namespaces = st.sampled_from([b"a" * 32, b"b" * 32])

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp(prefix="kvlab-test-"))
        self.store = Store.open(
            self.path / "store",
            l1=2 * self.least_buffer() * LIVE,
            l2="192KiB",
            l3="1MiB",
            free_reserve=0,
            io_workers=2,
        )
        self.cache = self.store.prefix_cache(LAYOUT)
        self.live: list[Live] = []
        self.committed: set[tuple[bytes, tuple[int, ...]]] = set()

    @staticmethod
    def least_buffer() -> int:
        """Bytes of a buffer for ROOM tokens: four tensors, a page of padding each at most."""
        return LAYOUT.token_bytes * ROOM + 4 * 4096

    def pick(self, data: st.DataObject) -> Live:
        return self.live[data.draw(st.integers(0, len(self.live) - 1))]

    @precondition(lambda self: len(self.live) < LIVE)
    @rule(tokens=prompts, namespace=namespaces, grid=st.sampled_from([0, 0, 2 * K]))
    def begin(self, tokens: list[int], namespace: bytes, grid: int) -> None:
        request = self.cache.begin(tokens, namespace, grid=grid)
        found = sum(request.found)
        assert found < len(tokens)
        assert found % max(grid, K) == 0
        for end in range(K, found + 1, K):
            assert (namespace, tuple(tokens[:end])) in self.committed
        self.live.append(Live(request, namespace, tokens))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        live = self.pick(data)
        live.buffer = live.buffer or self.cache.lease(ROOM)
        live.request.wait_committed()
        end = sum(restored(live.request, live.buffer))
        assert end <= sum(live.request.found)
        assert holds(live.buffer, live.namespace, live.tokens, end)
        compute(live.buffer, live.namespace, live.tokens, end)

    @precondition(lambda self: any(live.buffer for live in self.live))
    @rule(data=st.data(), more=st.lists(st.sampled_from([0, 0, 1]), max_size=8))
    def commit(self, data: st.DataObject, more: list[int]) -> None:
        live = self.pick(data)
        tokens = [*live.tokens, *more][:ROOM]
        if live.buffer is None:
            return
        live.request.wait_committed()
        compute(live.buffer, live.namespace, tokens, len(live.tokens))
        live.request.commit(tokens, live.buffer)
        live.tokens = tokens
        for end in range(K, len(tokens) + 1, K):
            self.committed.add((live.namespace, tuple(tokens[:end])))

    @precondition(lambda self: 0 < len(self.live) < LIVE)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        live = self.pick(data)
        child = live.request.fork()
        if child is not None:
            self.live.append(Live(child, live.namespace, list(live.tokens)))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def commit_of_something_else_is_refused(self, data: st.DataObject) -> None:
        live = self.pick(data)
        held = live.request.sequence()[1]
        if live.buffer is not None and held:
            with pytest.raises(InvalidArgumentError, match="do not begin with"):
                live.request.commit([7] * len(live.tokens), live.buffer)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), explicitly=st.booleans())
    def close(self, data: st.DataObject, explicitly: bool) -> None:
        live = self.pick(data)
        self.live.remove(live)
        if explicitly:
            live.request.close()

    @rule(blocks=st.none() | st.integers(0, 12))
    def evict(self, blocks: int | None) -> None:
        self.cache.evict(blocks)

    @rule()
    def evict_to_disk(self) -> None:
        self.store.evict("l2")

    @rule()
    def flush(self) -> None:
        self.store.flush()
        assert self.cache.stats()["pending_commits"] == 0

    @rule(tokens=prompts, namespace=namespaces)
    def prefetch(self, tokens: list[int], namespace: bytes) -> None:
        assert self.cache.prefetch(tokens, namespace).wait()

    @invariant()
    def everything_is_consistent(self) -> None:
        self.cache.validate()
        stats = self.store.stats()
        assert stats["l2"]["corrupt"] == stats["l3"]["corrupt"] == 0

    def teardown(self) -> None:
        self.live.clear()
        self.store.flush()
        l1 = self.cache.stats()["l1"]
        assert l1["sequences"] == l1["protected"] == l1["private"] == l1["in_flight"] == 0
        self.store.close()
        shutil.rmtree(self.path)


SmallStore.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSmallStore = SmallStore.TestCase
