"""Keys and values in few bits: packed groups, grouped per token or per channel; quantise.py tells the idea."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

if TYPE_CHECKING:
    from collections.abc import Callable

GROUP = 32  # numbers that share a scale and a zero point, in every arm: equal bits, only the grouping differs
RESIDUAL = 32  # latest tokens that stay in 16 bits

Stored = tuple[Tensor, int]
"""Keys or values of a layer after the round trip [1, heads, tokens, dim], and the bytes stored for them."""


class Packed(NamedTuple):
    """Groups of numbers as they would lie in memory."""

    codes: Tensor  # uint8 [groups, numbers * bits / 8], the first number in the lowest bits
    scale: Tensor  # float16 [groups, 1]
    zero: Tensor  # float16 [groups, 1]: the group's smallest number

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(part.numel() * part.element_size() for part in self)


def pack(groups: Tensor, bits: int) -> Packed:
    """Quantises rows of numbers [groups, numbers], asymmetrically: from the row's smallest to its largest."""
    zero = groups.amin(-1, keepdim=True).half()
    steps = 2**bits - 1
    scale = ((groups.amax(-1, keepdim=True) - zero.float()) / steps).clamp_min(1e-6).half()
    codes = ((groups - zero.float()) / scale.float()).round().clamp(0, steps).to(torch.uint8)
    share = 8 // bits
    places = torch.arange(share, dtype=torch.uint8) * bits
    packed = (codes.unflatten(-1, (-1, share)) << places).sum(-1, dtype=torch.uint8)
    return Packed(packed, scale, zero)


def unpack(packed: Packed, bits: int) -> Tensor:
    """The numbers [groups, numbers] again, each at most half a step (and fp16's rounding) off."""
    places = torch.arange(8 // bits, dtype=torch.uint8) * bits
    codes = (packed.codes[..., None] >> places) & (2**bits - 1)
    numbers: Tensor = codes.flatten(-2).float() * packed.scale.float() + packed.zero.float()
    return numbers


def exact(rows: Tensor, _bits: int = 16) -> Stored:
    """16 bits, what a cache takes without quantisation."""
    return rows.half().float(), rows.numel() * 2


def per_token(rows: Tensor, bits: int) -> Stored:
    """Groups of GROUP channels of one token."""
    packed = pack(rows.reshape(-1, GROUP), bits)
    return unpack(packed, bits).view(rows.shape), packed.size


def per_channel(rows: Tensor, bits: int) -> Stored:
    """Groups of GROUP tokens of one channel; the tokens must be a multiple of that."""
    turned, size = per_token(rows.transpose(-2, -1), bits)
    return turned.transpose(-2, -1), size


def with_residual(quantise: Callable[[Tensor, int], Stored], rows: Tensor, bits: int) -> Stored:
    """The latest RESIDUAL tokens, and those that do not fill a group, stay in 16 bits."""
    whole = max(0, rows.shape[-2] - RESIDUAL) // GROUP * GROUP
    old, old_size = quantise(rows[..., :whole, :], bits)
    latest, latest_size = exact(rows[..., whole:, :])
    return torch.cat([old, latest], dim=-2), old_size + latest_size


def kivi_keys(rows: Tensor, bits: int) -> Stored:
    """Keys as KIVI keeps them."""
    return with_residual(per_channel, rows, bits)


def kivi_values(rows: Tensor, bits: int) -> Stored:
    """Values as KIVI keeps them; done to keys, what KIVI's keys are compared with."""
    return with_residual(per_token, rows, bits)


# What is done to keys and to values.
SCHEMES: dict[str, tuple[Callable[[Tensor, int], Stored], Callable[[Tensor, int], Stored]]] = {
    "16 bits": (exact, exact),
    "per token": (per_token, per_token),
    "KIVI": (kivi_keys, kivi_values),
    "keys per token": (kivi_values, exact),
    "keys per channel": (kivi_keys, exact),
    "values per token": (exact, kivi_values),
}


def through(cache: Any, scheme: str, bits: int) -> tuple[Any, int]:
    """A copy of the cache as it comes back from a scheme, and the bytes that the scheme stores."""
    keys_by, values_by = SCHEMES[scheme]
    out, size = DynamicCache(), 0
    for index, layer in enumerate(cache.layers):
        keys, key_size = keys_by(layer.keys, bits)
        values, value_size = values_by(layer.values, bits)
        out.update(keys, values, index)
        size += key_size + value_size
    return out, size
