"""The toys of reuse beyond prefixes: what each prints holds, and their pieces on tiny random models."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

import tiny_models
import toy_runs

sys.path.insert(0, str(toy_runs.TOYS))

import blend
import blend_arms
import partial_prefill
import prompt_schema
import rope

SOME = settings(deadline=None, max_examples=25)


@pytest.mark.usefixtures("smollm2")
def test_keys_turned_to_another_place_are_those_computed_there(tmp_path: Path) -> None:
    results = toy_runs.quick("rotation", tmp_path)
    for row in results["shifts"]:
        assert row["turned"] < 1e-3
        assert row["left_alone"] > 0.1
        assert row["values"] < 1e-3


@pytest.mark.usefixtures("smollm2")
def test_computing_tokens_again_over_right_kv_changes_nothing(tmp_path: Path) -> None:
    results = toy_runs.quick("partial_prefill", tmp_path)
    assert results["off"] < 1e-3
    assert [row["computed"] for row in results["rows"]] == [1, 128, 768]
    assert all(row["changed"] < 1e-4 for row in results["rows"])


@pytest.mark.usefixtures("smollm2")
def test_blending_comes_closer_with_what_it_recomputes(tmp_path: Path) -> None:
    arms = toy_runs.quick("blend", tmp_path)["arms"]
    assert arms["full prefill"]["kl"] < 1e-6
    assert arms["truth's own KV"]["kl"] < 1e-6
    assert arms["truth's own KV"]["top1"] == 1
    assert arms["as cached"]["kl"] > arms["re-rotated"]["kl"] > arms["15 % by layer 1"]["kl"] > 1e-3
    assert (arms["as cached"]["work"], arms["full prefill"]["work"]) == (0, 1)
    # Two of 30 layers for all tokens, the others for 15 %.
    assert arms["15 % by layer 1"]["work"] == pytest.approx((2 + 28 * 0.15) / 30, abs=1e-3)


@pytest.mark.usefixtures("smollm2")
def test_modules_lose_what_they_did_not_see_of_each_other(tmp_path: Path) -> None:
    rows = toy_runs.quick("prompt_modules", tmp_path)["rows"]
    assert [row["modules"] for row in rows] == [1, 3, 8]
    assert rows[0]["alone"]["missing"] < 1e-6
    assert rows[-1]["gaps"]["kl"] < 1e-6
    for row in rows[1:]:
        assert row["alone"]["kl"] > row["behind"]["kl"] > 1e-3
    assert rows[-1]["behind"]["seconds"] < rows[-1]["full"]["seconds"]


PLACES = st.integers(0, 4000)


@SOME
@given(PLACES, PLACES, st.integers(0, 1000))
def test_turns_add_up_keep_lengths_and_scores_depend_on_distance_alone(
    first: int, second: int, seed: int
) -> None:
    frequencies = rope.frequencies_of(16).double()
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, 3, 5, 16, generator=generator, dtype=torch.float32)

    def turn(rows: Any, place: int) -> Any:
        return rope.rotate(rows, place, frequencies)

    each = rope.rotate(key, torch.full((5,), first), frequencies)
    assert torch.equal(turn(key, first), each)
    assert torch.equal(turn(key, 0), key)
    both = turn(turn(key, first), second)
    assert torch.allclose(both, turn(key, first + second), atol=1e-4)
    assert torch.allclose(turn(both, -first - second), key, atol=1e-4)
    assert torch.allclose(both.norm(dim=-1), key.norm(dim=-1), rtol=1e-4)
    near = turn(query, second) @ turn(key, 0).mT
    far = turn(query, second + first) @ turn(key, first).mT
    assert torch.allclose(near, far, atol=1e-3)


@SOME
@given(st.permutations(range(24)), st.integers(1, 24), st.sampled_from(["llama", "llama3-rope"]))
def test_any_tokens_computed_over_right_kv_are_what_transformers_computes(
    places: list[int], count: int, family: str
) -> None:
    model, ids = tiny_models.build(family), tiny_models.prompt(24)
    with torch.inference_mode():
        truth = partial_prefill.empty(model, 24)
        hidden = partial_prefill.compute(model, ids[0], torch.arange(24), truth)
        theirs = torch.log_softmax(model(ids).logits[0], -1)
        ours = partial_prefill.log_probabilities(model, hidden)
        assert torch.allclose(ours, theirs, atol=1e-4)
        at, kv = torch.tensor(places[:count]), truth.copy()
        kv.keys[:, :, at] = 7.0  # what is computed replaces what was there
        again = partial_prefill.compute(model, ids[0], at, kv)
    assert torch.allclose(again, hidden[at], atol=1e-4)
    assert torch.allclose(kv.keys, truth.keys, atol=1e-4)


@SOME
@given(st.integers(0, 10_000))
def test_documents_and_question_do_not_overlap_and_the_question_goes_on_from_one(seed: int) -> None:
    documents, question = blend.pick(list(range(4000)), random.Random(seed))
    seen = torch.cat([*documents, question]).tolist()
    assert len(set(seen)) == len(seen) == blend_arms.CONTEXT + blend_arms.QUESTION_TOKENS
    assert int(question[0]) - 1 in [int(document[-1]) for document in documents]


def test_first_tokens_are_those_of_every_document_but_the_one_in_front() -> None:
    size = blend_arms.DOCUMENT_TOKENS
    context = [place for place in blend_arms.firsts(3).tolist() if place < blend_arms.CONTEXT]
    assert context == [
        size * number + at for number in range(1, blend_arms.DOCUMENTS) for at in range(3)
    ]


def test_one_module_at_its_reserved_place_is_what_a_prefill_there_gives() -> None:
    model = tiny_models.build("llama").double()
    length = prompt_schema.MODULE_TOKENS
    tokens = tiny_models.prompt(2 * length)[0].view(2, length)
    with torch.inference_mode():
        schema = prompt_schema.Schema(model, tokens)
        cache = prompt_schema.cached(model)
        prompt_schema.run(model, tokens[1], prompt_schema.positions([1]), cache)
        for (key, value), layer in zip(schema.alone[1], cache.layers, strict=True):
            assert torch.equal(key, layer.keys)
            assert torch.equal(value, layer.values)
        # Behind the first module it has seen that one: its first layer is the same, the others not.
        first, last = schema.alone[1][0], schema.alone[1][-1]
        assert torch.allclose(first[0], schema.behind[1][0][0])
        assert not torch.allclose(last[0], schema.behind[1][-1][0])
