"""Restored equals never evicted, bit for bit, from every tier, in every dtype and family."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")

from hf_support import (
    TIERS,
    all_in,
    attach,
    damage_last_record,
    extended,
    forward,
    hits,
    live_cache,
    open_store,
    push_down,
    same_rows,
)
from kvlab.hf import load
from tiny_models import build, prompt

FAMILIES = ("llama", "llama3-rope", "qwen2", "mistral-swa", "gemma3", "deepseek-v3")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HIT = 80


def two_turns() -> tuple[Any, Any]:
    """Two prompts whose first 85 tokens are the same: five whole blocks and a bit."""
    first = prompt(100)
    return first, extended(first[:, :85], prompt(30, seed=9))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_restored_prefix_computes_what_one_that_never_left_memory_does(
    family: str, dtype: Any, tmp_path: Path
) -> None:
    model = build(family, dtype=dtype)
    first, second = two_turns()
    live = live_cache(model, first, HIT)
    expected = forward(model, second[:, HIT:], live)
    with open_store(tmp_path) as store, attach(model, store) as session:
        session.prefill(first)
        for tier in TIERS:
            push_down(store, tier)
            restored = session.prefill(second, keep=False)
            assert hits(restored.report) == all_in(tier, HIT)
            assert same_rows(restored.cache, live, second.shape[1])
            assert torch.equal(restored.logits, expected)
            assert restored.report.computed_tokens == second.shape[1] - HIT
            assert (restored.report.bytes_read > 0) == (tier != "l1")


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_generation_goes_on_as_from_a_cache_cut_at_the_hit(
    dtype: Any, tier: str, tmp_path: Path
) -> None:
    model = build("qwen2", dtype=dtype)
    first, second = two_turns()
    settings = {
        "max_new_tokens": 12,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    live = live_cache(model, first, HIT)
    expected = model.generate(second, past_key_values=live, **settings)
    with open_store(tmp_path) as store, attach(model, store) as session:
        session.prefill(first)
        push_down(store, tier)
        actual = session.generate(second, **settings)
        assert hits(actual.report) == all_in(tier, HIT)
        assert actual.report.fallback is None
        assert torch.equal(actual.sequences, expected.sequences)
        for mine, other in zip(actual.output.logits, expected.logits, strict=True):
            assert torch.equal(mine, other)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Kernels that share their work out, as users' do; `make test` runs the others on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_smollm2_restored_equals_never_evicted(dtype: str, smollm2: Path, tmp_path: Path) -> None:
    model: Any
    model, tokenizer = load(str(smollm2), dtype=dtype)
    text = "You are the keeper of a small harbour. " * 12
    first = tokenizer(text + "What is the tide?", return_tensors="pt")["input_ids"]
    second = tokenizer(text + "Who calls at noon, and why?", return_tensors="pt")["input_ids"]
    with open_store(tmp_path, l1="128MiB", l2="64MiB") as store, attach(model, store) as session:
        session.prefill(first)
        for tier in TIERS:
            push_down(store, tier)
            restored = session.prefill(second, keep=False)
            hit = restored.report.hit_tokens.total
            assert hits(restored.report) == all_in(tier, hit)
            assert hit >= 96
            live = live_cache(model, first, hit)
            assert torch.equal(restored.logits, forward(model, second[:, hit:], live))
            assert same_rows(restored.cache, live, second.shape[1])
        out = session.generate(second, max_new_tokens=8, do_sample=False)
        plain = model.generate(
            second,
            past_key_values=live_cache(model, first, hit),
            attention_mask=torch.ones_like(second),
            max_new_tokens=8,
            do_sample=False,
        )
        assert hits(out.report) == all_in("l3", hit)
        assert torch.equal(out.sequences, plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_on_a_chunk_grid_cold_equals_warm(tier: str, dtype: Any, tmp_path: Path) -> None:
    model = build("llama", dtype=dtype)
    # The second turn goes on from what the first generated, which was computed off the grid.
    settings = {"max_new_tokens": 60, "do_sample": False}
    with open_store(tmp_path) as store, attach(model, store, chunk_tokens=32) as session:
        first = session.generate(prompt(75), **settings).sequences
        second = extended(first, prompt(40, seed=3))
        push_down(store, tier)
        warm = session.prefill(second, keep=False)
        assert hits(warm.report) == all_in(tier, 64)
        warm_text = session.generate(second, **settings).sequences
    with open_store(None) as empty, attach(model, empty, chunk_tokens=32) as session:
        cold = session.prefill(second, keep=False)
        assert cold.report.hit_tokens.total == 0
        assert torch.equal(cold.logits, warm.logits)
        assert same_rows(cold.cache, warm.cache, second.shape[1])
        assert torch.equal(session.generate(second, **settings).sequences, warm_text)


def test_a_hit_cut_short_by_damage_is_rounded_to_the_grid(tmp_path: Path) -> None:
    model, ids = build("llama", dtype=torch.bfloat16), prompt(120)
    with open_store(tmp_path) as store:
        grid = attach(model, store, chunk_tokens=32)
        expected = grid.prefill(ids, keep=False).logits
        grid.prefill(ids[:, :49])  # one run of a chunk: 32 tokens
        store.flush()
        grid.prefill(ids)  # a second run: 64 tokens
        store.evict()
        damage_last_record(tmp_path)
        warm = grid.prefill(ids, keep=False)
        assert hits(warm.report) == (0, 0, 32)
        assert torch.equal(warm.logits, expected)
