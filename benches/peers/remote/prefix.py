"""What every arm of the remote run carries: the KV of one prefix in bfloat16, layer by layer, as a model computed it.

The bytes lie in a file that each process of the run reads. Each part is `[tokens, heads * dim]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from kvlab import hf
from kvlab.demo.prompt import prompt
from peers.payload import DIM, HEADS, Payload, Shape, pages

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

BLOCK_TOKENS = 16
MODEL = "smollm2-135m"


def shape_of(tokens: int, layers: int = 30) -> Shape:
    """The shape of SmolLM2-135M's KV in bfloat16, one prompt."""
    return Shape(tokens=tokens, layers=layers, prompts=1, element_bytes=2)


class Prefix(Payload):
    """The prefix; prompt 0 is the only one."""

    def __init__(self, shape: Shape, path: Path) -> None:
        self.shape = shape
        self.bytes = pages(shape.prompt_bytes)
        self.bytes[:] = np.fromfile(path, dtype=np.uint8)

    def select(self, prompt: int) -> NDArray[np.uint8]:
        """It is there.

        Raises:
            ValueError: another prompt.
        """
        if prompt:
            raise ValueError(f"there is no prompt {prompt}")
        return self.bytes


def compute(path: Path, shape: Shape) -> None:
    """Writes what the small model computes for the head of the demo's agent prefix, rounded to bfloat16."""
    model, tokenizer = hf.load(MODEL)
    tokens = prompt(tokenizer, shape.tokens, 1)[:, : shape.tokens]
    with torch.inference_mode():
        computed = model(tokens, use_cache=True, logits_to_keep=1).past_key_values
    save(path, [part[0] for layer in computed.layers for part in (layer.keys, layer.values)])


def make_up(path: Path, shape: Shape, seed: int = 20) -> None:
    """Writes normal numbers instead: for a run without a model."""
    generator = torch.Generator().manual_seed(seed)
    size = (HEADS, shape.tokens, DIM)
    save(path, [torch.randn(size, generator=generator) for _ in range(shape.parts)])


def save(path: Path, parts: Sequence[torch.Tensor]) -> None:
    """Writes parts `[heads, tokens, dim]` token by token."""
    with path.open("xb") as file:
        for part in parts:
            rows = part.to(torch.bfloat16).transpose(0, 1).contiguous()
            file.write(rows.view(torch.int16).numpy().data)
