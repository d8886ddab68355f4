"""Sequences that stay in their cache buffer: no copy, the same answers, within the budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st

from hf_support import extended, forward, hits, live_cache, open_store, same_rows
from kvlab.hf import attach
from tiny_models import build, prompt

GREEDY: dict[str, Any] = {"do_sample": False}
MODEL = build("llama")
"""One for all examples: nothing changes it."""


def residents(session: Any) -> dict[str, int]:
    stats: dict[str, int] = session.cache.stats()["residents"]
    return stats


def test_the_next_turn_goes_on_in_place(tmp_path: Path) -> None:
    with open_store(tmp_path) as store, attach(MODEL, store) as session:
        first = session.generate(prompt(50), max_new_tokens=20, **GREEDY)
        assert not first.report.resident
        assert residents(session)["sequences"] == 1
        ids = extended(first.sequences, prompt(25, seed=1))
        second = session.generate(ids, max_new_tokens=20, **GREEDY)
        assert second.report.resident
        assert hits(second.report) == (64, 0, 0)
        assert residents(session)["taken"] == 1
        assert residents(session)["sequences"] == 1


def test_of_two_that_go_on_from_one_sequence_one_takes_it_and_one_copies(tmp_path: Path) -> None:
    ids = prompt(100)
    with open_store(tmp_path) as store, attach(MODEL, store) as session:
        session.prefill(ids)
        session.flush()
        live = live_cache(MODEL, ids, 96)
        with session.fork() as other:
            turns = [session.prefill(extended(ids, prompt(9, seed=1)))]
            turns.append(other.prefill(extended(ids, prompt(9, seed=2))))
        assert [turn.report.resident for turn in turns] == [True, False]
        assert [hits(turn.report) for turn in turns] == [(96, 0, 0)] * 2
        for seed, turn in enumerate(turns, 1):
            more = extended(ids, prompt(9, seed=seed))[:, 96:]
            assert torch.equal(turn.logits, forward(MODEL, more, live))
            assert same_rows(turn.cache, live, 109)
            live.crop(96 - 109)


def test_a_prompt_that_shares_a_part_takes_it_if_that_is_most_of_it(tmp_path: Path) -> None:
    ids = prompt(160)
    with open_store(tmp_path) as store, attach(MODEL, store) as session:
        session.prefill(ids)
        session.flush()
        little = session.prefill(extended(ids[:, :64], prompt(9, seed=1)))
        assert (little.report.resident, hits(little.report)) == (False, (64, 0, 0))
        unkept = session.prefill(extended(ids[:, :112], prompt(9, seed=1)), keep=False)
        assert not unkept.report.resident
        most = session.prefill(extended(ids[:, :112], prompt(9, seed=2)))
        assert (most.report.resident, hits(most.report)) == (True, (112, 0, 0))
        expected = forward(
            MODEL,
            extended(ids[:, :112], prompt(9, seed=2))[:, 112:],
            live_cache(MODEL, ids, 112),
        )
        assert torch.equal(most.logits, expected)
        # What it overwrote is whole in L1 and below.
        del most
        session.flush()
        store.evict()
        whole = session.prefill(extended(ids, prompt(3)), keep=False)
        assert hits(whole.report) == (0, 0, 160)
        assert same_rows(whole.cache, live_cache(MODEL, ids, 160), 160)


def test_a_cropped_cache_is_no_resident(tmp_path: Path) -> None:
    ids = prompt(100)
    with open_store(tmp_path) as store, attach(MODEL, store) as session:
        turn = session.prefill(ids)
        turn.cache.crop(-60)
        forward(MODEL, prompt(60, seed=9), turn.cache)
        del turn
        again = session.prefill(extended(ids, prompt(5)))
        assert (again.report.resident, hits(again.report)) == (False, (96, 0, 0))
        assert same_rows(again.cache, live_cache(MODEL, ids, 96), 96)


def test_a_cache_in_use_is_not_taken(tmp_path: Path) -> None:
    ids = prompt(100)
    with open_store(tmp_path) as store, attach(MODEL, store) as session:
        held = session.prefill(ids)
        session.flush()
        other = session.prefill(extended(ids, prompt(5)))
        assert not other.report.resident
        assert same_rows(held.cache, live_cache(MODEL, ids, 100), 100)


@pytest.mark.parametrize("ask", ["evict", "clear"])
def test_what_is_evicted_or_cleared_is_not_resident(ask: str, tmp_path: Path) -> None:
    ids = prompt(100)
    with open_store(tmp_path) as store, attach(MODEL, store) as session:
        session.prefill(ids)
        getattr(store, ask)()
        assert (residents(session)["sequences"], residents(session)["evicted"]) == (0, 1)
        turn = session.prefill(extended(ids, prompt(5)))
        assert not turn.report.resident
        assert hits(turn.report) == (0, 0, 96 if ask == "evict" else 0)


def test_no_more_stay_than_configured_and_none_hinders_a_lease(tmp_path: Path) -> None:
    token = 4 * 2 * 2 * 16 * 4
    with (
        open_store(tmp_path, l1=2 * 400 * token) as store,
        attach(MODEL, store, residents=2) as session,
    ):
        for seed in range(4):
            session.prefill(prompt(60, seed=seed), headroom=4)
            session.flush()
        assert (residents(session)["sequences"], residents(session)["displaced"]) == (2, 2)
        big = session.prefill(prompt(380), headroom=4)
        stats = session.cache.stats()
        assert stats["residents"]["reclaimed"] == 2
        assert stats["buffers"]["mapped"] <= stats["buffers"]["budget"]
        del big


def test_none_stay_if_none_are_wanted(tmp_path: Path) -> None:
    with open_store(tmp_path) as store, attach(MODEL, store, residents=0) as session:
        ids = session.generate(prompt(50), max_new_tokens=20, **GREEDY).sequences
        turn = session.generate(extended(ids, prompt(9)), max_new_tokens=4, **GREEDY)
        assert (turn.report.resident, hits(turn.report)) == (False, (64, 0, 0))


TURN = st.tuples(
    st.integers(0, 2),  # which conversation
    st.sampled_from(["go on", "go on", "go on", "back", "again", "fork", "evict", "prefill"]),
    st.integers(1, 40),  # tokens said
    st.integers(1, 20),  # tokens generated
)


@settings(max_examples=8, deadline=None)
@given(st.lists(TURN, min_size=3, max_size=9), st.sampled_from([0, 32]))
def test_answers_do_not_depend_on_residents(turns: list[Any], chunk: int) -> None:
    """Several conversations that grow, are taken back, forked and evicted say the same with and without."""

    def talk(residents: int) -> tuple[list[Any], list[Any]]:
        said: list[Any] = []
        reused: list[Any] = []
        with open_store(None, l1="8MiB") as store:
            session = attach(MODEL, store, chunk_tokens=chunk, residents=residents)
            chats = [
                prompt(20, seed=0),
                prompt(45, seed=1),
                extended(prompt(20), prompt(9, seed=2)),
            ]
            for at, (chat, kind, more, new) in enumerate(turns):
                ids = chats[chat]
                if kind == "evict":
                    store.evict("l1")
                elif kind == "back":
                    ids = ids[:, : max(1, ids.shape[1] - more)]
                elif kind == "fork":
                    session = session.fork()
                if kind != "again":
                    ids = extended(ids, prompt(more, seed=100 + at))
                if kind == "prefill":
                    turn: Any = session.prefill(ids)
                    said.append(turn.logits)
                else:
                    turn = session.generate(
                        ids,
                        max_new_tokens=new,
                        attention_mask=torch.ones_like(ids),
                        output_logits=True,
                        return_dict_in_generate=True,
                        **GREEDY,
                    )
                    said += turn.output.logits
                    ids = turn.sequences
                reused.append(turn.report.hit_tokens.total)
                del turn
                session.flush()
                chats[chat] = ids
                stats = session.cache.stats()
                assert stats["residents"]["sequences"] <= residents
                assert stats["buffers"]["mapped"] <= stats["buffers"]["budget"]
                session.cache.validate()
        return said, reused

    (without, reused_without), (with_them, reused_with) = talk(0), talk(2)
    assert reused_with == reused_without
    assert len(with_them) == len(without)
    assert all(torch.equal(a, b) for a, b in zip(with_them, without, strict=True))
