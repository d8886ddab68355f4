"""Two models behind one question: after these tokens, and a cache of those before, what comes next?"""

from __future__ import annotations

import time
from typing import Any, Protocol

import char_gpt
from torch import Tensor


class Model(Protocol):
    """What generation needs of a model."""

    attention_seconds: float | None
    """What attention took in all forwards so far; None if that is not told apart."""

    def tokens(self, count: int) -> Tensor:
        """The first tokens of a text, `[1, count]`."""

    def empty(self, capacity: int) -> Any:
        """A KV cache of no tokens yet, with room for so many."""

    def logits(self, ids: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """Scores `[vocabulary]` of what follows the tokens `[1, n]` (and the cache), and the cache."""


class Toy:
    """The character model; its cache is a list of K and V, made anew at each step."""

    def __init__(self, steps: int) -> None:
        self.model, self.text, _ = char_gpt.train(steps, context=1024, batch=2, checks=1)
        self.attention_seconds: float | None = None

    def tokens(self, count: int) -> Tensor:
        """The first characters of a text it has not seen, `[1, count]`."""
        return self.model.encode(self.text[:count])

    def empty(self, capacity: int) -> None:
        """Nothing: the first step makes the cache."""

    def logits(self, ids: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """As `Model` says."""
        logits, cache = self.model(ids, cache)
        return logits[0, -1], cache


class SmolLM2:
    """SmolLM2-135M; it takes the time that attention takes in all layers."""

    def __init__(self) -> None:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.integrations.sdpa_attention import sdpa_attention_forward
        from transformers.masking_utils import sdpa_mask

        import kvlab.hf

        self.attention_seconds: float | None = 0.0

        def timed(*args: Any, **settings: Any) -> Any:
            begun = time.perf_counter()
            answers = sdpa_attention_forward(*args, **settings)
            self.attention_seconds = (self.attention_seconds or 0.0) + time.perf_counter() - begun
            return answers

        model, self.tokenizer = kvlab.hf.load("smollm2-135m")
        self.model: Any = model
        self.layout = kvlab.hf.read_layout(model)
        AttentionInterface.register("timed", timed)
        AttentionMaskInterface.register("timed", sdpa_mask)
        self.model.set_attn_implementation("timed")

    def tokens(self, count: int) -> Tensor:
        """The first tokens of the novel, `[1, count]`."""
        text = char_gpt.TEXT.read_text(encoding="utf-8")[: 8 * count]
        ids: Tensor = self.tokenizer(text, return_tensors="pt").input_ids[:, :count]
        return ids

    def empty(self, capacity: int) -> Any:
        """Memory for so many tokens, written in place: a step copies nothing but its own token."""
        from kvlab.hf import PreallocatedCache

        return PreallocatedCache.allocate(self.layout.layers, capacity, self.layout.dtype)

    def logits(self, ids: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """As `Model` says."""
        out = self.model(
            input_ids=ids, past_key_values=cache, use_cache=cache is not None, logits_to_keep=1
        )
        return out.logits[0, -1], cache
