"""The paged allocator against a model of bytes, and the fragmentation that it saves."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

import toy_runs
from kvlab import (
    CapacityError,
    InvalidArgumentError,
    KvlabError,
    NotFoundError,
    PagedAllocator,
    RadixCache,
)

BLOCKS, K, ROW = 12, 4, 3


class CopyOnWrite(RuleBasedStateMachine):
    """Every sequence is a list of rows of its own; how many blocks that takes is counted from the tables.

    A row that was never written is None: its bytes are unspecified.
    """

    sequences = Bundle("sequences")

    def __init__(self) -> None:
        super().__init__()
        self.allocator = PagedAllocator(BLOCKS, block_tokens=K, block_bytes=K * ROW)
        self.rows: dict[int, list[bytes | None]] = {}

    def tables(self) -> dict[int, list[int]]:
        return {sequence: self.allocator.block_table(sequence) for sequence in self.rows}

    def references(self) -> Counter[int]:
        return Counter(block for table in self.tables().values() for block in table)

    def free(self) -> int:
        return BLOCKS - len(self.references())

    def refused(self, call: Callable[[], object], error: type[KvlabError]) -> None:
        before = self.allocator.stats(), self.tables()
        with pytest.raises(error):
            call()
        assert (self.allocator.stats(), self.tables()) == before

    @rule(target=sequences, tokens=st.integers(0, 20))
    def allocate(self, tokens: int) -> Any:
        if -(-tokens // K) > self.free():
            self.refused(lambda: self.allocator.allocate_sequence(tokens), CapacityError)
            return multiple()
        sequence = self.allocator.allocate_sequence(tokens)
        assert sequence not in self.rows
        self.rows[sequence] = [None] * tokens
        return sequence

    @rule(sequence=sequences, tokens=st.integers(0, 20))
    def append(self, sequence: int, tokens: int) -> None:
        rows, table = self.rows[sequence], self.allocator.block_table(sequence)
        added = -(-(len(rows) + tokens) // K) - len(table)
        copies = int(bool(tokens and len(rows) % K and self.references()[table[-1]] > 1))
        if added + copies > self.free():
            self.refused(lambda: self.allocator.append_tokens(sequence, tokens), CapacityError)
            return
        assert self.allocator.append_tokens(sequence, tokens) == added
        rows += [None] * tokens

    @rule(target=sequences, sequence=sequences)
    def fork(self, sequence: int) -> int:
        free = self.free()
        child = self.allocator.fork(sequence)
        assert child not in self.rows
        self.rows[child] = list(self.rows[sequence])
        assert self.allocator.block_table(child) == self.allocator.block_table(sequence)
        assert self.free() == free
        return child

    @rule(sequence=sequences, data=st.data())
    def write(self, sequence: int, data: st.DataObject) -> None:
        rows = self.rows[sequence]
        start = data.draw(st.integers(0, len(rows)))
        count = data.draw(st.integers(0, len(rows) - start))
        written = data.draw(st.binary(min_size=count * ROW, max_size=count * ROW))
        touched = self.allocator.block_table(sequence)[start // K : -(-(start + count) // K)]
        references = self.references()
        copies = sum(references[block] > 1 for block in touched) if count else 0
        if copies > self.free():
            self.refused(lambda: self.allocator.write(sequence, start, written), CapacityError)
            return
        assert self.allocator.write(sequence, start, written) == copies
        rows[start : start + count] = [written[i * ROW : (i + 1) * ROW] for i in range(count)]

    @rule(sequence=sequences, data=st.data())
    def truncate(self, sequence: int, data: st.DataObject) -> None:
        rows = self.rows[sequence]
        keep = data.draw(st.integers(0, len(rows)))
        free = self.free()
        freed = self.allocator.truncate(sequence, keep)
        del rows[keep:]
        assert self.free() == free + freed

    @rule(sequence=consumes(sequences))
    def free_sequence(self, sequence: int) -> None:
        references, table = self.references(), self.allocator.block_table(sequence)
        assert self.allocator.free_sequence(sequence) == sum(
            references[block] == 1 for block in table
        )
        del self.rows[sequence]
        self.refused(lambda: self.allocator.free_sequence(sequence), NotFoundError)

    @rule(sequence=sequences, past=st.integers(1, 5))
    def beyond_the_end(self, sequence: int, past: int) -> None:
        end = len(self.rows[sequence])
        for call in (
            lambda: self.allocator.write(sequence, end, bytes(past * ROW)),
            lambda: self.allocator.read(sequence, end, past),
            lambda: self.allocator.truncate(sequence, end + past),
            lambda: self.allocator.write(sequence, 0, bytes(past * ROW - 1)),
        ):
            self.refused(call, InvalidArgumentError)

    @invariant()
    def bytes_are_those_of_the_model(self) -> None:
        for sequence, rows in self.rows.items():
            assert self.allocator.tokens(sequence) == len(rows)
            got = self.allocator.read(sequence, 0, len(rows))
            for index, row in enumerate(rows):
                assert row is None or got[index * ROW : (index + 1) * ROW] == row

    @invariant()
    def counters_are_those_of_the_tables(self) -> None:
        self.allocator.validate()
        references, stats = self.references(), self.allocator.stats()
        assert all(
            len(table) == -(-len(self.rows[sequence]) // K)
            for sequence, table in self.tables().items()
        )
        assert stats["used"] == len(references) == BLOCKS - stats["free"]
        assert stats["shared"] == sum(count > 1 for count in references.values())
        assert stats["saved"] == references.total() - len(references)
        assert stats["sequences"] == len(self.rows)
        assert stats["tokens"] == sum(map(len, self.rows.values()))


CopyOnWrite.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestCopyOnWrite = CopyOnWrite.TestCase


def test_a_fork_shares_until_the_first_write_and_only_that_block_is_copied() -> None:
    allocator = PagedAllocator(8, block_tokens=4, block_bytes=8)
    parent = allocator.allocate_sequence(12)
    allocator.write(parent, 0, bytes(range(24)))
    child = allocator.fork(parent)
    assert allocator.stats()["shared"] == 3
    assert allocator.write(child, 5, b"xy") == 1
    assert allocator.write(child, 5, b"zy") == 0  # its own by now
    assert allocator.stats()["shared"] == 2
    assert allocator.read(parent, 0, 12) == bytes(range(24))
    assert allocator.read(child, 4, 4) == bytes([8, 9]) + b"zy" + bytes([12, 13, 14, 15])
    assert allocator.stats()["copies"] == 1


ABSURD = [-1, -(2**63), 2**64, 10**30]


@pytest.mark.parametrize("value", ABSURD)
def test_numbers_that_cannot_be_are_named(value: int) -> None:
    allocator = PagedAllocator(4, block_tokens=2, block_bytes=4)
    sequence = allocator.allocate_sequence(4)
    before = allocator.stats()
    calls: dict[str, list[Callable[[], object]]] = {
        "num_blocks": [lambda: PagedAllocator(value)],
        "block_tokens": [lambda: PagedAllocator(4, block_tokens=value)],
        "block_bytes": [lambda: PagedAllocator(4, block_bytes=value)],
        "tokens": [
            lambda: allocator.allocate_sequence(value),
            lambda: allocator.append_tokens(sequence, value),
            lambda: allocator.truncate(sequence, value),
            lambda: allocator.read(sequence, 0, value),
        ],
        "position": [
            lambda: allocator.write(sequence, value, b"abcd"),
            lambda: allocator.read(sequence, value, 1),
        ],
        "sequence": [
            lambda: allocator.free_sequence(value),
            lambda: allocator.fork(value),
            lambda: allocator.tokens(value),
            lambda: allocator.block_table(value),
        ],
        "blocks": [lambda: RadixCache(allocator).evict(value)],
    }
    for name, group in calls.items():
        for call in group:
            with pytest.raises(InvalidArgumentError, match=rf"{name} = {value}\b.*give a whole"):
                call()
    assert allocator.stats() == before
    allocator.validate()


@pytest.mark.parametrize("tokens", [2**63, 2**64 - 1])
def test_more_tokens_than_any_memory_holds_is_no_panic_and_changes_nothing(tokens: int) -> None:
    allocator = PagedAllocator(4, block_tokens=2, block_bytes=4)
    sequence = allocator.allocate_sequence(3)
    before = allocator.stats()
    with pytest.raises(CapacityError):
        allocator.allocate_sequence(tokens)
    with pytest.raises((CapacityError, InvalidArgumentError)):
        allocator.append_tokens(sequence, tokens)
    for call in (
        lambda: allocator.read(sequence, 0, tokens),
        lambda: allocator.read(sequence, tokens, 1),
        lambda: allocator.read(sequence, tokens, tokens),
        lambda: allocator.write(sequence, tokens, b"abcd"),
        lambda: allocator.truncate(sequence, tokens),
    ):
        with pytest.raises(InvalidArgumentError):
            call()
    assert allocator.stats() == before
    allocator.validate()


@pytest.mark.parametrize(
    ("blocks", "block_tokens", "block_bytes", "named"),
    [
        (0, 16, 0, "0 blocks"),
        (2**32, 16, 0, "4294967296 blocks"),
        (4, 0, 0, "0 tokens"),
        (4, 16, 40, "40 bytes"),
        (2**31, 1, 2**60, "more than can be addressed"),
    ],
)
def test_pools_that_cannot_be_are_refused(
    blocks: int, block_tokens: int, block_bytes: int, named: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        PagedAllocator(blocks, block_tokens=block_tokens, block_bytes=block_bytes)


def test_arguments_of_another_type_are_type_errors() -> None:
    allocator: Any = PagedAllocator(4, block_tokens=2, block_bytes=4)
    sequence = allocator.allocate_sequence(np.int64(2))  # an integer is whatever has __index__
    calls: tuple[Callable[[], object], ...] = (
        lambda: allocator.allocate_sequence("2"),
        lambda: allocator.allocate_sequence(2.0),
        lambda: allocator.fork(None),
        lambda: allocator.write(sequence, 0, "abcd"),
    )
    for call in calls:
        with pytest.raises(TypeError):
            call()
    allocator.write(sequence, 0, np.arange(4, dtype=np.uint8))
    assert allocator.read(sequence, 0, 2) == bytes([0, 1, 2, 3])


@pytest.mark.parametrize(("block_tokens", "bound"), [(8, 0.05), (16, 0.05), (32, 0.1), (64, 0.2)])
def test_fifty_sequences_waste_little_paged_and_nearly_all_reserved(
    block_tokens: int, bound: float
) -> None:
    maximum, row = 32_768, 2
    rng = random.Random(7)
    lengths = [rng.randrange(200, 1200) for _ in range(50)]
    reserved = 1 - sum(lengths) / (50 * maximum)
    assert reserved > 0.95
    allocator = PagedAllocator(
        50 * 1200 // block_tokens + 50, block_tokens=block_tokens, block_bytes=block_tokens * row
    )
    for length in lengths:
        allocator.allocate_sequence(length)
    stats = allocator.stats()
    assert stats["tokens"] == stats["filled"] == sum(lengths)
    padded = sum(-(-length // block_tokens) * block_tokens for length in lengths)
    assert stats["wasted_bytes"] == (padded - sum(lengths)) * row
    assert stats["wasted_bytes"] / (padded * row) < bound
    assert stats["utilisation"] == pytest.approx(sum(lengths) / padded)
    allocator.validate()


def test_the_toy_shows_the_same(tmp_path: Path) -> None:
    shown = toy_runs.quick("fragmentation", tmp_path)
    (sixteen,) = (row for row in shown["paged"] if row["block_tokens"] == 16)
    assert sixteen["wasted"] < 0.05
    assert shown["reserved_wasted"] > 0.9
