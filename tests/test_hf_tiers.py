"""Below L1: damage, prefetch, and requests that leave no trace."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")

from hf_support import (
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
    state,
)
from tiny_models import build, prompt


def test_damage_on_disk_is_a_shorter_hit_a_right_answer_and_a_count(tmp_path: Path) -> None:
    model, ids = build("llama"), prompt(120)
    with open_store(tmp_path) as store, attach(model, store) as session:
        session.prefill(ids[:, :70])
        store.flush()  # or both are written at once, in either order
        session.prefill(ids)  # a second run, from token 64 on
        store.evict()
        damage_last_record(tmp_path)
        live = live_cache(model, ids[:, :70], 64)
        expected = forward(model, ids[:, 64:], live)
        for _ in range(2):
            turn = session.prefill(ids, keep=False)
            assert hits(turn.report) == (0, 0, 64)
            assert torch.equal(turn.logits, expected)
            assert same_rows(turn.cache, live, 120)
            assert store.stats()["l3"]["corrupt"] == 1
        out = session.generate(ids, max_new_tokens=5, do_sample=False)
        assert out.report.fallback is None
        # What was computed again is kept again.
        store.evict()
        assert hits(session.prefill(ids, keep=False).report) == (0, 0, 112)


def test_the_report_names_damage(tmp_path: Path) -> None:
    model, ids = build("llama"), prompt(70)
    with open_store(tmp_path) as store, attach(model, store) as session:
        session.prefill(ids)
        store.evict()
        damage_last_record(tmp_path)
        assert "could not be read" in session.prefill(ids).report.missed
        fresh = session.prefill(prompt(70, seed=1)).report
        assert fresh.missed.startswith("no tier has the first 16 tokens")
        assert session.prefill(ids).report.missed.startswith("nothing")


def test_prefetched_bytes_are_hit_in_l2(tmp_path: Path) -> None:
    model, ids = build("llama"), prompt(120)
    with open_store(tmp_path) as store, attach(model, store) as session:
        expected = session.prefill(ids)
        store.evict()
        ticket = session.prefetch(ids)
        assert ticket.wait(120)
        progress = ticket.progress()
        assert progress["wanted"] == progress["loaded"] == 7
        assert store.stats()["prefetch"]["held_bytes"] > 0
        restored = session.prefill(ids, keep=False)
        assert hits(restored.report) == (0, 112, 0)
        assert same_rows(restored.cache, expected.cache, 112)
        assert store.stats()["prefetch"]["claimed"] > 0
        assert store.stats()["prefetch"]["held_bytes"] == 0


def test_a_cancelled_prefetch_holds_nothing_and_the_request_is_served(tmp_path: Path) -> None:
    model, ids = build("llama"), prompt(120)
    with open_store(tmp_path) as store, attach(model, store) as session:
        session.prefill(ids)
        store.evict()
        ticket = session.prefetch(ids)
        ticket.cancel()
        assert ticket.wait(120)
        assert store.stats()["prefetch"]["held_bytes"] == 0
        assert session.prefill(ids, keep=False).report.hit_tokens.total == 112


@pytest.mark.parametrize("tier", ["l1", "l2", "l3"])
def test_a_request_that_is_not_to_be_kept_changes_no_tier(tier: str, tmp_path: Path) -> None:
    model, ids = build("llama"), prompt(70)
    with open_store(tmp_path) as store, attach(model, store) as session:
        session.prefill(ids)
        push_down(store, tier)
        store.flush()
        before = state(store)
        for _ in range(2):
            turn = session.prefill(extended(ids, prompt(50, seed=1)), keep=False)
            assert hits(turn.report) == all_in(tier, 64)
            assert turn.report.not_kept is not None
            store.flush()
            del turn
            assert state(store) == before


def test_a_store_in_memory_only_serves_from_l1_and_l2() -> None:
    model, ids = build("llama"), prompt(70)
    with open_store(None) as store, attach(model, store) as session:
        session.prefill(ids)
        store.evict("l1")
        assert hits(session.prefill(ids, keep=False).report) == (0, 64, 0)
