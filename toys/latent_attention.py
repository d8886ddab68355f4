"""Multi-head latent attention, written out and absorbed, and what each form costs; mla.py tells the idea."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from grouped_attention import attend, bytes_per_token
from rope import frequencies_of, rotate
from torch import Tensor

Query = tuple[Tensor, Tensor]
"""What new tokens ask: the part without RoPE [heads, new, nope] and the part with it [heads, new, rope]."""


@dataclass(frozen=True)
class Shape:
    """What of a model's attention decides about its cache; the defaults are DeepSeek-V2's."""

    layers: int = 60
    width: int = 5120
    heads: int = 128
    latent: int = 512
    nope: int = 128  # of a query's and a key's dimensions those without RoPE
    rope: int = 64  # and those with it
    value: int = 128

    def cached_numbers(self) -> dict[str, int]:
        """Numbers a token and layer: MLA's, and those of key-value heads as wide as `nope`."""
        per_head = bytes_per_token(1, 1, self.nope, element=1)
        names = {"MHA": self.heads, "GQA, 8 kv heads": 8, "MQA": 1}
        rows = {name: heads * per_head for name, heads in names.items()}
        return {**rows, "MLA": self.latent + self.rope}

    def flops(self, new: int, tokens: int) -> dict[str, int]:
        """Multiplications and additions, one layer: `new` tokens attend to all of `tokens` cached ones.

        Counted from queries and latents on, which all forms have. `expanded once` keeps all heads' keys
        and values, as MHA does.
        """
        pair = 2 * self.heads * (self.nope + self.rope + self.value)
        up = 2 * self.heads * self.latent * (self.nope + self.value)
        absorbed_pair = 2 * self.heads * (2 * self.latent + self.rope)
        return {
            "expanded every step": tokens * up + new * tokens * pair,
            "expanded once": new * up + new * tokens * pair,
            "absorbed": new * up + new * tokens * absorbed_pair,
        }


class LatentAttention:
    """One layer with random weights; the output projection, the same in all forms, is left out.

    A cache is (latents [tokens, latent], rope_keys [tokens, rope]).
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = s = shape

        def weight(rows: int, *columns: int) -> Tensor:
            return torch.randn(rows, *columns).div(rows**0.5)

        self.query = weight(s.width, s.heads, s.nope + s.rope)
        self.down = weight(s.width, s.latent + s.rope)
        self.up_key = weight(s.latent, s.heads, s.nope)
        self.up_value = weight(s.latent, s.heads, s.value)
        self.scale = (s.nope + s.rope) ** -0.5

    def compress(self, x: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """What the tokens x [new, width] leave in the cache; the first is at position `first`."""
        latents, rope_keys = torch.split(
            x @ self.down, [self.shape.latent, self.shape.rope], dim=-1
        )
        return latents, self.turn(rope_keys, first)

    def ask(self, x: Tensor, first: int) -> Query:
        """The queries of the tokens x [new, width]; the first is at position `first`."""
        q = torch.einsum("nw,whd->hnd", x, self.query)
        nope, rope = torch.split(q, [self.shape.nope, self.shape.rope], dim=-1)
        return nope, self.turn(rope, first)

    def turn(self, rows: Tensor, first: int) -> Tensor:
        """RoPE of rows [..., tokens, rope], the first at position `first`."""
        places = torch.arange(first, first + rows.shape[-2])
        return rotate(rows, places, frequencies_of(self.shape.rope))

    def expand(self, latents: Tensor, rope_keys: Tensor) -> tuple[Tensor, Tensor]:
        """All heads' keys [heads, tokens, nope + rope] and values [heads, tokens, value]."""
        keys = torch.einsum("tl,lhd->htd", latents, self.up_key)
        shared = rope_keys.expand(self.shape.heads, -1, -1)
        return torch.cat([keys, shared], -1), torch.einsum("tl,lhd->htd", latents, self.up_value)

    def naive(self, query: Query, latents: Tensor, rope_keys: Tensor) -> Tensor:
        """The definition: expand, then attend as MHA does. Returns [heads, new, value]."""
        return self.attend_expanded(query, *self.expand(latents, rope_keys))

    def attend_expanded(self, query: Query, keys: Tensor, values: Tensor) -> Tensor:
        """Attention over keys and values that are expanded already, as an MHA cache holds them."""
        return attend(torch.cat(query, -1)[None], keys[None], values[None])[0]

    def absorbed(self, query: Query, latents: Tensor, rope_keys: Tensor) -> Tensor:
        """The same from the latents alone: no head's keys or values ever exist."""
        nope, rope = query
        new, tokens = nope.shape[1], len(latents)
        asked = torch.einsum("hnd,lhd->hnl", nope, self.up_key)
        scores = (asked.flatten(0, 1) @ latents.T + rope.flatten(0, 1) @ rope_keys.T) * self.scale
        future = torch.ones(new, tokens, dtype=torch.bool).triu(tokens - new + 1)
        scores = scores.view(-1, new, tokens).masked_fill(future, -torch.inf)
        mixed = (scores.softmax(-1).flatten(0, 1) @ latents).view(-1, new, self.shape.latent)
        return torch.einsum("hnl,lhd->hnd", mixed, self.up_value)
