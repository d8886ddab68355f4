"""Attention sinks: the cache that drops tokens does what the mask says, and the model needs the first ones."""

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

from streaming_cache import generate, score, streaming_cache


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_models.build("llama")


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 4), st.integers(1, 12), st.integers(2, 30))
@torch.inference_mode()
def test_the_cache_that_drops_tokens_is_the_mask(sinks: int, recent: int, tokens: int) -> None:
    model, size = tiny_models.build("llama"), sinks + recent
    ids = tiny_models.prompt(tokens)
    cache = streaming_cache(model, sinks, size)
    logits = []
    for at in range(tokens):
        out = model(ids[:, at : at + 1], position_ids=torch.tensor([[at]]), past_key_values=cache)
        logits.append(out.logits[0, -1])
        assert {layer.keys.shape[-2] for layer in cache.layers} == {min(at + 1, size)}
        assert {layer.values.shape[-2] for layer in cache.layers} == {min(at + 1, size)}
    stepped = torch.nn.functional.cross_entropy(
        torch.stack(logits[:-1]), ids[0, 1:], reduction="none"
    )
    torch.testing.assert_close(stepped, score(model, ids, sinks, size)[0], atol=1e-3, rtol=1e-3)


@torch.inference_mode()
def test_a_cache_that_holds_the_whole_text_is_the_plain_model(model: Any) -> None:
    ids = tiny_models.prompt(40)
    plain = torch.nn.functional.cross_entropy(
        model(ids).logits[0, :-1], ids[0, 1:], reduction="none"
    )
    torch.testing.assert_close(score(model, ids, 3, 40)[0], plain, atol=1e-4, rtol=1e-4)
    wide = generate(model, ids, streaming_cache(model, 3, 64), 8)
    assert wide == generate(model, ids, DynamicCache(), 8)
    own = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert wide == own[0, 40:].tolist()


@torch.inference_mode()
def test_sinks_stay_where_they_are_however_long_the_text(model: Any) -> None:
    """Behind two sinks every token is the same: what differs comes from the distance to the sinks."""
    ids = torch.full((1, 100), 7)
    ids[0, :2] = torch.tensor([30, 200])
    told = score(model, ids, 2, 10)[0]
    # Each of the four layers settles 10 tokens after the one below.
    torch.testing.assert_close(told[45:], told[45].expand(len(told) - 45), atol=1e-4, rtol=1e-4)
    wider = score(model, ids, 2, 100)[0]
    assert wider[45:].max() - wider[45:].min() > 1e-2


@pytest.mark.usefixtures("smollm2")
def test_the_toy(tmp_path: Path) -> None:
    results = toy_runs.quick("sinks", tmp_path)
    past = {row["arm"]: row["perplexity_past"] for row in results["arms"]}
    assert max(past["full cache"], past["1 sinks"], past["4 sinks"]) < 0.8 * past["0 sinks"]
    assert results["arms"][0]["weight_of_first"] > 0.1
    assert set(results["generated"]["text"]) == {"full cache", "0 sinks", "4 sinks"}
