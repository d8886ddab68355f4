"""A chunk behind a prefix attends to it without a mask, in every family, as with one."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache

from kvlab.hf.attention import CHUNKED, use_chunked_attention
from tiny_models import FAMILIES, SLIDING, build, prompt

CUTS = st.lists(st.integers(1, 119), max_size=4, unique=True).map(sorted)


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_give_the_logits_of_the_whole_prompt(family: str) -> None:
    model, ids = build(family), prompt(120)
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
    assert use_chunked_attention(model)
    masks = []
    inner = torch.nn.functional.scaled_dot_product_attention

    @settings(max_examples=5, deadline=None)
    @given(CUTS)
    def in_chunks(cuts: list[int]) -> None:
        cache = DynamicCache()
        with torch.inference_mode():
            for start, end in zip([0, *cuts], [*cuts, 120], strict=True):
                out = model(input_ids=ids[:, start:end], past_key_values=cache).logits
                assert torch.allclose(out, expected[:, start:end], atol=1e-4)

    def seen(*args: object, **kwargs: object) -> object:
        masks.append(kwargs["attn_mask"])
        return inner(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", seen)
        in_chunks()
    if family not in (*SLIDING, "deepseek-v3"):
        assert masks
        assert all(mask is None for mask in masks)


def test_padding_is_masked_as_ever() -> None:
    model, ids = build("llama"), prompt(40)
    padding = torch.ones_like(ids)
    padding[:, :7] = 0
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=padding).logits
        use_chunked_attention(model)
        assert torch.equal(model(input_ids=ids, attention_mask=padding).logits, expected)


def test_models_that_gain_nothing_stay_as_they_are() -> None:
    assert not use_chunked_attention(build("llama", dtype=torch.bfloat16))
    eager = build("llama")
    eager.set_attn_implementation("eager")
    assert not use_chunked_attention(eager)
    assert eager.config._attn_implementation == "eager" != CHUNKED
