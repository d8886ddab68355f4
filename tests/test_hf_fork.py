"""Forks: two sessions go on from one context without touching each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")

from hf_support import attach, extended, forward, hits, live_cache, open_store, same_rows
from tiny_models import build, prompt


def sequence(session: Any) -> tuple[list[int], int]:
    assert session._request is not None
    blocks, tokens = session._request.sequence()
    return blocks, tokens


def test_a_fork_goes_its_own_way_and_its_parent_stays(tmp_path: Path) -> None:
    model, ids = build("llama"), prompt(70)
    with open_store(tmp_path) as store, attach(model, store) as parent:
        parent.prefill(ids)
        parent.flush()
        held = sequence(parent)
        assert held[1] == 70
        before = parent.cache.stats()["l1"]
        with parent.fork() as child:
            assert sequence(child) == held
            shared = parent.cache.stats()["l1"]
            assert shared["used"] == before["used"] == 5
            assert shared["saved_blocks"] - before["saved_blocks"] == 5
            mine, theirs = (extended(ids, prompt(40, seed=seed)) for seed in (1, 2))
            other = child.prefill(theirs)
            child.flush()
            assert hits(other.report) == (64, 0, 0)
            assert sequence(parent) == held
            assert sequence(child)[0][:4] == held[0][:4]
            own = parent.prefill(mine)
            parent.flush()
            assert hits(own.report) == (64, 0, 0)
            # Four whole blocks in common, then no block of the one is one of the other.
            here, there = sequence(parent)[0], sequence(child)[0]
            assert here[:4] == there[:4] == held[0][:4]
            assert not set(here[4:]) & set(there[4:])
            assert parent.cache.stats()["l1"]["saved_blocks"] == 4
            for turn, prompt_ids in ((own, mine), (other, theirs)):
                live = live_cache(model, ids, 64)
                assert torch.equal(turn.logits, forward(model, prompt_ids[:, 64:], live))
                assert same_rows(turn.cache, live, 110)
        assert hits(parent.prefill(mine, keep=False).report) == (96, 0, 0)
        assert hits(parent.prefill(theirs, keep=False).report) == (96, 0, 0)
        parent.flush()
        parent.cache.validate()


def test_a_shared_partial_block_is_copied_once_when_one_side_goes_on(tmp_path: Path) -> None:
    model, ids = build("llama"), prompt(40)
    with open_store(tmp_path) as store, attach(model, store) as parent:
        turn = parent.prefill(ids)
        parent.flush()
        with parent.fork() as child:
            held = sequence(child)
            for step in range(3):
                token = prompt(1, seed=step)
                forward(model, token, turn.cache)
                ids = extended(ids, token)
                turn.commit(ids)
                parent.flush()
                assert parent.cache.stats()["l1"]["copies"] == 1
            assert sequence(child) == held
            assert sequence(parent)[0][:2] == held[0][:2]
            assert sequence(parent)[0][2] != held[0][2]
        parent.cache.validate()


def test_a_fork_outlives_its_parent_and_a_fork_of_nothing_is_a_session(tmp_path: Path) -> None:
    model, ids = build("llama"), prompt(40)
    with open_store(tmp_path) as store:
        parent = attach(model, store)
        first = parent.fork()
        parent.prefill(ids)
        second = parent.fork()
        parent.close()
        assert sequence(second)[1] == 40
        for session in (first, second):
            assert hits(session.prefill(ids).report) == (32, 0, 0)
        assert parent.cache is second.cache
