"""Prefixes that several requests have: computed once, waited for, shared, kept over restarts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st

from hf_support import open_store
from kvlab.errors import ConfigError
from kvlab.serve.engine import (
    Cancelled,
    EngineOptions,
    Finished,
    GenerationRequest,
    Sampling,
    TierTokens,
)
from kvlab.serve.engine.engine import Engine
from kvlab.serve.engine.modes import MODES, TierSizes, open_mode
from serve_support import Answer, ask, byte_tokenizer, greedy, held_back, nothing_held
from tiny_models import build, prompt

TOKENIZER = byte_tokenizer()
OPTIONS = EngineOptions(prefill_chunk=32, restore="always", max_active=3)
BLOCK = 16


@pytest.fixture(scope="module")
def model() -> Any:
    return build("llama")


def asked(name: str, *parts: Any, salt: str = "", tokens: int = 4) -> GenerationRequest:
    ids = np.concatenate([np.asarray(part).reshape(-1) for part in parts])
    return GenerationRequest(name, ids, tokens, Sampling(0.0), salt=salt)


@settings(max_examples=8, deadline=None, database=None)
@given(
    shared=st.integers(2, 10).map(lambda blocks: blocks * BLOCK),
    tails=st.lists(st.integers(1, 40), min_size=2, max_size=6),
)
def test_a_prefix_that_many_ask_for_at_once_is_computed_once(
    model: Any, shared: int, tails: list[int]
) -> None:
    with open_store(None) as store:
        with Engine(model, TOKENIZER, store, OPTIONS) as engine:
            prefix = prompt(shared)
            answers = [Answer() for _ in tails]
            with held_back(engine):
                for place, (answer, tail) in enumerate(zip(answers, tails, strict=True)):
                    # The first token of each tail is another one.
                    own = np.array([10 + place, *range(40, 39 + tail)])
                    engine.submit(asked(str(place), prefix, own), answer)
            usages = [answer.wait().usage for answer in answers]
            counters = engine.snapshot().counters
        nothing_held(store)
    computed = [usage.prompt_tokens - usage.cached.total for usage in usages]
    assert sum(computed) == shared + sum(tails)
    assert counters.deduplicated == sum(a.admitted.deduplicated for a in answers) == len(tails) - 1


def test_who_waits_for_one_that_leaves_goes_on_alone(model: Any) -> None:
    prefix = prompt(400)
    with open_store(None) as store:
        with Engine(model, TOKENIZER, store, OPTIONS) as engine:
            leader = asked("leader", prefix, [11], tokens=50)
            waiter, answer = asked("waiter", prefix, [12]), Answer()
            with held_back(engine, leader) as first:
                handle = engine.submit(waiter, answer)
                handle_of_leader = engine.submit(asked("other", [13]), Answer())
                assert handle.id == "waiter"
                handle_of_leader.cancel()
                engine._active[0].cancelled = True
            assert isinstance(first.wait(), Cancelled)
            end = answer.wait()
            assert isinstance(end, Finished)
            # What the leader had computed by then is kept, and nothing else was waited for.
            assert end.usage.cached.total < 400
            assert answer.ids == greedy(model, waiter.prompt, 4)
        nothing_held(store)


def test_salts_share_nothing_and_are_bounded(model: Any) -> None:
    options = EngineOptions(prefill_chunk=32, restore="always", max_salts=2)
    with open_store(None) as store:
        with Engine(model, TOKENIZER, store, options) as engine:
            ids = prompt(70)
            for _ in range(2):
                for salt in ("", "a", "b", "c"):
                    ask(engine, asked(salt, ids, salt=salt))
            assert engine.snapshot().counters.cached_tokens == 4 * 64
            assert engine.snapshot().counters.deduplicated == 0
            with held_back(engine, asked("one", prompt(90, seed=1))):
                other = Answer()
                engine.submit(asked("two", prompt(90, seed=1), salt="a"), other)
            assert isinstance(other.wait(), Finished)
            assert not other.admitted.deduplicated
        nothing_held(store)


def test_the_next_turn_reuses_prompt_and_answer_and_forks_share_blocks(model: Any) -> None:
    with open_store(None) as store, Engine(model, TOKENIZER, store, OPTIONS) as engine:
        ids = prompt(70)
        first = ask(engine, asked("first", ids, tokens=20))
        turn = np.concatenate([ids[0].numpy(), first.ids])
        agents = [ask(engine, asked(f"agent {k}", turn, [20 + k] * 9)) for k in range(2)]
        # 70 and 20 tokens, of which the last has no KV yet: 5 whole blocks.
        assert [agent.admitted.cached for agent in agents] == [TierTokens(l1=80)] * 2
        for k, agent in enumerate(agents):
            expected = greedy(model, asked("", turn, [20 + k] * 9).prompt, 4)
            assert agent.ids == expected
        engine.close()
        # 5 blocks in common, and one of each agent's own: 99 tokens and 3 of the answer.
        assert store.stats()["caches"][0]["l1"]["used"] == 5 + 2


def test_modes_reuse_from_their_tiers_and_give_one_answer(model: Any, tmp_path: Path) -> None:
    sizes = TierSizes("4MiB", "8MiB", "64MiB")
    ids = prompt(70)
    expected = greedy(model, ids, 4)
    sources = {}
    for mode in MODES:
        store = open_mode(mode, tmp_path / mode if mode == "nvme" else None, sizes)
        with Engine(model, TOKENIZER, store, OPTIONS) as engine:
            assert ask(engine, asked("cold", ids)).ids == expected
            if store is not None and mode != "prefix_reuse":
                store.flush()
                store.evict("l1" if mode == "cpu_offload" else "l2")
            warm = ask(engine, asked("warm", ids))
            assert warm.ids == expected
            sources[mode] = warm.wait().usage.cached
            assert (engine.recovered() is not None) == (mode == "nvme")
        if store is not None:
            store.close()
    assert sources == {
        "baseline": TierTokens(),
        "prefix_reuse": TierTokens(l1=64),
        "cpu_offload": TierTokens(l2=64),
        "nvme": TierTokens(l3=64),
    }
    with pytest.raises(ConfigError, match="needs a directory"):
        open_mode("nvme")
    with pytest.raises(ConfigError, match="'all': use 'baseline'"):
        open_mode("all")  # type: ignore[arg-type]


CHILD = """
import sys
from pathlib import Path
from test_serve_engine_sharing import serve_once
serve_once(Path(sys.argv[1]), "kill")
"""


def serve_once(path: Path, end: str) -> None:
    """One request, and a clean end or that of the process."""
    store = open_store(path)
    engine = Engine(build("llama"), TOKENIZER, store, OPTIONS)
    ask(engine, asked("before", prompt(100)))
    if end == "kill":
        store.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    engine.close()
    store.close()


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("end", ["close", "kill"])
def test_a_restarted_engine_answers_from_disk(model: Any, end: str, tmp_path: Path) -> None:
    if end == "close":
        serve_once(tmp_path, end)
    else:
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(tmp_path)],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
    with open_store(tmp_path) as store, Engine(model, TOKENIZER, store, OPTIONS) as engine:
        recovered = engine.recovered()
        assert recovered is not None
        assert recovered["clean"] == (end == "close")
        again = ask(engine, asked("again", prompt(100)))
        assert again.admitted.cached == TierTokens(l3=96)
        assert [tuple(span) for span in again.admitted.spans] == [
            (0, 96, "l3"),
            (96, 100, "compute"),
        ]
        assert again.ids == greedy(model, prompt(100), 4)
