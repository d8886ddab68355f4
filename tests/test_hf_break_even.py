"""How much of what was found is restored, and how much computed again: always, never, and by the learnt costs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")

from hf_support import extended, hits, open_store
from kvlab import InvalidArgumentError
from kvlab.errors import ConfigError
from kvlab.hf import attach
from tiny_models import build, prompt

GRID = 16
"""A chunk grid: restored and computed answers are the same bit for bit."""
MODES: tuple[Any, ...] = ("always", "auto", "never")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Forwards take what they compute, not what several threads wait for one another on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def found(report: Any) -> tuple[int, int, int]:
    return report.found_tokens.l1, report.found_tokens.l2, report.found_tokens.l3


@pytest.mark.parametrize("tier", ["l1", "l2", "l3"])
def test_always_restores_everything_and_never_nothing(tier: str, tmp_path: Path) -> None:
    model, ids = build("llama"), prompt(120)
    with open_store(tmp_path) as store:
        first = attach(model, store, chunk_tokens=GRID)
        cold = first.prefill(ids)
        store.flush()
        if tier != "l1":
            store.evict("l1" if tier == "l2" else "l2")
        there = tuple(112 if name == tier else 0 for name in ("l1", "l2", "l3"))
        for restore in ("always", "never"):
            with attach(model, store, chunk_tokens=GRID, restore=restore) as session:
                turn = session.prefill(ids, keep=False)
                assert found(turn.report) == there
                assert hits(turn.report) == (there if restore == "always" else (0, 0, 0))
                assert torch.equal(turn.logits, cold.logits)
                told = turn.report.recomputed
                assert (told is None) == (restore == "always")
                assert turn.report.predicted_ms is None
        assert told is not None
        assert "restore='never': 112 tokens" in told
        assert told == turn.report.missed
        assert store.costs()["choices"]["recomputed_tokens"] == 112


def test_auto_learns_to_leave_a_slow_disk_alone_and_a_new_process_knows(tmp_path: Path) -> None:
    # One chunk more to compute, against the better part of a second to read it.
    model, ids, chunk = build("llama"), prompt(264), 256
    with open_store(tmp_path, l3_read_limit="256KiB") as store:
        session = attach(model, store, chunk_tokens=chunk)
        cold = session.prefill(ids)
        store.evict()
        turns = [session.prefill(ids, keep=False) for _ in range(5)]
        reports = [turn.report for turn in turns]
        assert all(torch.equal(turn.logits, cold.logits) for turn in turns)
        # Three reads are what it takes to know the disk.
        assert [hits(report)[2] for report in reports] == [256, 256, 256, 0, 0]
        assert [found(report) for report in reports] == [(0, 0, 256)] * 5
        assert all(report.recomputed is None for report in reports[:3])
        last = reports[-1]
        assert last.recomputed is not None
        assert last.recomputed == last.missed
        assert last.recomputed.startswith("restoring the last 256 tokens from l3 is predicted")
        assert last.predicted_ms is not None
        chosen = store.costs()["choices"]
        forecast = session.explain(ids).forecast
        assert store.costs()["choices"] == chosen  # to ask is not to choose
        assert forecast.restored_tokens == 0
        assert forecast.restore_ms is not None
        assert forecast.compute_ms is not None
        assert forecast.restore_ms > forecast.compute_ms
        assert "256 are computed again" in forecast.decision
        out = session.generate(ids, max_new_tokens=4, do_sample=False)
        assert hits(out.report) == (0, 0, 0)
        costs = store.costs()
        assert costs["read"]["l3"]["learnt"]
        assert costs["choices"]["not_measured"] == 3
        assert costs["choices"]["none"] == 3
    with open_store(tmp_path, l3_read_limit="256KiB") as store:
        again = attach(model, store, chunk_tokens=chunk).prefill(ids, keep=False)
        assert found(again.report) == (0, 0, 256)
        assert hits(again.report) == (0, 0, 0)
        assert torch.equal(again.logits, cold.logits)


def test_what_is_computed_again_is_kept_and_goes_on(tmp_path: Path) -> None:
    model, ids = build("llama"), prompt(120)
    with open_store(tmp_path) as store:
        attach(model, store).prefill(ids)
        store.evict()
        with attach(model, store, restore="never") as session:
            session.generate(ids, max_new_tokens=4, do_sample=False)
            child = session.fork()
            assert hits(child.prefill(extended(ids, ids)).report) == (0, 0, 0)
            session.flush()
        session = attach(model, store, restore="always")
        assert hits(session.prefill(ids, keep=False).report) == (112, 0, 0)
        session.cache.validate()


def test_unknown_modes_and_bad_observations_are_refused() -> None:
    model = build("llama")
    with open_store(None) as store:
        for bad in ("sometimes", "", None, 1):
            with pytest.raises(ConfigError, match="'always', 'auto', 'never'"):
                attach(model, store, restore=bad)  # type: ignore[arg-type]
        session = attach(model, store)
        request = session.cache.begin([1] * 40, session.namespace)
        with pytest.raises(ConfigError, match="use always, auto or never"):
            request.choose("sometimes", bytes(32))  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError, match="32 bytes"):
            request.choose("auto", b"short")
        with pytest.raises(InvalidArgumentError):
            request.computed(bytes(32), 10, 0, -1.0)
        assert store.costs()["prefill"] == {}


@pytest.mark.parametrize("restore", MODES)
def test_the_costs_of_forwards_are_learnt_in_every_mode(restore: Any, tmp_path: Path) -> None:
    model = build("llama")
    with open_store(tmp_path) as store, attach(model, store, restore=restore) as session:
        for seed in range(3):
            session.prefill(prompt(100, seed=seed))
            session.generate(prompt(50, seed=seed), max_new_tokens=2, do_sample=False)
        (cost,) = store.costs()["prefill"].values()
        assert cost["observations"] == 6
        assert cost["learnt"]
