"""The bench's formulas, against what they say of themselves; claims of caches against times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlab.bench.check import check_claims
from kvlab.bench.metrics import parse_goodput, parse_percentiles, summarise
from kvlab.bench.outcome import Answer, Outcome, Status
from kvlab.errors import InvalidArgumentError

seconds = st.floats(1e-4, 100.0)


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    ttft = draw(seconds)
    tokens = draw(st.none() | st.integers(1, 50))
    itls = tuple(draw(st.lists(seconds, max_size=5)))
    prompt = draw(st.none() | st.integers(1, 5000))
    cached = None if prompt is None else draw(st.none() | st.integers(0, prompt))
    return Answer(
        text="",
        ttft=ttft,
        e2el=ttft + sum(itls),
        itls=itls,
        prompt_tokens=prompt,
        output_tokens=tokens,
        cached_tokens=cached,
    )


@st.composite
def outcomes(draw: st.DrawFn) -> Outcome:
    answer = draw(st.none() | answers())
    failures: list[Status] = ["failed", "skipped"]
    status: Status = "ok" if answer else draw(st.sampled_from(failures))
    return Outcome(
        request="r", klass="c", session="s", turn=0, half="first", status=status, answer=answer,
        shared=draw(st.floats(0, 1)),
    )  # fmt: skip


many = st.lists(outcomes(), max_size=20)


@settings(deadline=None, max_examples=40)
@given(some=many, duration=st.floats(0.01, 1000))
def test_counts_and_rates(some: list[Outcome], duration: float) -> None:
    found = summarise(some, duration)
    done = [each.answer for each in some if each.answer]
    assert found["completed"] + found["failed"] + found["skipped"] == len(some)
    assert found["request_throughput"] == pytest.approx(len(done) / duration, abs=1e-4)
    known = [answer.output_tokens for answer in done]
    if done and None not in known:
        total = sum(count for count in known if count)
        assert found["total_output_tokens"] == total
        assert found["output_throughput"] == pytest.approx(total / duration, abs=1e-4)
    else:
        assert found["total_output_tokens"] is None
        assert found["output_throughput"] is None
    # One that does not say is no zero.
    said = [answer for answer in done if answer.cached_tokens is not None]
    assert found["cached_tokens_absent"] == len(done) - len(said)
    assert (found["total_cached_tokens"] is None) == (not said)
    if said:
        cached = sum(answer.cached_tokens or 0 for answer in said)
        prompts = sum(answer.prompt_tokens or 0 for answer in said)
        assert found["cached_token_ratio"] == pytest.approx(cached / prompts)


@settings(deadline=None, max_examples=40)
@given(some=many, percentiles=st.lists(st.integers(0, 100), min_size=1, max_size=4, unique=True))
def test_times_are_those_of_numpy_over_the_right_samples(
    some: list[Outcome], percentiles: list[int]
) -> None:
    found = summarise(some, 1.0, percentiles=percentiles)
    done = [each.answer for each in some if each.answer]
    samples = {
        "ttft": [answer.ttft for answer in done],
        "e2el": [answer.e2el for answer in done],
        "itl": [gap for answer in done for gap in answer.itls],
        "tpot": [
            (answer.e2el - answer.ttft) / (answer.output_tokens - 1)
            for answer in done
            if answer.output_tokens is not None and answer.output_tokens > 1
        ],
    }
    for name, values in samples.items():
        expected: dict[str, Callable[[Any], Any]] = {
            "mean": np.mean, "median": np.median, "std": np.std,
        }  # fmt: skip
        for figure, function in expected.items():
            got = found[f"{figure}_{name}_ms"]
            assert (got is None) == (not values)
            if values:
                assert got == pytest.approx(1e3 * function(values), abs=1e-3, rel=1e-6)
        for percentile in percentiles:
            got = found[f"p{percentile}_{name}_ms"]
            if values:
                ordered = sorted(values)
                assert 1e3 * ordered[0] - 1e-3 <= got <= 1e3 * ordered[-1] + 1e-3
                assert got == pytest.approx(1e3 * np.percentile(values, percentile), abs=1e-3)


@settings(deadline=None, max_examples=40)
@given(some=many, ttft=st.floats(1, 1e5), tpot=st.floats(1, 1e5), e2el=st.floats(1, 1e5))
def test_goodput_counts_what_meets_every_limit(
    some: list[Outcome], ttft: float, tpot: float, e2el: float
) -> None:
    limits = {"ttft": ttft, "tpot": tpot, "e2el": e2el}
    each = {name: summarise(some, 2.0, goodput={name: limits[name]}) for name in limits}
    every = summarise(some, 2.0, goodput=limits)
    assert every["good_requests"] <= min(found["good_requests"] for found in each.values())
    assert every["request_goodput"] == pytest.approx(every["good_requests"] / 2.0)
    assert every["request_goodput"] <= every["request_throughput"]
    slow = sum(out.answer is not None and 1e3 * out.answer.ttft > ttft for out in some)
    assert each["ttft"]["good_requests"] == every["completed"] - slow
    assert "request_goodput" not in summarise(some, 2.0)


def test_an_answer_of_one_token_has_no_tpot_and_meets_its_limit() -> None:
    one = Outcome(
        request="r", klass="c", session="s", turn=0, half="first", status="ok",
        answer=Answer(text="", ttft=1.0, e2el=9.0, output_tokens=1),
    )  # fmt: skip
    found = summarise([one], 1.0, goodput={"tpot": 0.1})
    assert found["mean_tpot_ms"] is None
    assert found["good_requests"] == 1


@pytest.mark.parametrize("text", ["", "ttft", "ttft:", "ttft:0", "itl:5", "ttft:-1", "ttft:nan"])
def test_limits_that_cannot_be(text: str) -> None:
    if not text:
        assert parse_goodput([text]) == {}
        return
    with pytest.raises(InvalidArgumentError, match="--goodput"):
        parse_goodput([text])


def test_limits_are_read_from_one_text_or_several() -> None:
    expected = {"ttft": 500.0, "tpot": 50.5}
    assert parse_goodput(["ttft:500 tpot:50.5"]) == expected
    assert parse_goodput(["ttft:500", "tpot:50.5"]) == expected


@pytest.mark.parametrize("text", ["", "a", "101", "-1", "50,,99", "nan"])
def test_percentiles_that_cannot_be(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="--percentiles"):
        parse_percentiles(text)


@given(st.lists(st.integers(0, 100), min_size=1, unique=True))
def test_percentiles_are_read_in_their_order(values: list[int]) -> None:
    assert parse_percentiles(", ".join(map(str, values))) == tuple(map(float, values))


def row(name: str, tokens: int, cached: int | None, ttft: float, shared: float = 0.0) -> Any:
    return {
        "round": 0, "request": name, "status": "ok", "input_tokens": tokens, "cached_tokens": cached,
        "ttft_ms": ttft, "queued_ms": None, "shared_ratio": shared,
    }  # fmt: skip


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[Any], dict[str, str]]:
    """A machine of a fixed cost and one a token, a little noise, and some servers' lies."""
    fixed, per_token = draw(st.floats(1, 50)), draw(st.floats(0.1, 3.0))
    rows, wrong = [], {}

    def took(computed: int) -> float:
        return (fixed + per_token * computed) * draw(st.floats(0.97, 1.03))

    for at in range(draw(st.integers(4, 8))):
        tokens = draw(st.integers(300, 3000))
        rows.append(row(f"cold {at}", tokens, 0, took(tokens)))
    for at in range(draw(st.integers(1, 8))):
        tokens = draw(st.integers(1000, 3000))
        part = int(tokens * draw(st.floats(0.8, 0.95)))
        kind = draw(st.sampled_from(["hit", "miss", "hit_but_slow", "miss_but_fast"]))
        name = f"{kind} {at}"
        claimed = part if kind in ("hit", "hit_but_slow") else 0
        really = part if kind in ("hit", "miss_but_fast") else 0
        rows.append(row(name, tokens, claimed, took(tokens - really), part / tokens))
        if kind.endswith(("slow", "fast")):
            wrong[name] = kind
    return rows, wrong


@settings(deadline=None, max_examples=40)
@given(runs())
def test_lies_are_found_and_nothing_else(run: tuple[list[Any], dict[str, str]]) -> None:
    rows, wrong = run
    found = check_claims(rows)
    assert {each.request: each.claim for each in found.disagreements} == wrong
    assert found.checked == found.agreed + len(wrong)


def test_what_does_not_say_is_judged_by_its_time_alone() -> None:
    rows = [row(f"cold {at}", 1000 + at, None, 1000.0 + at) for at in range(4)]
    rows += [row("hit", 1000, None, 120.0, 0.9), row("miss", 1000, None, 990.0, 0.9)]
    found = check_claims(rows)
    assert (found.claims_absent, found.absent_like_hits, found.checked) == (6, 1, 0)


def test_too_few_cold_requests_are_said() -> None:
    rows = [row("a", 1000, 0, 1000.0), row("b", 1000, 900, 100.0, 0.9)]
    assert "not checked: 1 cold" in check_claims(rows).basis
    reference = [row(f"c{at}", 1000, 0, 1000.0) for at in range(3)]
    found = check_claims(rows, reference)
    # What shares nothing cannot be told: a hit would take as long.
    assert (found.agreed, found.too_close) == (1, 1)


def test_waiting_in_line_is_not_held_against_a_hit() -> None:
    rows = [row(f"cold {at}", 1000, 0, 1000.0) for at in range(3)]
    rows.append({**row("hit", 1000, 900, 5100.0, 0.9), "queued_ms": 5000.0})
    found = check_claims(rows)
    assert not found.disagreements
    assert found.agreed == 1
