"""What every arm stores: the KV of a few prompts, as tensors layer by layer, in bytes that do not compress.

The shape is that of SmolLM2-135M in fp32: 30 layers, each K and V of 3 heads of 64. All prompts come out of one buffer
of random bytes, each by its own XOR, so that no two share a page and a process needs memory for one prompt only.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

HEADS, DIM = 3, 64
FLOATS = {2: torch.bfloat16, 4: torch.float32}
INTEGERS = {2: torch.int16, 4: torch.int32}

Tensors = list[torch.Tensor]
"""K and V of layer 0, K and V of layer 1, ...: what an engine computes from. Any shape, of the shape's dtype."""


@dataclass(frozen=True)
class Shape:
    """How much there is."""

    tokens: int = 2048
    layers: int = 30
    prompts: int = 5
    element_bytes: int = 4
    """2 for bfloat16, 4 for float32."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensors."""
        return FLOATS[self.element_bytes]

    @property
    def row_bytes(self) -> int:
        """Bytes of one token's K, or V, in one layer."""
        return HEADS * DIM * self.element_bytes

    @property
    def part_bytes(self) -> int:
        """Bytes of K, or V, of one layer of a prompt."""
        return self.tokens * self.row_bytes

    @property
    def parts(self) -> int:
        """Tensors of a prompt."""
        return 2 * self.layers

    @property
    def prompt_bytes(self) -> int:
        """Bytes of one prompt."""
        return self.parts * self.part_bytes

    @property
    def bytes(self) -> int:
        """Bytes of all prompts."""
        return self.prompts * self.prompt_bytes


def pages(size: int) -> NDArray[np.uint8]:
    """Zeroed, page-aligned memory that has been touched."""
    memory = np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8)
    memory[::4096] = 0
    return memory


class Payload:
    """The prompts, one of them at a time in `bytes`."""

    def __init__(self, shape: Shape, seed: int = 20) -> None:
        self.shape = shape
        self.seed = seed
        self.bytes = pages(shape.prompt_bytes)
        self._words = self.bytes.view(np.uint64)
        generator = np.random.Generator(np.random.SFC64(seed))
        self._words[:] = generator.integers(0, 1 << 64, self._words.size, dtype=np.uint64)
        self._mask = np.uint64(0)

    def select(self, prompt: int) -> NDArray[np.uint8]:
        """Puts a prompt into `bytes`."""
        mask = np.random.default_rng([self.seed, prompt]).integers(0, 1 << 64, dtype=np.uint64)
        np.bitwise_xor(self._words, self._mask ^ mask, out=self._words)
        self._mask = mask
        return self.bytes

    def tensors(self) -> Tensors:
        """The prompt in `bytes` as tensors `[tokens, heads * dim]`, without a copy."""
        return parts(self.bytes, self.shape)

    def differing(self, tensors: Sequence[torch.Tensor]) -> int:
        """How many of the tensors are not those of the prompt in `bytes`, compared bit by bit."""
        if len(tensors) != self.shape.parts:
            raise ValueError(f"{len(tensors)} tensors came back instead of {self.shape.parts}")
        wrong = 0
        integers = INTEGERS[self.shape.element_bytes]
        for ours, theirs in zip(self.tensors(), tensors, strict=True):
            # By numpy, whose comparison needs no second thread and no copy; as integers, since some are NaN.
            original = ours.view(integers).numpy().reshape(tuple(theirs.shape))
            wrong += not np.array_equal(original, theirs.view(integers).numpy())
        return wrong


def parts(memory: NDArray[np.uint8], shape: Shape) -> Tensors:
    """Tensors `[tokens, heads * dim]` over memory that holds them one after the other."""
    whole = torch.from_numpy(memory).view(shape.dtype)
    return list(whole.view(shape.parts, shape.tokens, HEADS * DIM).unbind(0))
