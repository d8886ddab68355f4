"""What one token's keys and values look like, layer by layer.

The shapes are read off a real forward of two tokens, not derived from the config: models differ
in how they name heads and dimensions, and MLA models cache a latent whose K and V differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache

from kvlab.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROBE_TOKENS = 2


@dataclass(frozen=True)
class LayerShape:
    """Heads and dimensions of the keys and values one layer caches for one token."""

    k_heads: int
    k_dim: int
    v_heads: int
    v_dim: int

    @property
    def elements_per_token(self) -> int:
        """K and V elements of one token."""
        return self.k_heads * self.k_dim + self.v_heads * self.v_dim


@dataclass(frozen=True)
class ModelLayout:
    """The shapes of all layers and the dtype they share.

    Attributes:
        layers: One entry per cache layer, in order.
        dtype: Of every cached key and value.
        element_bytes: Bytes of one element of that dtype.
    """

    layers: tuple[LayerShape, ...]
    dtype: torch.dtype
    element_bytes: int

    @property
    def bytes_per_token(self) -> int:
        """Bytes one token takes in all layers together."""
        return self.element_bytes * sum(layer.elements_per_token for layer in self.layers)


def read_layout(model: PreTrainedModel) -> ModelLayout:
    """Run two tokens through the model and read the layout of its cache.

    Args:
        model: A decoder-only model that passed `kvlab.hf.check_model`.

    Returns:
        The layout. Nothing of the model is changed.

    Raises:
        UnsupportedModelError: A layer did not cache one key and one value row a token, or the
            layers differ in dtype.
    """
    cache = DynamicCache()  # without a config: every layer keeps every token
    probe = torch.zeros((1, _PROBE_TOKENS), dtype=torch.long, device=model.device)
    with torch.inference_mode():
        model(input_ids=probe, past_key_values=cache, use_cache=True)
    layers: list[Any] = list(cache.layers)
    shapes: list[LayerShape] = []
    dtypes: set[torch.dtype] = set()
    for index, layer in enumerate(layers):
        key, value = layer.keys, layer.values
        if key is None or value is None or key.ndim != 4 or value.ndim != 4:
            raise UnsupportedModelError(
                f"layer {index} of {_name(model)} caches no keys of its own"
            )
        if key.shape[:3:2] != (1, _PROBE_TOKENS) or value.shape[:3:2] != (1, _PROBE_TOKENS):
            raise UnsupportedModelError(
                f"layer {index} of {_name(model)} caches K {tuple(key.shape)} and V "
                f"{tuple(value.shape)} for {_PROBE_TOKENS} tokens, not one row a token"
            )
        shapes.append(LayerShape(key.shape[1], key.shape[3], value.shape[1], value.shape[3]))
        dtypes |= {key.dtype, value.dtype}
    if len(dtypes) != 1:
        raise UnsupportedModelError(
            f"{_name(model)} caches {sorted(map(str, dtypes)) or 'nothing'}; kvlab needs keys "
            "and values of one dtype in all layers"
        )
    dtype = dtypes.pop()
    return ModelLayout(tuple(shapes), dtype, dtype.itemsize)


def _name(model: PreTrainedModel) -> str:
    return type(model).__name__
