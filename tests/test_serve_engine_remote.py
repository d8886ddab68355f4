"""The engine over servers that machines share: whoever waits for one of them waits alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")

from hf_support import open_store
from kvlab import Store
from kvlab.serve.engine import (
    Cancelled,
    EngineOptions,
    Finished,
    GenerationRequest,
    Sampling,
    TierTokens,
)
from kvlab.serve.engine.engine import Engine
from redis_support import RedisServer
from serve_support import Answer, ask, byte_tokenizer, greedy, nothing_held
from tiny_models import build, prompt

OPTIONS = EngineOptions(prefill_chunk=32, restore="always", max_active=3)
HANGS = 3.0
"""A time-out in which any machine makes some tokens."""


@pytest.fixture(scope="module")
def model() -> Any:
    return build("llama")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


def machine(server: RedisServer, *, timeout: float = 5.0) -> Store:
    return open_store(None, remote=server.url, remote_timeout=timeout)


def asked(name: str, ids: Any, *, tokens: int = 4, salt: str = "") -> GenerationRequest:
    flat = np.asarray(ids).reshape(-1)
    return GenerationRequest(name, flat, tokens, Sampling(0.0), salt=salt, ignore_eos=True)


def test_what_one_engine_computed_another_one_takes_salt_by_salt(
    model: Any, server: RedisServer
) -> None:
    ids = prompt(81)
    with machine(server) as one, Engine(model, byte_tokenizer(), one, OPTIONS) as engine:
        for salt in ("", "a"):
            ask(engine, asked(salt, ids, salt=salt))
        engine.close()
    with machine(server) as other:
        with Engine(model, byte_tokenizer(), other, OPTIONS) as engine:
            for salt, cached in (("a", 80), ("b", 0), ("", 80)):
                answer = ask(engine, asked(salt, ids, salt=salt))
                assert answer.admitted.cached == TierTokens(remote=cached)
                assert answer.ids == greedy(model, ids, 4)
            remote = other.stats()["remote"]
            assert remote is not None
            assert remote["lookups"] == 3
        nothing_held(other)


def test_others_go_on_while_a_request_waits_for_a_server_that_hangs(
    model: Any, server: RedisServer
) -> None:
    with machine(server, timeout=HANGS) as store:
        with Engine(model, byte_tokenizer(), store, OPTIONS) as engine:
            busy, late, gone = Answer(), Answer(), Answer()
            engine.submit(asked("busy", prompt(20), tokens=400), busy)
            busy.wait_first()
            server.freeze()
            try:
                before = len(busy.ids)
                made: list[int] = []

                def late_sink(event: Any) -> None:
                    made.append(len(busy.ids) - before)
                    late(event)

                engine.submit(asked("late", prompt(90, seed=1)), late_sink)
                engine.submit(asked("gone", prompt(90, seed=2)), gone).cancel()
                assert isinstance(gone.wait(), Cancelled)
                assert isinstance(late.wait(), Finished)
                assert made[0] > 3, "tokens that were made while the other one waited"
            finally:
                server.thaw()
            assert isinstance(busy.wait(), Finished)
            assert late.admitted.cached.total == 0
            assert late.ids == greedy(model, prompt(90, seed=1), 4)
            remote = store.stats()["remote"]
            assert remote is not None
            assert remote["errors"]["timeouts"] >= 1
        nothing_held(store)
