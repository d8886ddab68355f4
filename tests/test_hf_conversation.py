"""Conversations: what one turn computed and generated, the next one reuses."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")

from hf_support import (
    TIERS,
    all_in,
    attach,
    extended,
    forward,
    hits,
    live_cache,
    open_store,
    push_down,
    same_rows,
    state,
)
from kvlab.errors import InvalidArgumentError
from tiny_models import build, prompt

GREEDY = {"do_sample": False}


@pytest.mark.parametrize("tier", TIERS)
def test_each_turn_reuses_the_prompt_and_what_was_generated(tier: str, tmp_path: Path) -> None:
    model = build("llama")
    with open_store(tmp_path) as store, attach(model, store) as session:
        first = session.generate(prompt(50), max_new_tokens=20, **GREEDY)
        assert hits(first.report) == (0, 0, 0)
        assert first.sequences.shape == (1, 70)
        # 69 of the 70 tokens have keys and values: 4 whole blocks.
        push_down(store, tier)
        ids = extended(first.sequences, prompt(25, seed=1))
        second = session.generate(ids, max_new_tokens=20, **GREEDY)
        assert hits(second.report) == all_in(tier, 64)
        # 114 of 115: 7 whole blocks.
        push_down(store, tier)
        ids = extended(second.sequences, prompt(10, seed=2))
        third = session.generate(ids, max_new_tokens=5, **GREEDY)
        assert hits(third.report) == all_in(tier, 112)
        assert third.report.computed_tokens == 125 - 112
        assert third.report.blocks_reused == 7
        store.flush()
        session.cache.validate()


def test_a_conversation_says_what_plain_transformers_says_on_caches_cut_alike(
    tmp_path: Path,
) -> None:
    model = build("qwen2")
    with open_store(tmp_path) as store, attach(model, store) as session:
        first = session.generate(prompt(50), max_new_tokens=20, **GREEDY).sequences
        plain_cache = live_cache(model, prompt(50), 0)
        plain = model.generate(prompt(50), past_key_values=plain_cache, max_new_tokens=20, **GREEDY)
        assert torch.equal(first, plain)
        second = extended(first, prompt(25, seed=1))
        plain_cache.crop(64 - plain_cache.get_seq_length())
        # Random models say the padding token now and then, which generate() would hide without a mask.
        settings = GREEDY | {"max_new_tokens": 20, "attention_mask": torch.ones_like(second)}
        plain = model.generate(second, past_key_values=plain_cache, **settings)
        actual = session.generate(second, **settings)
        assert hits(actual.report) == (64, 0, 0)
        assert torch.equal(actual.sequences, plain)


def test_the_last_generated_token_is_not_kept(tmp_path: Path) -> None:
    model = build("llama")
    with open_store(tmp_path) as store, attach(model, store) as session:
        # 33 + 15 = 48 tokens, three whole blocks, of which the last row was never computed.
        ids = session.generate(prompt(33), max_new_tokens=15, **GREEDY).sequences
        assert ids.shape == (1, 48)
        again = session.prefill(extended(ids, prompt(5)), keep=False)
        assert hits(again.report) == (32, 0, 0)


def test_decoding_by_hand_is_kept_when_committed(tmp_path: Path) -> None:
    model, ids = build("llama"), prompt(40)
    with open_store(tmp_path) as store, attach(model, store) as session:
        turn = session.prefill(ids)
        for _ in range(30):
            token = turn.logits.argmax(-1, keepdim=True)
            ids = extended(ids, token)
            turn.logits = forward(model, token, turn.cache)
        turn.commit(ids.to(torch.int32))
        assert hits(session.prefill(extended(ids, prompt(3)), keep=False).report) == (64, 0, 0)
        # Still possible although the session has gone on to other requests, twice.
        session.prefill(prompt(40, seed=5))
        for _ in range(10):
            token = turn.logits.argmax(-1, keepdim=True)
            ids = extended(ids, token)
            turn.logits = forward(model, token, turn.cache)
        turn.commit(ids[0].tolist())
        session.flush()
        longer = extended(ids, prompt(3))
        restored = session.prefill(longer, keep=False)
        assert hits(restored.report) == (80, 0, 0)
        assert same_rows(restored.cache, turn.cache, 80)


@pytest.mark.parametrize("keep", [True, False])
def test_committing_other_tokens_than_were_computed_is_refused(keep: bool, tmp_path: Path) -> None:
    model, ids = build("llama"), prompt(40)
    with open_store(tmp_path) as store, attach(model, store) as session:
        turn = session.prefill(ids, keep=keep)
        session.flush()
        before = state(store)
        other = ids.clone()
        other[0, 20] += 1
        with pytest.raises(InvalidArgumentError, match="do not begin with the 40 of the prompt"):
            turn.commit(other)
        with pytest.raises(InvalidArgumentError, match="do not begin with the 40 of the prompt"):
            turn.commit(ids[:, :30])
        session.flush()
        assert state(store) == before


@pytest.mark.parametrize("headroom", [0, 3])
def test_a_cache_that_outgrows_its_lease_stays_right_and_is_kept(
    headroom: int, tmp_path: Path
) -> None:
    model, ids = build("llama"), prompt(40)
    reference = live_cache(model, ids, 40)
    with open_store(tmp_path) as store, attach(model, store) as session:
        turn = session.prefill(ids, headroom=headroom)
        leased = turn.cache.capacity
        more = prompt(100, seed=4)
        for at in range(0, 100, 5):
            piece = more[:, at : at + 5]
            assert torch.equal(forward(model, piece, turn.cache), forward(model, piece, reference))
        assert turn.cache.capacity >= 140 > leased
        assert same_rows(turn.cache, reference, 140)
        ids = extended(ids, more)
        turn.commit(ids)
        store.evict()
        restored = session.prefill(extended(ids, prompt(3)), keep=False)
        assert hits(restored.report) == (0, 0, 128)
        assert same_rows(restored.cache, reference, 128)


def test_cropping_while_a_commit_is_pending_leaves_what_is_stored_alone(tmp_path: Path) -> None:
    model = build("llama")
    with open_store(tmp_path) as store, attach(model, store) as session:
        for seed in range(20):
            ids = prompt(300, seed=seed)
            turn = session.prefill(ids)
            turn.cache.crop(-300)
            for layer in turn.cache.layers:
                for memory in layer.buffers:
                    memory.fill_(float("nan"))
        store.evict()
        for seed in range(20):
            ids = prompt(300, seed=seed)
            restored = session.prefill(ids, keep=False)
            assert hits(restored.report) == (0, 0, 288)
            assert same_rows(restored.cache, live_cache(model, ids, 288), 288)


def test_a_cache_can_be_cropped_after_its_store_is_closed(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        turn = attach(build("llama"), store).prefill(prompt(40))
    turn.cache.crop(-10)
    assert turn.cache.length == 30
