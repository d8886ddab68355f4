"""What the tests of the engine share: a tokenizer of bytes, a collector of events, and the model alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kvlab import Store
from kvlab.serve.engine import (
    Admitted,
    Cancelled,
    Chunk,
    Failed,
    Finished,
    GenerationRequest,
    Sampling,
)
from kvlab.serve.engine.engine import Engine

PATIENCE = 240.0
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_tokenizer(words: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """One id a byte, 0 to 255 in the order of ByteLevel's alphabet, then ``words``."""
    vocabulary = {symbol: index for index, symbol in enumerate([*ALPHABET, *words])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped: PreTrainedTokenizerFast = cast(Any, PreTrainedTokenizerFast)(
        tokenizer_object=tokenizer
    )
    return wrapped


def byte_ids(text: str) -> list[int]:
    """The ids of `byte_tokenizer` for a text, one a byte."""
    pre = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return [ALPHABET.index(symbol) for part, _ in pre.pre_tokenize_str(text) for symbol in part]


class Answer:
    """A sink that keeps the events of one request and checks their order."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self._done = threading.Event()
        self._first = threading.Event()

    def __call__(self, event: Any) -> None:
        assert not self._done.is_set(), f"{event} after the end"
        if isinstance(event, Admitted):
            assert not self.events
        elif isinstance(event, Chunk | Finished):
            assert isinstance(self.events[0], Admitted)
        self.events.append(event)
        if isinstance(event, Chunk):
            self._first.set()
        if isinstance(event, Finished | Cancelled | Failed):
            self._first.set()
            self._done.set()

    def wait(self) -> Any:
        """The last event."""
        assert self._done.wait(PATIENCE), "no answer in time"
        return self.events[-1]

    def wait_first(self) -> None:
        assert self._first.wait(PATIENCE), "no first chunk in time"

    @property
    def admitted(self) -> Admitted:
        event = self.events[0]
        assert isinstance(event, Admitted)
        return event

    @property
    def ids(self) -> list[int]:
        return [i for event in self.events if isinstance(event, Chunk) for i in event.token_ids]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Chunk))


def ask(engine: Engine, request: GenerationRequest) -> Answer:
    """Submits and waits for the end."""
    answer = Answer()
    engine.submit(request, answer)
    answer.wait()
    return answer


def greedy(model: Any, prompt: Any, tokens: int) -> list[int]:
    """What plain transformers generates."""
    ids = torch.as_tensor(prompt).reshape(1, -1)
    with torch.inference_mode():
        out = model.generate(ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return [int(token) for token in out[0, ids.shape[1] :]]


@contextmanager
def held_back(engine: Engine, request: GenerationRequest | None = None) -> Iterator[Answer]:
    """One request whose first event holds the engine's thread until the block ends."""
    reached, go = threading.Event(), threading.Event()
    answer = Answer()

    def sink(event: Any) -> None:
        answer(event)
        reached.set()
        assert go.wait(PATIENCE)

    prompt = np.arange(3, 43, dtype=np.int64)
    engine.submit(request or GenerationRequest("held", prompt, 2, Sampling(0.0)), sink)
    assert reached.wait(PATIENCE)
    try:
        yield answer
    finally:
        go.set()


def nothing_held(store: Store) -> None:
    """No lock, sequence or buffer is left behind once the engine is closed."""
    store.flush()
    for cache in store.stats()["caches"]:
        l1, buffers = cache["l1"], cache["buffers"]
        assert l1["protected"] == l1["private"] == l1["sequences"] == 0
        assert buffers["mapped"] - buffers["idle"] == cache["residents"]["bytes"]
