"""Several sessions on several threads over one small store say what one alone says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")

from concurrent.futures import ThreadPoolExecutor

from hf_support import attach, extended, open_store
from kvlab.hf import Session
from tiny_models import build, prompt

THREADS = 4
TURNS = 6


def talk(session: Session, agent: int) -> list[Any]:
    """Turns of one agent: a context that all agents share, and a part of its own."""
    answers = []
    for turn in range(TURNS):
        ids = extended(prompt(100), prompt(20 + 16 * (turn % 3), seed=10 * agent + turn % 4))
        settings = {"attention_mask": torch.ones_like(ids), "do_sample": False}
        out = session.generate(ids, max_new_tokens=6, **settings)
        assert out.report.fallback is None
        answers.append(out.sequences)
    return answers


@pytest.mark.parametrize("l1", ["1536KiB", "16MiB"])
def test_sessions_on_threads_answer_as_one_alone_does(l1: str, tmp_path: Path) -> None:
    model = build("llama")
    # On the grid, an answer does not depend on what happened to be cached.
    with open_store(None) as store, attach(model, store, chunk_tokens=32) as session:
        expected = [talk(session, agent) for agent in range(THREADS)]
    with (
        open_store(tmp_path, l1=l1, l2="512KiB") as store,
        attach(model, store, chunk_tokens=32) as session,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        forks = [session.fork() for _ in range(THREADS)]
        actual = list(pool.map(talk, forks, range(THREADS)))
        store.flush()
        session.cache.validate()
        for mine, other in zip(actual, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))
        assert session.cache.stats()["l1"]["reused_blocks"] > 0
