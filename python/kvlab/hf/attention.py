"""Attention of a chunk behind a prefix without a mask.

Transformers masks a chunk behind a prefix with a matrix of chunk times context, which costs a quarter more
computing (nothing above the diagonal is skipped), a pass over the matrix in every head, and a copy of keys
and values for each group of heads. Here the chunk attends to the prefix without a mask and to itself
causally, and the two are put together by their log-sum-exps, as FlashAttention does with its blocks (Dao et
al. 2022). The sums differ in their rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

CHUNKED = "kvlab_chunked"
"""The name of this implementation in a model's config; part of the cache's namespace as any other is."""
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def use_chunked_attention(model: PreTrainedModel) -> bool:
    """Switch a model from ``sdpa`` to this implementation, where it gains: on the CPU, in float32.

    The 16-bit dtypes stay as they are, because the two parts would be rounded before they are put together.

    Returns:
        Whether it was switched.
    """
    if model.config._attn_implementation != "sdpa" or model.dtype != torch.float32:
        return False
    AttentionInterface.register(CHUNKED, _attention)
    AttentionMaskInterface.register(CHUNKED, _mask)
    model.set_attn_implementation(CHUNKED)
    return True


def _mask(
    *,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    **kwargs: Any,
) -> Tensor | None:
    """No mask where every token sees all before it; else that of ``sdpa``."""
    if mask_function is causal_mask_function and attention_mask is None and allow_is_causal_skip:
        return None
    mask: Tensor | None = sdpa_mask(
        mask_function=mask_function,
        attention_mask=attention_mask,
        allow_is_causal_skip=allow_is_causal_skip,
        **kwargs,
    )
    return mask


def _attention(  # noqa: PLR0917 - transformers' signature
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of the last rows of the context.

    Args:
        module: The layer.
        query: ``[batch, heads, chunk, dim]``.
        key: ``[batch, key heads, context, dim]``, the chunk at its end.
        value: As ``key``.
        attention_mask: None for causal.
        scaling: Of the scores; None for ``dim ** -0.5``.
        **kwargs: For ``sdpa``.

    Returns:
        ``[batch, chunk, heads, dim]``, and no weights.
    """
    chunk, prefix = query.shape[2], key.shape[2] - query.shape[2]
    splits = attention_mask is None and chunk > 1 and prefix > 0
    if splits and query.shape[3] != value.shape[3]:  # the kernel wants one dimension for all
        attention_mask = torch.ones(chunk, prefix + chunk, dtype=torch.bool).tril(prefix)[
            None, None
        ]
        splits = False
    if not splits:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return out, None
    before, before_sum = _flash(query, key[:, :, :prefix], value[:, :, :prefix], scale=scaling)
    within, within_sum = _flash(
        query, key[:, :, prefix:], value[:, :, prefix:], is_causal=True, scale=scaling
    )
    share = torch.sigmoid(before_sum - within_sum).unsqueeze(-1)
    return torch.lerp(within, before, share).transpose(1, 2).contiguous(), None
