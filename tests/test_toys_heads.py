"""Key-value heads and latent attention: what the lessons say holds for any shape."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import toy_runs

sys.path.insert(0, str(toy_runs.TOYS))

from grouped_attention import Attention, attend, bytes_per_token
from kv_heads import MODELS
from latent_attention import LatentAttention, Shape

few = settings(max_examples=25, deadline=None)
SEEDS = st.integers(0, 2**31)
SHAPES = st.builds(
    Shape,
    layers=st.just(1),
    width=st.just(24),
    heads=st.integers(2, 5),
    latent=st.integers(2, 9),
    nope=st.integers(2, 6),
    rope=st.integers(1, 3).map(lambda pairs: 2 * pairs),
    value=st.integers(2, 6),
)


@few
@given(SEEDS, st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.integers(0, 9))
def test_any_number_of_key_value_heads_gives_torchs_attention(
    seed: int, groups: int, share: int, new: int, before: int
) -> None:
    torch.manual_seed(seed)
    tokens = before + new
    query = torch.randn(2, groups * share, new, 8)
    key, value = torch.randn(2, 2, groups, tokens, 8)
    seen = torch.ones(new, tokens, dtype=torch.bool).tril(before)
    theirs = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, enable_gqa=True
    )
    torch.testing.assert_close(attend(query, key, value), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n_kv_heads", [6, 3, 2, 1])
@torch.inference_mode()
def test_a_layer_that_reads_token_by_token_says_the_same_and_caches_its_key_value_heads(
    n_kv_heads: int,
) -> None:
    torch.manual_seed(1)
    layer = Attention(48, 6, n_kv_heads)
    x = torch.randn(1, 11, 48)
    whole = layer(x)
    assert layer.cached.numel() * 4 == 11 * bytes_per_token(1, n_kv_heads, 8, element=4)
    layer.cached = layer.cached[..., :0, :]
    stepped = torch.cat([layer(part) for part in torch.split(x, [4, 1, 1, 5], dim=1)], dim=1)
    torch.testing.assert_close(stepped, whole, atol=1e-5, rtol=1e-5)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="9 query heads do not divide among 2"):
        attend(torch.zeros(1, 9, 1, 4), torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4))


def test_the_cache_of_the_small_model_is_the_one_kvlab_measures() -> None:
    layers, _, kv_heads, dim = MODELS["SmolLM2-135M (GQA)"]
    assert bytes_per_token(layers, kv_heads, dim, element=4) == 46_080


@few
@given(SEEDS, SHAPES, st.integers(1, 5), st.integers(0, 7))
@torch.inference_mode()
def test_absorbed_is_naive_for_any_shape_and_number_of_new_tokens(
    seed: int, shape: Shape, new: int, before: int
) -> None:
    torch.manual_seed(seed)
    layer = LatentAttention(shape)
    x = torch.randn(before + new, shape.width)
    cache = layer.compress(x, 0)
    query = layer.ask(x[before:], before)
    absorbed, naive = (form(query, *cache) for form in (layer.absorbed, layer.naive))
    assert absorbed.shape == (shape.heads, new, shape.value)
    torch.testing.assert_close(absorbed, naive, atol=1e-4, rtol=1e-4)
    assert sum(part.numel() for part in cache) == len(x) * shape.cached_numbers()["MLA"]


@settings(max_examples=10, deadline=None)
@given(
    SHAPES, st.integers(2, 4), st.integers(0, 6)
)  # dimensions of 1 are no matrix product to torch
@torch.inference_mode()
def test_the_arithmetic_told_is_what_torch_counts(shape: Shape, new: int, before: int) -> None:
    layer = LatentAttention(shape)
    x = torch.randn(before + new, shape.width)
    latents, rope_keys = layer.compress(x, 0)
    keys, values = layer.expand(latents, rope_keys)
    query = layer.ask(x[before:], before)
    runs: dict[str, Callable[[], object]] = {
        "expanded every step": lambda: layer.naive(query, latents, rope_keys),
        "expanded once": lambda: (
            layer.expand(latents[before:], rope_keys[before:]),
            layer.attend_expanded(query, keys, values),
        ),
        "absorbed": lambda: layer.absorbed(query, latents, rope_keys),
    }
    for name, told in shape.flops(new, before + new).items():
        with FlopCounterMode(display=False) as counter:
            runs[name]()
        assert counter.get_total_flops() == told, name


def test_the_toy_of_key_value_heads(tmp_path: Path) -> None:
    results = toy_runs.quick("kv_heads", tmp_path)
    assert results["largest_error"] < 1e-5
    times = {row["n_kv_heads"]: row["grouped_ms"] for row in results["times"]}
    assert times[1] < times[32]


def test_the_toy_of_latent_attention(tmp_path: Path) -> None:
    results = toy_runs.quick("mla", tmp_path)
    size = results["bytes_per_token"]
    assert size["MQA"] < size["MLA"] < size["GQA, 8 kv heads"] < size["MHA"]
    assert size["MLA"] == (512 + 64) * 60 * 2
    assert all(row["error"] < 1e-4 for row in results["decode"])
    assert results["prefill_gflop"]["absorbed"] > results["prefill_gflop"]["expanded once"]
