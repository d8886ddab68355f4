"""Choosing the next token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from kvlab.serve.engine.request import Sampling

_LIKELY = 256
"""So many likeliest tokens are looked at first; nearly always they hold ``top_p`` of the probability."""


class Sampler:
    """Chooses tokens for one request, with random numbers of its own."""

    def __init__(self, sampling: Sampling) -> None:
        """Seed the random numbers."""
        self._sampling = sampling
        self._random = torch.Generator()
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.seed)

    @torch.inference_mode()
    def choose(self, logits: Tensor) -> int:
        """Choose a token.

        Args:
            logits: ``[vocabulary]``, of any float dtype.

        Returns:
            Its id: the likeliest (the first of equals), or one drawn from ``softmax(logits /
            temperature)`` cut to the smallest set of likeliest tokens that has ``top_p`` of the
            probability.
        """
        asked = self._sampling
        if asked.greedy:
            return int(logits.argmax())
        # Less the largest, so that a tiny temperature gives -inf instead of inf - inf.
        logits = logits.float()
        probabilities = torch.softmax((logits - logits.max()) / asked.temperature, dim=-1)
        if asked.top_p == 1.0:
            return self._draw(probabilities)
        kept, ids = _nucleus(probabilities, asked.top_p)
        return int(ids[self._draw(kept)])

    def _draw(self, weights: Tensor) -> int:
        return int(torch.multinomial(weights, 1, generator=self._random))


def _nucleus(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The likeliest tokens that together have ``top_p`` of the probability, at least one, and their ids."""
    count = min(_LIKELY, len(probabilities))
    kept, ids = probabilities.topk(count)
    if float(kept.sum()) < top_p:
        kept, ids = probabilities.sort(descending=True)
    before = kept.cumsum(0) - kept
    enough = max(int((before < top_p).sum()), 1)
    return kept[:enough], ids[:enough]
