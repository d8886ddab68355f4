"""The ideal reuse of a workload is what a real model on a store that holds everything reuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")

from hf_support import attach, hits, open_store
from kvlab.workload import Message, ideal_reuse, tokenizer
from kvlab.workload.generators import generate
from kvlab.workload.reuse import prompts
from tiny_models import VOCAB, build

SMALL: dict[str, dict[str, Any]] = {
    "session": {"sessions": 3, "turns": 3, "system_tokens": 80, "tool_tokens": 40},
    "fanout": {
        "contexts": 2, "agents": 3, "system_tokens": 40, "context_tokens": 120,
        "observation_tokens": 40,
    },
    "rag": {
        "requests": 12, "passages": 5, "passages_a_request": 2, "passage_tokens": 50,
        "system_tokens": 40,
    },
    "unique": {"requests": 6, "prompt_tokens": 80},
}  # fmt: skip


class Folded:
    """Pieces of 4 characters, folded into the vocabulary of a tiny model."""

    name = "folded"

    def prompt(self, messages: Sequence[Message]) -> Sequence[int]:
        return [token % VOCAB for token in tokenizer("chars").prompt(messages)]

    def text(self, text: str) -> Sequence[int]:
        return [token % VOCAB for token in tokenizer("chars").text(text)]


@pytest.mark.parametrize("name", SMALL)
def test_a_model_on_an_ample_store_reuses_the_ideal(tmp_path: Path, name: str) -> None:
    workload = generate(name, **SMALL[name])
    ideal = ideal_reuse(workload, Folded())
    found = []
    with (
        open_store(tmp_path, l1="64MiB") as store,
        attach(build("llama"), store) as session,
    ):
        for request, tokens in prompts(workload, Folded()):
            report = session.prefill(torch.tensor([tokens])).report
            session.flush()
            found.append((request.id, len(tokens), sum(hits(report))))
    assert found == [(each.id, each.prompt_tokens, each.reused_tokens) for each in ideal.requests]
