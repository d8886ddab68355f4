"""What the tests of the engine share: a tokenizer of bytes, a collector of events, and the model alone."""

from __future__ import annotations

import threading
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kvlab.serve.engine import Admitted, Cancelled, Chunk, Failed, Finished, GenerationRequest
from kvlab.serve.engine.engine import Engine

PATIENCE = 60.0


def byte_tokenizer(words: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """One id a byte, 0 to 255 in the order of ByteLevel's alphabet, then ``words``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate([*alphabet, *words])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


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
