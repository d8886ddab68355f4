"""Attention from raw tensor operations: scaled dot products under a causal mask, and several heads of them.

Every token asks (its query q), every token before it and itself offers (keys k) and says (values v).
A query's answer is the mean of the values, weighted by how well their keys fit it:

    attention(Q, K, V) = softmax(Q K^T / sqrt(d)) V

Source: Vaswani et al., "Attention Is All You Need", 2017 (https://arxiv.org/abs/1706.03762).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

KeyValue = tuple[Tensor, Tensor]
"""K and V of one layer, each `[batch, heads, tokens, head_dim]`: what a KV cache keeps."""


def scores(q: Tensor, k: Tensor) -> Tensor:
    """How well each key fits each query: `[..., queries, keys]`, the matrix that grows quadratically.

    The dot product of two random vectors of d elements varies like sqrt(d); divided by it, the scores
    keep one size whatever the head's dimension is, and the softmax does not saturate.
    """
    return q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])


def causal_mask(queries: int, keys: int) -> Tensor:
    """True where a query may look: `[queries, keys]`. The queries are the last of the keys' tokens."""
    position = torch.arange(keys - queries, keys)
    return torch.arange(keys) <= position[:, None]


def softmax(x: Tensor) -> Tensor:
    """Rows that sum to one. The maximum is taken off first, so that exp cannot overflow."""
    weights = (x - x.amax(dim=-1, keepdim=True)).exp()
    return weights / weights.sum(dim=-1, keepdim=True)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal scaled dot-product attention.

    Args:
        q: Queries `[..., queries, head_dim]`, of the last tokens.
        k: Keys `[..., tokens, head_dim]` of all tokens so far, at least as many as queries.
        v: Values `[..., tokens, value_dim]`.

    Returns:
        The answers, `[..., queries, value_dim]`.
    """
    hidden = ~causal_mask(q.shape[-2], k.shape[-2])
    return softmax(scores(q, k).masked_fill(hidden, -math.inf)) @ v


class MultiHeadAttention(nn.Module):
    """Several attentions side by side, each on its own slice of the width, and a mix of their answers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads")
        self.heads = heads
        self.query_key_value = nn.Parameter(torch.randn(width, 3 * width) / math.sqrt(width))
        self.mix = nn.Parameter(torch.randn(width, width) / math.sqrt(width))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Q, K and V of the tokens x `[batch, tokens, width]`, each `[batch, heads, tokens, head_dim]`."""
        batch, tokens, _ = x.shape
        split = (x @ self.query_key_value).view(batch, tokens, 3, self.heads, -1)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, x: Tensor, past: KeyValue | None = None) -> tuple[Tensor, KeyValue]:
        """Attends from the new tokens to themselves and to the past.

        Args:
            x: The new tokens, `[batch, tokens, width]`.
            past: K and V of the tokens before them: the KV cache.

        Returns:
            The answers, of the same shape as x, and K and V of all tokens so far: the next cache.
        """
        q, k, v = self.project(x)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        heads = attention(q, k, v)  # [batch, heads, tokens, head_dim]
        return heads.transpose(1, 2).flatten(2) @ self.mix, (k, v)
