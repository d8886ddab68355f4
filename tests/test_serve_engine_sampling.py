"""Choosing tokens: the nucleus, temperatures, seeds."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st

from kvlab.errors import InvalidArgumentError
from kvlab.serve.engine import Sampling
from kvlab.serve.engine.sampling import Sampler

# A quarter apart, so that no sum of probabilities comes near a `top_p` by rounding alone.
LOGITS = st.lists(st.integers(-20, 20).map(lambda n: n / 4), min_size=1, max_size=600)


def drawn(logits: Any, sampling: Sampling, times: int = 20) -> list[int]:
    sampler = Sampler(sampling)
    return [sampler.choose(logits) for _ in range(times)]


@settings(max_examples=30)
@given(LOGITS, st.floats(0.01, 1.0), st.floats(0.1, 4.0), st.integers(0, 1 << 64))
def test_only_the_likeliest_tokens_that_have_top_p_are_drawn(
    values: list[float], top_p: float, temperature: float, seed: int
) -> None:
    logits = torch.tensor(values)
    sampling = Sampling(temperature, top_p, seed % (1 << 64))
    p = torch.softmax(logits.double() / temperature, 0)
    for token in drawn(logits, sampling, 5):
        likelier = float(p[p > p[token]].sum())
        assert likelier < top_p + 1e-5


@given(LOGITS, st.integers(-(1 << 63), (1 << 64) - 1), st.floats(0.05, 1.0))
@settings(max_examples=30)
def test_the_same_seed_draws_the_same_tokens(values: list[float], seed: int, top_p: float) -> None:
    logits, sampling = torch.tensor(values), Sampling(1.0, top_p, seed)
    first = drawn(logits, sampling)
    torch.manual_seed(1)  # the request's random numbers are its own
    assert drawn(logits, sampling) == first


@settings(max_examples=30)
@given(LOGITS)
def test_greedy_takes_the_first_of_the_likeliest_and_a_tiny_temperature_one_of_them(
    values: list[float],
) -> None:
    logits = torch.tensor(values)
    assert drawn(logits, Sampling(0.0), 1) == [values.index(max(values))]
    for token in drawn(logits, Sampling(1e-30), 3):
        assert values[token] == max(values)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2]))
    counts = torch.bincount(torch.tensor(drawn(logits, Sampling(1.0, 0.75, 7), 2000)), minlength=3)
    assert counts[2] == 0
    assert abs(int(counts[0]) - 1250) < 100  # 0.5 of 0.8; four standard deviations are 87


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"temperature": -0.1}, "temperature = -0.1"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"top_p": 0.0}, "top_p = 0"),
        ({"top_p": 1.5}, "top_p = 1.5"),
        ({"seed": 1 << 64}, "seed = 18446744073709551616"),
    ],
)
def test_a_setting_that_cannot_be_is_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        Sampling(**values)
