"""The real model: agents on one system prompt get the answers that plain transformers gives each of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")

from hf_support import open_store
from kvlab.hf import load
from kvlab.serve.engine import EngineOptions, Finished, GenerationRequest, Sampling
from kvlab.serve.engine.engine import Engine
from serve_support import Answer, greedy, nothing_held

SYSTEM = "You are one of several careful agents. Keep to the plan, and say what you did. " * 8


def test_agents_on_one_system_prompt(smollm2: Path, tmp_path: Path) -> None:
    model, tokenizer = load(str(smollm2))
    texts = [f"{SYSTEM}\nTask: count from {n} to ten: {n}," for n in ("one", "two", "three")]
    prompts = [np.array(tokenizer(text)["input_ids"], dtype=np.int64) for text in texts]
    alone = [greedy(model, ids, 6) for ids in prompts]
    with open_store(tmp_path, l1="128MiB", l2="32MiB") as store:
        with Engine(model, tokenizer, store, EngineOptions(prefill_chunk=64)) as engine:
            answers = [Answer() for _ in prompts]
            for place, (answer, ids) in enumerate(zip(answers, prompts, strict=True)):
                engine.submit(GenerationRequest(str(place), ids, 6, Sampling(0.0)), answer)
            for answer, expected in zip(answers, alone, strict=True):
                assert isinstance(answer.wait(), Finished)
                assert answer.ids == expected
                assert answer.text == tokenizer.decode(expected, skip_special_tokens=True)
            shared = len(tokenizer(SYSTEM)["input_ids"]) // 16 * 16
            hits = [answer.wait().usage.cached.total for answer in answers]
            assert hits[0] == 0
            assert min(hits[1:]) >= shared > 100
        nothing_held(store)
