"""Int8 with other groups than the one that kvlab stores: references that no store has, done in torch on a live cache.

They teach where the error comes from: how much a group may span, and which half is the sensitive one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

CHANNEL_TOKENS = 16
"""Tokens that share a channel's scale in the per-channel arm, as in KIVI's grouped keys; one block."""


def _round_trip(rows: Tensor, dims: tuple[int, ...] | None) -> Tensor:
    """Quantise symmetrically with one scale over ``dims`` (None: over all), and back."""
    exact = rows.float()
    largest = exact.abs().max() if dims is None else exact.abs().amax(dims, keepdim=True)
    scale = (largest / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return ((exact / scale).round() * scale).to(rows.dtype)


def per_token_head(rows: Tensor) -> Tensor:
    """One scale for each token and head of ``rows [1, heads, tokens, dim]``."""
    return _round_trip(rows, (3,))


def per_tensor(rows: Tensor) -> Tensor:
    """One scale for all of ``rows``: K or V of one layer."""
    return _round_trip(rows, None)


def per_channel(rows: Tensor) -> Tensor:
    """One scale for each head and channel over `CHANNEL_TOKENS` tokens."""
    batch, heads, tokens, dim = rows.shape
    whole = tokens // CHANNEL_TOKENS * CHANNEL_TOKENS
    grouped = rows[:, :, :whole].reshape(batch, heads, -1, CHANNEL_TOKENS, dim)
    out = rows.clone()
    out[:, :, :whole] = _round_trip(grouped, (3,)).reshape(batch, heads, whole, dim)
    if whole < tokens:
        out[:, :, whole:] = _round_trip(rows[:, :, whole:], (2,))
    return out


def same(rows: Tensor) -> Tensor:
    """Leave it exact."""
    return rows


ARMS: Mapping[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "K only, per token and head": (per_token_head, same),
    "V only, per token and head": (same, per_token_head),
    "K per channel, V per token": (per_channel, per_token_head),
    "per tensor": (per_tensor, per_tensor),
}
"""For each reference arm what is done to K and to V."""


def values_per_scale(arm: str, tokens: int, heads: int, dim: int) -> tuple[int, int]:
    """How many elements share a scale in K and in V; 0 where the half stays exact."""
    sizes: dict[Callable[[Tensor], Tensor], int] = {
        per_token_head: dim,
        per_channel: CHANNEL_TOKENS,
        per_tensor: heads * tokens * dim,
        same: 0,
    }
    k, v = ARMS[arm]
    return sizes[k], sizes[v]
