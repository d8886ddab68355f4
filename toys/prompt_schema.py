"""A schema of prompt modules: positions reserved for each, its KV computed there once, and sets of them joined.

Prompt Cache: Gim and others, arXiv:2311.04934. What it loses against a full prefill is in prompt_modules.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

MODULES, MODULE_TOKENS = 8, 128
SCHEMA = MODULES * MODULE_TOKENS


def positions(modules: Sequence[int]) -> Tensor:
    """Those reserved for these modules, in order."""
    return torch.cat(
        [torch.arange(module * MODULE_TOKENS, (module + 1) * MODULE_TOKENS) for module in modules]
    )


def cached(model: Any, layers: Sequence[tuple[Tensor, Tensor]] = ()) -> Any:
    """A cache of transformers with these K and V, one pair a layer; it never writes into them."""
    return (
        DynamicCache(layers, config=model.config) if layers else DynamicCache(config=model.config)
    )


def run(model: Any, ids: Tensor, at: Tensor, cache: Any, scored: int = 1) -> Tensor:
    """Computes `ids [tokens]` at positions `at` behind a cache; log-probabilities of the last `scored`."""
    out = model(ids[None], position_ids=at[None], past_key_values=cache, logits_to_keep=scored)
    return torch.log_softmax(out.logits[0], -1)


class Schema:
    """The modules' tokens `[modules, tokens]` and their KV, computed once.

    Attributes:
        alone: K and V of each module computed alone, `[1, heads, tokens, dim]` a layer.
        behind: The same, computed behind module 0.
    """

    def __init__(self, model: Any, tokens: Tensor) -> None:
        self.model, self.tokens = model, tokens
        self.alone = [self._compute((module,)) for module in range(len(tokens))]
        self.behind = [
            self.alone[0],
            *(self._compute((0, module)) for module in range(1, len(tokens))),
        ]

    def _compute(self, modules: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
        """KV of the last of these modules; it has seen those before it."""
        cache = cached(self.model)
        ids = self.tokens[list(modules)].flatten()
        run(self.model, ids, positions(modules), cache)
        last = slice(-MODULE_TOKENS, None)
        return [(layer.keys[:, :, last], layer.values[:, :, last]) for layer in cache.layers]


def from_modules(kv: list[list[tuple[Tensor, Tensor]]], modules: Sequence[int]) -> list[Any]:
    """K and V a layer of a set of modules, one behind the other."""
    return [
        tuple(torch.cat(rows, dim=2) for rows in zip(*layer, strict=True))
        for layer in zip(*(kv[module] for module in modules), strict=True)
    ]
