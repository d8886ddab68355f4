"""1.2: one attention for every number of KV heads, and latent attention in its absorbed form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kvlab.course.checks import Mine, claim
from kvlab.course.checks.attention import attention, close

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["absorbed_equals_expanded", "grouped_equals_torch"]


def grouped_equals_torch(mine: Mine) -> str:
    """Eight query heads over 1, 2, 4 and 8 KV heads."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    generator = torch.Generator().manual_seed(7)
    heads, tokens, width = 8, 33, 16
    worst = 0.0
    groups = (1, 2, 4, 8)
    for kv_heads in groups:
        q = torch.randn(heads, tokens, width, generator=generator)
        k, v = torch.randn(2, kv_heads, tokens, width, generator=generator)
        expected = scaled_dot_product_attention(
            q[None], k[None], v[None], is_causal=True, enable_gqa=True
        )[0]
        result = (mine or _grouped)(q, k, v)
        worst = max(worst, close(result, expected, f"{heads} heads over {kv_heads} KV heads"))
    return f"equal to PyTorch's for {groups} KV heads, off by {worst:.1g} at most"


def _grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each KV head serves as many query heads in a row (Ainslie et al., 2023)."""
    share = q.shape[0] // k.shape[0]
    return attention(q, k.repeat_interleave(share, 0), v.repeat_interleave(share, 0))


def absorbed_equals_expanded(mine: Mine) -> str:
    """One query over a latent cache, with keys and values expanded for every head for comparison."""
    rng = np.random.default_rng(8)
    worst = 0.0
    shapes = ((1, 1, 4, 2), (4, 9, 16, 8), (8, 100, 32, 64))
    for heads, tokens, dim, rank in shapes:
        q = rng.standard_normal((heads, dim))
        latent = rng.standard_normal((tokens, rank))
        w_uk, w_uv = rng.standard_normal((2, heads, rank, dim)) / rank**0.5
        expanded = np.stack(
            [
                _softmax(latent @ w_uk[head] @ q[head] * dim**-0.5) @ (latent @ w_uv[head])
                for head in range(heads)
            ]
        )
        result: Any = np.asarray((mine or _absorbed)(q, latent, w_uk, w_uv))
        where = f"{heads} heads, {tokens} tokens, rank {rank}"
        claim(
            result.shape == expanded.shape,
            f"{where}: gave the shape {result.shape}, expected {expanded.shape}",
        )
        difference = float(np.abs(result - expanded).max())
        claim(difference <= 1e-9, f"{where}: off by {difference:.2g} somewhere, 1e-9 is allowed")
        worst = max(worst, difference)
    return f"equal in {len(shapes)} shapes, off by {worst:.1g} at most"


def _absorbed(
    q: NDArray[Any], latent: NDArray[Any], w_uk: NDArray[Any], w_uv: NDArray[Any]
) -> NDArray[Any]:
    """The up-projections move to the query and to the result (DeepSeek-V2, section 2.1.2 and appendix C)."""
    into_latent = np.einsum("hd,hrd->hr", q, w_uk)
    weights = _softmax(into_latent @ latent.T * q.shape[1] ** -0.5)
    return np.asarray(np.einsum("hr,hrd->hd", weights @ latent, w_uv))


def _softmax(scores: NDArray[Any]) -> NDArray[Any]:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True))
