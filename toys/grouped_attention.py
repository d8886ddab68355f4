"""Attention whose query heads share key-value heads; by their number it is MHA, GQA or MQA."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of [batch, H, new, dim] over [batch, G, tokens, dim]; the new tokens are the last ones.

    The query heads are folded into G groups, and each group meets its one key head in one matrix product:
    keys and values are never repeated in memory.
    """
    batch, heads, new, dim = query.shape
    groups, tokens = key.shape[1], key.shape[2]
    if heads % groups:
        raise ValueError(f"{heads} query heads do not divide among {groups} key-value heads")
    grouped = query.reshape(batch, groups, heads // groups * new, dim)
    scores = torch.einsum("bgqd,bgtd->bgqt", grouped, key) / dim**0.5
    scores = scores.view(batch, heads, new, tokens)
    if new > 1:
        future = torch.ones(new, tokens, dtype=torch.bool).triu(tokens - new + 1)
        scores = scores.masked_fill(future, -torch.inf)
    weights = scores.softmax(-1).view(batch, groups, -1, tokens)
    answers: Tensor = weights @ value
    return answers.view(batch, heads, new, -1)


class Attention(nn.Module):
    """A layer of attention with a cache; `n_kv_heads` alone makes it MHA, GQA or MQA."""

    def __init__(self, width: int, n_heads: int, n_kv_heads: int) -> None:
        super().__init__()
        self.dim = width // n_heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, n_kv_heads * self.dim, bias=False)
        self.value = nn.Linear(width, n_kv_heads * self.dim, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.cached = torch.empty(2, 1, n_kv_heads, 0, self.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Appends the tokens x [1, new, width] to the cache and attends over all of it."""
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.dim)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        self.cached = torch.cat([self.cached, torch.stack([k, v])], dim=-2)
        return self.out(attend(q, *self.cached).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def bytes_per_token(layers: int, n_kv_heads: int, head_dim: int, element: int = 2) -> int:
    """What one token costs in the cache: a key and a value a layer and key-value head."""
    return 2 * layers * n_kv_heads * head_dim * element
