"""Which shapes and dtype the keys and values of a cache have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvlab.errors import InvalidArgumentError
from kvlab.hf.layout import LayerShape

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from kvlab.hf.layout import ModelLayout

_MOST_LAYERS = 1 << 16


class Shapes:
    """What a layout says of each layer; without one, what the first keys and values of each layer were.

    Attributes:
        layers: Layers of a whole prefix; None where that is not known.
    """

    def __init__(self, layout: ModelLayout | None) -> None:
        self.layers: int | None = None
        self._known: dict[int, LayerShape] = {}
        self._dtype: torch.dtype | None = None
        if layout is not None:
            self.layers = len(layout.layers)
            self._known.update(enumerate(layout.layers))
            self._dtype = layout.dtype

    def check_layer(self, layer: int) -> None:
        """Raise `InvalidArgumentError` for the index of a layer that there cannot be."""
        most = _MOST_LAYERS if self.layers is None else self.layers
        if not 0 <= layer < most:
            raise InvalidArgumentError(f"layer {layer} is not one of 0 to {most - 1}")

    def check_count(self, layers: int) -> None:
        """Raise `InvalidArgumentError` for a number of layers that a whole prefix does not have."""
        if self.layers not in (None, layers) or not 1 <= layers <= _MOST_LAYERS:
            there = "1 or more" if self.layers is None else str(self.layers)
            raise InvalidArgumentError(f"{layers} layers, where the namespace has {there}")

    def with_layers(self, pairs: Mapping[int, tuple[Tensor, Tensor]], tokens: int | None) -> Shapes:
        """Check keys and values of layers.

        Args:
            pairs: K and V by layer.
            tokens: Of their prefix; None where that is not known.

        Returns:
            What is known once they are there. This object stays as it is.

        Raises:
            InvalidArgumentError: They disagree with the layout, with what was there before, or with each other.
        """
        after = Shapes(None)
        after.layers, after._known, after._dtype = self.layers, self._known.copy(), self._dtype
        for layer, (keys, values) in pairs.items():
            self.check_layer(layer)
            reason = after._disagreement(layer, keys, values, tokens)
            if reason is not None:
                raise InvalidArgumentError(f"layer {layer}: {reason}")
            after._known[layer] = _shape_of(keys, values)
            after._dtype = keys.dtype
        return after

    def _disagreement(
        self, layer: int, keys: Tensor, values: Tensor, tokens: int | None
    ) -> str | None:
        for name, tensor in (("K", keys), ("V", values)):
            shape = tuple(tensor.shape)
            if len(shape) not in (3, 4) or (len(shape) == 4 and shape[0] != 1):
                return f"{name} is {shape}; give [heads, tokens, dim], or [1, heads, tokens, dim]"
        if keys.dtype != values.dtype:
            return f"K is {keys.dtype} and V {values.dtype}; give both in one dtype"
        if self._dtype not in (None, keys.dtype):
            return f"K and V are {keys.dtype}, the namespace's {self._dtype}; name another model"
        held = (keys.shape[-2], values.shape[-2])
        if held[0] != held[1] or tokens not in (None, held[0]):
            of_prefix = "" if tokens is None else f" and the prefix {tokens}"
            return f"K has {held[0]} tokens, V {held[1]}{of_prefix}; they need as many"
        expected, shape_of = self._known.get(layer), _shape_of(keys, values)
        if expected not in (None, shape_of):
            return f"K and V are {shape_of}, the namespace's {expected}; name another model"
        return None


def _shape_of(keys: Tensor, values: Tensor) -> LayerShape:
    return LayerShape(keys.shape[-3], keys.shape[-1], values.shape[-3], values.shape[-1])
