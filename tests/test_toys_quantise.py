"""Quantisation of keys and values: errors, sizes, and who pays for a large channel."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

import tiny_models
import toy_runs

sys.path.insert(0, str(toy_runs.TOYS))

from quantisers import (
    GROUP,
    RESIDUAL,
    kivi_keys,
    kivi_values,
    pack,
    per_channel,
    per_token,
    through,
    unpack,
)

few = settings(max_examples=40, deadline=None)
BITS = st.sampled_from([8, 4, 2])


def rows(seed: int, tokens: int, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 2, tokens, 2 * GROUP, generator=generator) * spread


@few
@given(st.integers(0, 999), BITS, st.floats(1e-3, 100), st.floats(-50, 50))
def test_a_number_comes_back_within_half_a_step(
    seed: int, bits: int, spread: float, middle: float
) -> None:
    groups = rows(seed, 4, spread).reshape(-1, GROUP) + middle
    packed = pack(groups, bits)
    error = (unpack(packed, bits) - groups).abs()
    width = groups.amax(-1) - groups.amin(-1)
    rounding = groups.abs().amax(-1) * 2**-10 + width * 2**-10  # of the fp16 zero point and scale
    assert (error.amax(-1) <= width / (2**bits - 1) / 2 + rounding + 1e-6).all()
    assert packed.size == len(groups) * (GROUP * bits // 8 + 2 + 2)


@few
@given(BITS, st.data())
def test_codes_survive_their_packing(bits: int, data: st.DataObject) -> None:
    top = 2**bits - 1
    codes = data.draw(st.lists(st.integers(0, top), min_size=GROUP - 2, max_size=GROUP - 2))
    group = torch.tensor([[0, top, *codes]]).float()
    assert unpack(pack(group, bits), bits).equal(group)


def test_a_group_of_equal_numbers_is_no_division_by_zero() -> None:
    group = torch.full((1, GROUP), 0.5)
    assert unpack(pack(group, 2), 2).equal(group)


@few
@given(st.integers(0, 999), BITS, st.integers(1, 200))
def test_kivi_keeps_the_latest_tokens_and_what_fills_no_group(
    seed: int, bits: int, tokens: int
) -> None:
    exact = rows(seed, tokens)
    whole = max(0, tokens - RESIDUAL) // GROUP * GROUP
    for scheme in (kivi_keys, kivi_values):
        back, size = scheme(exact, bits)
        assert back.shape == exact.shape
        assert back[..., whole:, :].equal(exact[..., whole:, :].half().float())
        numbers = exact[..., :whole, :].numel()
        quantised = numbers * bits // 8 + numbers // GROUP * 4
        assert size == quantised + exact[..., whole:, :].numel() * 2


def test_a_large_channel_costs_its_neighbours_nothing_if_groups_are_channels() -> None:
    plain = rows(3, 64)
    loud = plain.clone()
    loud[..., 5] += 100
    others = [at for at in range(2 * GROUP) if at != 5]

    def error(scheme: object, exact: torch.Tensor) -> float:
        assert scheme in {per_channel, per_token}
        back, _ = per_channel(exact, 2) if scheme is per_channel else per_token(exact, 2)
        return float((back - exact)[..., others].abs().mean())

    assert error(per_channel, loud) == error(per_channel, plain)
    assert error(per_token, loud) > 2 * error(per_token, plain)


@torch.inference_mode()
def test_a_cache_goes_through_as_a_copy() -> None:
    model = tiny_models.build("llama")
    cache: Any = DynamicCache()
    # Heads of 16 channels: the groups of 32 hold two heads' rows of one layer.
    model(tiny_models.prompt(96), past_key_values=cache)
    before = [layer.keys.clone() for layer in cache.layers]
    copy, size = through(cache, "16 bits", 16)
    assert size == sum(layer.keys.numel() * 2 * 2 for layer in cache.layers)
    smaller = through(cache, "KIVI", 2)[1]
    assert smaller < size
    assert copy.get_seq_length() == cache.get_seq_length() == 96
    assert all(a.equal(layer.keys) for a, layer in zip(before, cache.layers, strict=True))


@pytest.mark.usefixtures("smollm2")
def test_the_toy(tmp_path: Path) -> None:
    results = toy_runs.quick("quantise", tmp_path)
    found = {(row["scheme"], row["bits"]): row for row in results["rows"]}
    assert found["16 bits", 16]["bytes_per_token"] == 23_040
    assert found["KIVI", 8]["kl"] < 1e-3
    assert found["keys per channel", 2]["kl"] < found["keys per token", 2]["kl"]
    assert found["per token", 2]["bytes_per_token"] < 23_040 / 5
