"""What a forward takes, counted from shapes: floating-point operations, and bytes from memory.

A product of n rows with a matrix of m elements is n * m multiplications and as many additions. A score
and its share of the answer take as much again for every pair of a query and a key. From memory come,
once each, the weights and the cached keys and values. What passes between the layers is left out, so
the bytes are a lower bound; the operations of norms, softmax and activations are few, and left out too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FLOAT = 4  # bytes: everything here is fp32
WIDE = 8192  # a weight of WIDE x WIDE is 256 MiB, more than caches hold
HEADS, HEAD_DIM, CACHED = 16, 128, 16384  # the bare attention: 256 MiB of keys and values


@dataclass(frozen=True)
class Work:
    """What some computation takes."""

    flops: int
    bytes: int

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return self.flops / self.bytes


@dataclass(frozen=True)
class Shape:
    """What of a transformer decides its work."""

    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    layer_weights: int  # elements of all layers' matrices
    head_weights: int  # of the one that scores the vocabulary

    def forward(self, new: int, past: int = 0, batch: int = 1) -> Work:
        """A forward of `new` tokens after `past` ones, in each of `batch` sequences; one is scored."""
        seen = new * past + new * (new + 1) // 2  # pairs of a query and a key it may look at
        linear = 2 * (self.layer_weights * new + self.head_weights)
        attention = 4 * self.layers * self.query_heads * self.head_dim * seen
        rows = past + 2 * new  # of the cache: all are read, the new ones written first
        cache = 2 * self.layers * self.kv_heads * self.head_dim * rows
        weights = self.layer_weights + self.head_weights
        return Work(batch * (linear + attention), FLOAT * (weights + batch * cache))


def read_shape(model: Any) -> Shape:
    """The shape of a model of the Llama family."""
    config = model.config
    from torch import nn

    matrices = [part.weight for part in model.model.modules() if isinstance(part, nn.Linear)]
    return Shape(
        layers=config.num_hidden_layers,
        query_heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        layer_weights=sum(matrix.numel() for matrix in matrices),
        head_weights=model.lm_head.weight.numel(),
    )


def matmul(batch: int) -> Work:
    """`batch` rows through one wide weight."""
    return Work(2 * batch * WIDE * WIDE, FLOAT * (WIDE * WIDE + 2 * batch * WIDE))


def attend(queries: int) -> Work:
    """`queries` of each head over one cache."""
    width = HEADS * HEAD_DIM
    return Work(4 * queries * CACHED * width, FLOAT * (2 * CACHED * width + 2 * queries * width))
