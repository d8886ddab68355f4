"""RoPE: where a token stands is an angle by which its query and key are turned.

Every pair of elements of a query or key is turned by an angle: position times the pair's frequency. The
score of a query and a key then depends on the distance between them and on nothing else of where they
stand, and what was turned by p and then by q - p is turned by q: a cached key can be moved.

Source: Su and others, "RoFormer", 2021 (https://arxiv.org/abs/2104.09864).
"""

from __future__ import annotations

import torch
from torch import Tensor


def frequencies_of(dim: int, base: float = 10_000.0) -> Tensor:
    """The angle a position, of each of the pairs of `dim` elements: from 1 down to nearly 1 / base."""
    return base ** (-2 * torch.arange(dim // 2) / dim)


def rotate(rows: Tensor, positions: Tensor | int, frequencies: Tensor) -> Tensor:
    """Turns queries or keys; those that are turned already move by so many positions.

    Args:
        rows: `[..., tokens, dim]`. Element i is paired with element i + dim / 2, as in the Llama family.
        positions: `[tokens]`, or one for all.
        frequencies: The angle a position, `[dim / 2]`.

    Returns:
        The rows turned, of the same shape and dtype.
    """
    angles = torch.as_tensor(positions)[..., None].float() * frequencies
    cos, sin = angles.cos(), angles.sin()
    left, right = rows.float().chunk(2, dim=-1)
    turned = torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
    return turned.to(rows.dtype)
