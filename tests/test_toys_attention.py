"""The toys of attention and generation: their pieces against PyTorch, and each run as a user does."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")
pytest.importorskip("matplotlib", reason="the 'plot' extra is not installed")

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import toy_runs

ROOT = toy_runs.TOYS.parent
sys.path.insert(0, str(toy_runs.TOYS))

import sizing
from char_gpt import entropies, sample, wrapped
from char_model import CharGPT
from common import save
from generation import generate_cached, generate_naive
from multi_head_attention import MultiHeadAttention, attention, causal_mask, softmax
from stepping import Toy
from timing import exponent, interleaved
from work import Shape, read_shape

from kvlab.sizing import kv_size, shape_of
from tiny_models import build

SIZES = st.integers(1, 9)
LETTERS = " abcdefgh"


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@given(batch=SIZES, heads=SIZES, queries=SIZES, before=st.integers(0, 9), dim=SIZES)
def test_attention_is_pytorchs(batch: int, heads: int, queries: int, before: int, dim: int) -> None:
    torch.manual_seed(queries)
    q = torch.randn(batch, heads, queries, dim)
    k, v = (torch.randn(batch, heads, before + queries, dim) for _ in range(2))
    mask = causal_mask(queries, before + queries)
    close(attention(q, k, v), nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask))


@given(tokens=st.integers(2, 20), changed=st.integers(1, 19), heads=st.sampled_from([1, 2, 4]))
def test_what_follows_changes_nothing(tokens: int, changed: int, heads: int) -> None:
    changed = min(changed, tokens - 1)
    torch.manual_seed(tokens)
    layer = MultiHeadAttention(8, heads)
    x = torch.randn(1, tokens, 8)
    other = x.clone()
    other[:, changed:] = torch.randn(1, tokens - changed, 8)
    before, after = layer(x)[0], layer(other)[0]
    close(before[:, :changed], after[:, :changed])
    assert not torch.allclose(before[:, changed:], after[:, changed:])


def test_each_query_looks_at_itself_and_at_all_before_it() -> None:
    assert causal_mask(2, 4).tolist() == [[True, True, True, False], [True, True, True, True]]


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20))
def test_softmax_sums_to_one_and_does_not_overflow(row: list[float]) -> None:
    weights = softmax(torch.tensor(row))
    assert math.isclose(float(weights.sum()), 1, abs_tol=1e-5)
    assert bool((weights >= 0).all())


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="width 10 does not divide into 4 heads"):
        MultiHeadAttention(10, 4)


@given(cuts=st.lists(st.integers(1, 6), min_size=1, max_size=6))
@settings(max_examples=30)
def test_a_cache_filled_in_any_steps_gives_what_one_forward_gives(cuts: list[int]) -> None:
    torch.manual_seed(sum(cuts))
    model = CharGPT(LETTERS, width=16, heads=2, layers=2, context=36)
    ids = torch.randint(len(LETTERS), (2, sum(cuts)))
    parts, past = [], None
    with torch.no_grad():
        for piece in ids.split(cuts, dim=1):
            logits, past = model(piece, past)
            parts.append(logits)
        close(torch.cat(parts, dim=1), model(ids)[0])


def test_a_text_is_encoded_and_decoded_and_samples_fill_the_context() -> None:
    torch.manual_seed(0)
    model = CharGPT(LETTERS, width=16, heads=2, layers=1, context=24)
    assert model.decode(model.encode("bad cab")[0].tolist()) == "bad cab"
    written = sample(model, "a bad ")
    assert written.startswith("a bad ")
    assert len(written) == 24
    assert written == sample(model, "a bad ")


def test_entropies_of_known_texts() -> None:
    single, pair = entropies("ab" * 1000)
    assert math.isclose(single, math.log(2))
    assert pair < 1e-3
    assert entropies("aaaa") == (0, 0)


def test_a_sample_keeps_its_own_lines() -> None:
    assert wrapped("one\n\n" + "word " * 20).splitlines()[:2] == ["one", ""]
    assert max(map(len, wrapped("word " * 20).splitlines())) <= 52


@given(power=st.floats(-3, 3), factor=st.floats(0.01, 100))
def test_the_exponent_of_a_power_is_found(power: float, factor: float) -> None:
    sizes = [1, 2, 4, 8]
    found = exponent(sizes, [factor * size**power for size in sizes])
    assert math.isclose(found, power, abs_tol=1e-9)


def test_arms_are_timed_in_turns() -> None:
    order: list[str] = []
    taken = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3
    assert set(taken) == {"a", "b"}
    assert min(taken.values()) >= 0


class Untrained(Toy):
    """The toy model as it is made, without training."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = CharGPT(LETTERS, width=16, heads=2, layers=2, context=40)
        self.attention_seconds = None


@given(prompt=st.text(LETTERS, min_size=1, max_size=20), count=st.integers(1, 20))
@settings(max_examples=30)
def test_generation_writes_the_same_with_and_without_a_cache(prompt: str, count: int) -> None:
    model = Untrained()
    ids = model.model.encode(prompt)
    with torch.no_grad():
        naive, cached = generate_naive(model, ids, count), generate_cached(model, ids, count)
    assert naive == cached
    assert len(naive) == count


@pytest.mark.parametrize("past", [1, 7, 40])
def test_the_work_of_a_decode_step_is_what_pytorch_counts(past: int) -> None:
    model: Any = build("llama")
    ids = torch.zeros((1, past), dtype=torch.long)
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True).past_key_values
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
    assert read_shape(model).forward(1, past).flops == counter.get_total_flops()


@given(first=st.integers(1, 300), second=st.integers(1, 300), batch=st.integers(1, 9))
def test_work_in_two_parts_is_the_work_at_once(first: int, second: int, batch: int) -> None:
    shape = Shape(
        layers=3, query_heads=4, kv_heads=2, head_dim=8, layer_weights=5000, head_weights=700
    )
    parts = shape.forward(first, 0, batch).flops + shape.forward(second, first, batch).flops
    # Each forward scores one token: two do so twice.
    assert parts - 2 * batch * shape.head_weights == shape.forward(first + second, 0, batch).flops
    alone, together = shape.forward(1, first, 1), shape.forward(1, first, batch)
    assert together.flops == batch * alone.flops
    assert together.bytes <= batch * alone.bytes
    assert together.intensity >= alone.intensity


@given(batch=st.integers(1, 10_000))
def test_the_crossover_is_where_the_cache_outgrows_the_weights(batch: int) -> None:
    shape = shape_of(sizing.MODEL)
    length, tokens = sizing.crossover(shape, batch), kv_size(shape).crossover_tokens
    assert tokens is not None
    assert batch * length >= tokens > batch * (length - 1)


def test_attention_toy(tmp_path: Path) -> None:
    shown = toy_runs.quick("attention", tmp_path)
    assert shown["difference"] <= 1e-5
    assert math.isclose(shown["exponents"]["score_bytes"], 2)
    assert shown["exponents"]["attention"] > shown["exponents"]["projections"]


def test_char_gpt_toy(tmp_path: Path) -> None:
    shown = toy_runs.quick("char_gpt", tmp_path)
    assert shown["curve"][-1]["unseen_loss"] < shown["entropy"]["single"]
    assert shown["entropy"]["pair"] < shown["entropy"]["single"] < shown["entropy"]["uniform"]


def test_sizing_toy(tmp_path: Path) -> None:
    shown = toy_runs.quick("sizing", tmp_path)
    assert shown["kv_bytes_per_token"] == 131072
    lengths = list(zip(shown["crossover"], shown["crossover_without_gqa"], strict=True))
    assert all(abs(grouped - 4 * every) < 4 for grouped, every in lengths)


@pytest.mark.usefixtures("smollm2")
def test_generation_toy(tmp_path: Path) -> None:
    shown = toy_runs.quick("generation", tmp_path)
    assert min(shown["same_tokens"].values()) >= 12
    assert shown["smollm2"][-1]["naive"] > shown["smollm2"][-1]["cached"]
    assert shown["kv_bytes_per_token"] == 46_080


@pytest.mark.usefixtures("smollm2")
def test_roofline_toy(tmp_path: Path) -> None:
    shown = toy_runs.quick("roofline", tmp_path)
    prefill, decode = shown["model"]["prefill"][-1], shown["model"]["decode"][0]
    assert prefill["intensity"] > shown["machine"]["ridge"] > decode["intensity"]
    assert prefill["flops_per_second"] > decode["flops_per_second"]
    for points in shown["sweeps"].values():
        intensities = [point["intensity"] for point in points]
        assert intensities == sorted(intensities)


@pytest.mark.parametrize("name", ["attention", "char_gpt", "generation", "roofline", "sizing"])
def test_committed_measurements_draw_the_same_picture_twice(name: str, tmp_path: Path) -> None:
    toy: Any = __import__(name)
    measured = json.loads((ROOT / "docs" / "measurements" / f"{name}.json").read_text())
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"
    for out in (first, second):
        save(toy.draw(measured), out)
    assert first.read_bytes() == second.read_bytes()
