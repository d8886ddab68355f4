"""0.3: bytes a token and the crossover, held against `kvlab.sizing`."""

from __future__ import annotations

import random

from kvlab.course.checks import Mine, claim
from kvlab.sizing import ModelShape, kv_size, presets

__all__ = ["bytes_per_token", "crossover"]

_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def bytes_per_token(mine: Mine) -> str:
    """Published models in three element types."""
    shapes = {name: shape for name, shape in presets().items() if shape.latent is None}
    for name, shape in shapes.items():
        for dtype, element in _BYTES.items():
            sizes = kv_size(
                ModelShape(
                    layers=shape.layers,
                    kv_heads=shape.kv_heads,
                    head_dim=shape.head_dim,
                    dtype=dtype,
                )
            )
            result = (mine or _bytes)(shape.layers, shape.kv_heads, shape.head_dim, element)
            claim(
                result == sizes.kv_bytes_per_token,
                f"{name} in {dtype}: gave {result}, kvlab size says {sizes.kv_bytes_per_token} "
                f"({shape.layers} layers, {shape.kv_heads} KV heads of {shape.head_dim})",
            )
    return f"right for {len(shapes)} published models in {len(_BYTES)} element types"


def crossover(mine: Mine) -> str:
    """Published models, and draws close to the border."""
    cases = []
    for name, shape in presets().items():
        sizes = kv_size(shape)
        if sizes.weight_bytes is not None:
            cases.append((name, sizes.weight_bytes, sizes.kv_bytes_per_token))
    rng = random.Random(4)
    for _ in range(50):
        token = rng.randint(1, 2000)
        cases.append(("a draw", token * rng.randint(1, 50) + rng.choice((-1, 0, 1)), token))
    for name, weights, token in cases:
        result = (mine or _crossover)(weights, token)
        claim(
            isinstance(result, int) and (result - 1) * token <= weights < result * token,
            f"{name}: {weights} bytes of weights, {token} a token: gave {result}, but the fewest tokens that are "
            f"larger are {_crossover(weights, token)}",
        )
    return f"the fewest tokens in all {len(cases)} cases"


def _bytes(layers: int, kv_heads: int, head_dim: int, element: int) -> int:
    """A key and a value a head and layer."""
    return 2 * layers * kv_heads * head_dim * element


def _crossover(weights: int, token: int) -> int:
    return weights // token + 1
