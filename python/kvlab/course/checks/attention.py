"""0.1: attention from raw tensors, held against PyTorch's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvlab.course.checks import Mine, claim

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["close", "equals_torch", "later_tokens_change_nothing", "multi_head_equals_torch"]

_SHAPES = ((1, 1, 8), (2, 7, 16), (3, 33, 64), (4, 128, 32))
"""Heads, tokens, head_dim."""

_TOLERANCE = 1e-5


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal scaled dot-product attention; `[heads, tokens, head_dim]` (Vaswani et al., 2017, section 3.2.1)."""
    import torch

    tokens, width = q.shape[-2:]
    scores = q @ k.transpose(-1, -2) / width**0.5
    later = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    result: Tensor = scores.masked_fill(later, -torch.inf).softmax(-1) @ v
    return result


def multi_head(x: Tensor, w_in: Tensor, w_out: Tensor, heads: int) -> Tensor:
    """Causal multi-head attention of `x [tokens, width]` (section 3.2.2)."""
    tokens, width = x.shape
    q, k, v = (x @ w_in.T).view(tokens, 3, heads, width // heads).permute(1, 2, 0, 3)
    return attention(q, k, v).transpose(0, 1).reshape(tokens, width) @ w_out.T


def close(result: Any, expected: Tensor, where: str) -> float:
    """The largest difference of two tensors.

    Raises:
        AssertionError: another type or shape, or a difference above 1e-5.
    """
    import torch

    claim(
        isinstance(result, torch.Tensor),
        f"{where}: gave a {type(result).__name__}, not a torch tensor",
    )
    claim(
        result.shape == expected.shape,
        f"{where}: gave the shape {list(result.shape)}, expected {list(expected.shape)}",
    )
    difference = float((result.detach() - expected).abs().max())
    claim(
        difference <= _TOLERANCE,  # false for NaN
        f"{where}: off by {difference:.2g} somewhere, {_TOLERANCE:g} is allowed",
    )
    return difference


def equals_torch(mine: Mine) -> str:
    """Attention of several shapes against `scaled_dot_product_attention`."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    generator = torch.Generator().manual_seed(1)
    worst = 0.0
    for heads, tokens, width in _SHAPES:
        q, k, v = torch.randn(3, heads, tokens, width, generator=generator)
        expected = scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
        where = f"{heads} heads, {tokens} tokens, head_dim {width}"
        worst = max(worst, close((mine or attention)(q, k, v), expected, where))
    return f"equal to PyTorch's in {len(_SHAPES)} shapes, off by {worst:.1g} at most"


def multi_head_equals_torch(mine: Mine) -> str:
    """Multi-head attention of several shapes against `torch.nn.MultiheadAttention`."""
    import torch

    worst = 0.0
    for heads, tokens, width in _SHAPES:
        torch_own = torch.nn.MultiheadAttention(heads * width, heads, bias=False).eval()
        generator = torch.Generator().manual_seed(2)
        x = torch.randn(tokens, heads * width, generator=generator)
        w_in = (
            torch.randn(3 * heads * width, heads * width, generator=generator)
            / (heads * width) ** 0.5
        )
        w_out = (
            torch.randn(heads * width, heads * width, generator=generator) / (heads * width) ** 0.5
        )
        later = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        with torch.inference_mode():
            torch_own.in_proj_weight.copy_(w_in)
            torch_own.out_proj.weight.copy_(w_out)
            expected = torch_own(x, x, x, attn_mask=later, need_weights=False)[0]
        where = f"{heads} heads, {tokens} tokens, width {heads * width}"
        result = (mine or multi_head)(x, w_in, w_out, heads)
        worst = max(worst, close(result, expected, where))
    return f"equal to PyTorch's in {len(_SHAPES)} shapes, off by {worst:.1g} at most"


def later_tokens_change_nothing(mine: Mine) -> str:
    """Rows before a changed token stay as they are, to the bit: what a KV cache rests on."""
    import torch

    heads, tokens, width = 2, 24, 16
    generator = torch.Generator().manual_seed(3)
    q, k, v = torch.randn(3, heads, tokens, width, generator=generator)
    before = (mine or attention)(q, k, v)
    for changed in range(tokens):
        q[:, changed:], k[:, changed:], v[:, changed:] = torch.randn(
            3, heads, tokens - changed, width, generator=generator
        )
        after = (mine or attention)(q, k, v)
        claim(
            torch.equal(before[:, :changed], after[:, :changed]),
            f"changing the tokens from {changed} on changed what came out before them: is the mask there?",
        )
        claim(
            not torch.equal(before[:, changed:], after[:, changed:]),
            f"changing the tokens from {changed} on changed nothing at all",
        )
        before = after
    return f"changed each of {tokens} positions: nothing before it moved"
