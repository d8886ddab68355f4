"""A small GPT over characters: multi_head_attention.py between layers of its own.

A layer is attention and a two-layer network, each added to what came in, each normalised first (GPT-2).
Its KV cache is a list with K and V of every layer.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from multi_head_attention import KeyValue, MultiHeadAttention
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence


class Block(nn.Module):
    """One layer: tokens exchange something (attention), then each is worked on alone."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before_attention, self.before_network = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width, heads)
        self.network = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        """The tokens x `[batch, tokens, width]` after this layer, and its KV cache."""
        answers, cache = self.attention(self.before_attention(x), past)
        x = x + answers
        return x + self.network(self.before_network(x)), cache


class CharGPT(nn.Module):
    """Predicts the next character from up to `context` characters."""

    def __init__(
        self, letters: str, *, width: int = 128, heads: int = 4, layers: int = 4, context: int = 256
    ) -> None:
        super().__init__()
        self.letters, self.context = letters, context
        self.embedding = nn.Embedding(len(letters), width)
        self.position = nn.Embedding(context, width)  # attention itself does not know the order
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(letters))

    def encode(self, text: str) -> Tensor:
        """The text's characters as numbers `[1, characters]`."""
        return torch.tensor([[self.letters.index(letter) for letter in text]])

    def decode(self, ids: Sequence[int]) -> str:
        """The characters of these numbers."""
        return "".join(self.letters[number] for number in ids)

    def forward(
        self, ids: Tensor, past: list[KeyValue] | None = None
    ) -> tuple[Tensor, list[KeyValue]]:
        """Scores of what follows each of the new characters.

        Args:
            ids: The new characters, `[batch, characters]`.
            past: The KV cache of the characters before them, layer by layer.

        Returns:
            Logits `[batch, characters, letters]`, and the cache with the new characters in it.
        """
        start = past[0][0].shape[2] if past else 0
        x = self.embedding(ids) + self.position.weight[start : start + ids.shape[1]]
        cache: list[KeyValue] = []
        for layer, block in enumerate(self.blocks):
            x, kv = block(x, past[layer] if past else None)
            cache.append(kv)
        return self.head(self.norm(x)), cache
