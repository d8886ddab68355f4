"""Near misses: what is said of two prompts is what a plain comparison finds, and the index stays within its bounds."""

from __future__ import annotations

import random
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvlab.errors import ConfigError, InvalidArgumentError
from kvlab.near_misses import PromptIndex
from kvlab.near_misses.minhash import sketch, window_hashes

WINDOW = 3
# Few different tokens, so that prompts have much in common.
prompts = st.lists(st.integers(0, 2), min_size=1, max_size=14)


def common(one: list[int], other: list[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def windows(tokens: list[int], window: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[at : at + window]) for at in range(len(tokens) - window + 1)]


def lost(one: list[int], other: list[int], window: int) -> int:
    """Tokens behind the common beginning that windows cover which the other has there, too."""
    parts = common(one, other)
    there = set(windows(other[parts:], window))
    covered = {
        at + step
        for at, tokens in enumerate(windows(one[parts:], window))
        if tokens in there
        for step in range(window)
    }
    return len(covered)


class AgainstAList(RuleBasedStateMachine):
    """The index holds what a plain list of prompts would, and finds what a comparison with all of them does."""

    MOST, TOKENS = 5, 40

    def __init__(self) -> None:
        super().__init__()
        self.index = PromptIndex(max_prompts=self.MOST, max_tokens=self.TOKENS, window=WINDOW)
        self.held: OrderedDict[tuple[int, ...], None] = OrderedDict()
        self.evicted = 0

    @rule(prompt=prompts)
    def add(self, prompt: list[int]) -> None:
        self.index.add(prompt, label=repr(prompt))
        longer = [held for held in self.held if list(held[: len(prompt)]) == prompt]
        if longer:
            self.held.move_to_end(min(longer))
            return
        for held in list(self.held):
            if prompt[: len(held)] == list(held):
                del self.held[held]
        while len(self.held) == self.MOST or self.tokens() + len(prompt) > self.TOKENS:
            self.held.popitem(last=False)
            self.evicted += 1
        self.held[tuple(prompt)] = None

    def tokens(self) -> int:
        return sum(map(len, self.held))

    @rule(prompt=prompts, least=st.integers(1, 6))
    def ask(self, prompt: list[int], least: int) -> None:
        found = self.index.near_misses(prompt, limit=2 * self.MOST, at_least=least)
        expected = {}
        for held in map(list, self.held):
            parts, behind = common(prompt, held), lost(prompt, held, WINDOW)
            if parts < min(len(prompt), len(held)) and parts + behind >= least:
                expected[repr(held)] = (parts, behind)
        given = {miss.label: (miss.shared_prefix, miss.lost_tokens) for miss in found}
        assert len(given) == len(found)
        assert given.items() <= expected.items()
        # What shares its beginning is always found; of what shares text elsewhere alone, nearly all.
        assert {label for label, (parts, _) in expected.items() if parts} <= given.keys()
        order = [(-miss.lost_tokens, -miss.shared_prefix) for miss in found]
        assert order == sorted(order)
        for miss in found:
            other = eval(miss.label)  # noqa: S307 (made above)
            (start, end), (other_start, other_end) = miss.changed, miss.other_changed
            assert start == other_start == miss.shared_prefix
            if miss.lost_tokens:
                assert prompt[end : end + WINDOW] == other[other_end : other_end + WINDOW]
                # Where they meet is not earlier for both.
                assert start in (end, other_end) or prompt[end - 1] != other[other_end - 1]
            else:
                assert (end, other_end) == (len(prompt), len(other))

    @invariant()
    def holds_the_same(self) -> None:
        self.index.validate()
        stats = self.index.stats()
        assert (stats["prompts"], stats["tokens"]) == (len(self.held), self.tokens())
        assert stats["evicted"] == self.evicted


AgainstAList.TestCase.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
TestIndexAgainstAList = AgainstAList.TestCase


def tokens_of(seed: int, count: int) -> list[int]:
    return random.Random(seed).choices(range(50_000), k=count)


@settings(max_examples=15, deadline=None)
@given(
    before=st.integers(0, 60),
    moved=st.integers(64, 300),
    behind=st.integers(0, 60),
    seed=st.integers(0, 99),
)
def test_text_that_moved_is_found_among_many_others(
    before: int, moved: int, behind: int, seed: int
) -> None:
    index = PromptIndex()
    for other in range(50):
        index.add(tokens_of(1_000 + other, 200), label="another")
    text = tokens_of(seed, moved)
    index.add(text + tokens_of(201, 30), label="it")
    asked = [*tokens_of(202, before + 1), *text, *tokens_of(203, behind)]
    (miss,) = index.near_misses(asked)
    assert (miss.label, miss.shared_prefix) == ("it", 0)
    assert miss.lost_tokens == moved
    assert miss.changed == (0, before + 1)
    assert miss.other_changed == (0, 0)
    assert f"up to {moved} tokens can be reused instead of 0" in miss.advice


def test_likeness_is_estimated_within_what_64_values_allow() -> None:
    for share in (0, 50, 150, 300, 400):
        one = np.array(tokens_of(1, 400), dtype=np.uint32)
        other = one.copy()
        other[share:] = tokens_of(2, 400)[share:]
        ours, theirs = window_hashes(one, 16), window_hashes(other, 16)
        both, either = len(np.intersect1d(ours, theirs)), len(np.union1d(ours, theirs))
        estimate = float((sketch(ours) == sketch(theirs)).mean())
        # Three standard deviations of a share of 64.
        assert abs(estimate - both / either) <= 3 * 0.5 / 8
        assert (estimate == 0) == (both == 0)


class Words:
    """Token ids as words."""

    def decode(self, token_ids: list[int], /) -> str:
        return " ".join(f"w{token}" for token in token_ids)


def test_a_date_in_the_middle_is_named_with_its_text_and_what_to_do() -> None:
    index = PromptIndex()
    head, tail = tokens_of(1, 40), tokens_of(2, 500)
    index.add([*head, 7, 8, *tail], label="yesterday")
    (miss,) = index.near_misses([*head, 7, 9, *tail], tokenizer=Words())
    assert (miss.shared_prefix, miss.lost_tokens) == (41, 500)
    assert (miss.changed, miss.other_changed) == ((41, 42), (41, 42))
    assert miss.before is not None
    assert miss.before.endswith("w7")
    assert (miss.here or "").startswith("w9 ")
    assert (miss.there or "").startswith("w8 ")
    assert miss.advice == (
        "token 41 differs, and 500 tokens behind are the same again: move what changes behind what stays, "
        "to the end of the prompt; then up to 541 tokens can be reused instead of 41"
    )
    assert miss.as_dict()["label"] == "yesterday"


def test_parts_in_another_order_and_a_change_at_the_end_get_their_own_advice() -> None:
    index = PromptIndex()
    first, second = tokens_of(1, 100), tokens_of(2, 100)
    index.add(first + second)
    (swapped,) = index.near_misses(second + first)
    assert (swapped.changed, swapped.other_changed) == ((0, 0), (0, 100))
    assert "keep what stays in one order" in swapped.advice
    (ending,) = index.near_misses(first + tokens_of(3, 50))
    assert (ending.shared_prefix, ending.lost_tokens) == (100, 0)
    assert "nothing to move" in ending.advice
    assert index.near_misses(first + second + [1, 2, 3]) == []
    assert index.near_misses(first) == []


def test_a_prompt_longer_than_the_index_is_counted_and_left_out() -> None:
    index = PromptIndex(max_tokens=10)
    index.add(range(11))
    assert index.stats()["too_long"] == 1
    assert index.near_misses(range(11), at_least=1) == []


@pytest.mark.parametrize("name", ["max_prompts", "max_tokens", "window"])
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} = 0"):
        PromptIndex(**{name: 0})


@pytest.mark.parametrize(
    "wrong", [[], [[1], [2]], [1.5], [-1], [1 << 32], ["a"], [[1, 2], [3]], "text", None]
)
def test_what_is_no_row_of_tokens_is_refused(wrong: object) -> None:
    index = PromptIndex()
    with pytest.raises(InvalidArgumentError, match=r"prompt|token"):
        index.add(wrong)
    with pytest.raises(InvalidArgumentError, match=r"prompt|token"):
        index.near_misses(wrong)
