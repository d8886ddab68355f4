"""Tensors over the store's cache buffers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from kvlab._core import CacheBuffer
    from kvlab.hf.cache import KeyValue
    from kvlab.hf.layout import ModelLayout


def tensors_over(buffer: CacheBuffer, layout: ModelLayout) -> list[KeyValue]:
    """Make K and V tensors of every layer over a cache buffer; nothing is copied.

    Args:
        buffer: Leased from the prefix cache of this layout. It goes back to its pool when the last
            tensor is gone.
        layout: The model's.

    Returns:
        Per layer K ``[1, k_heads, capacity, k_dim]`` and V ``[1, v_heads, capacity, v_dim]`` of the
        layout's dtype.
    """
    capacity = buffer.capacity

    def view(offset: int, heads: int, dim: int) -> torch.Tensor:
        count = heads * capacity * dim
        flat = torch.frombuffer(buffer, dtype=layout.dtype, count=count, offset=offset)
        return flat.view(1, heads, capacity, dim)

    # Tensors made in inference mode could not be written outside of it later.
    with torch.inference_mode(mode=False):
        return [
            (view(k, shape.k_heads, shape.k_dim), view(v, shape.v_heads, shape.v_dim))
            for shape, (k, v) in zip(layout.layers, buffer.offsets(), strict=True)
        ]
