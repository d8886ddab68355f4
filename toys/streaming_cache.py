"""Sinks and a window, twice: as a mask over a whole text, and as a cache that drops tokens; sinks.py tells the idea."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch
from rope import rotate
from torch import Tensor
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer


def attend_streaming(
    _module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    *,
    sinks: int,
    size: int,
    frequencies: Tensor,
    weight_of_first: list[float],
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """What a whole text [1, heads, tokens, dim] sees through a cache of `size` tokens, `sinks` of them sinks.

    Notes in `weight_of_first` which share of its attention the text's second half pays the first token.
    """
    tokens = query.shape[2]
    share = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    at = torch.arange(tokens)
    scores = query @ key.transpose(-2, -1)
    # Token t has place min(t, size - 1) in the cache; the query steps back there to meet the sinks.
    moved = rotate(query, at.clamp(max=size - 1) - at, frequencies)
    scores[..., :sinks] = moved @ key[:, :, :sinks].transpose(-2, -1)
    behind = at[:, None] - at
    seen = (behind >= 0) & ((behind < size - sinks) | (at < sinks))
    weights = (scores * scaling).masked_fill_(~seen, -torch.inf).softmax(-1)
    weight_of_first.append(weights[:, :, tokens // 2 :, 0].mean().item())
    return (weights @ value).transpose(1, 2), None


class StreamingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer's cache of at most `size` tokens: the first `sinks` and the last ones. Decodes token by token."""

    def __init__(self, sinks: int, size: int, frequencies: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sinks, self.size, self.frequencies = sinks, size, frequencies
        self.seen = 0  # tokens of the text, the position of the next one

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Takes a token in, drops the oldest of the window if that is full, returns what is to be attended to."""
        keys, values = super().update(key_states, value_states)
        self.seen += key_states.shape[-2]
        oldest = self.sinks + max(0, keys.shape[-2] - self.size)  # of the window
        first, recent = keys[:, :, : self.sinks], keys[:, :, oldest:]
        values = torch.cat([values[:, :, : self.sinks], values[:, :, oldest:]], dim=-2)
        # Kept as they were computed and turned anew at each step: turns of turns add up their rounding.
        self.keys, self.values = torch.cat([first, recent], dim=-2), values
        near = rotate(first, self.seen - values.shape[-2], self.frequencies)
        return torch.cat([near, recent], dim=-2), values


def streaming_cache(model: Any, sinks: int, size: int) -> Any:
    """An empty cache for `model`, to be fed one token at a time with its position in the text."""
    cache: Any = DynamicCache()
    frequencies = model.model.rotary_emb.inv_freq
    layers = model.config.num_hidden_layers
    cache.layers = [StreamingLayer(sinks, size, frequencies) for _ in range(layers)]
    return cache


def score(model: Any, ids: Tensor, sinks: int, size: int) -> tuple[Tensor, float]:
    """Surprise in nats [tokens - 1] at each next token of ids [1, tokens], and the first token's weight."""
    weight: list[float] = []
    arm = partial(
        attend_streaming,
        sinks=sinks,
        size=size,
        frequencies=model.model.rotary_emb.inv_freq,
        weight_of_first=weight,
    )
    AttentionInterface.register("streaming", arm)
    model.set_attn_implementation("streaming")
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    model.set_attn_implementation("sdpa")
    nll = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    return nll, statistics.fmean(weight)


def generate(model: Any, ids: Tensor, cache: Any, count: int) -> list[int]:
    """Reads ids [1, tokens] and `count` tokens of its own choice, greedily, one at a time."""
    text = ids[0].tolist()
    for at in range(ids.shape[1] + count - 1):
        step = torch.tensor([[text[at]]])
        out = model(input_ids=step, position_ids=torch.tensor([[at]]), past_key_values=cache)
        if at + 1 == len(text):
            text.append(int(out.logits[0, -1].argmax()))
    return text[ids.shape[1] :]
