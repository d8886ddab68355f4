"""The two phases of a model under the roof: prefill of many tokens at once, decode of one of each sequence.

Beside the decode step stands what of it are matrix products, and how long its weights take to read: the
rest goes to attention, norms and the framework between them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from roof import point
from torch import Tensor, nn
from work import FLOAT, read_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from common import Results


class Decoder:
    """Decode steps of a batch after so many tokens each; the cache is cut back after every step."""

    def __init__(self, model: Any, past: int, batch: int) -> None:
        from transformers import DynamicCache

        self.model = model
        ids = torch.randint(model.config.vocab_size, (1, past))
        self.cache = DynamicCache()
        model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        if batch > 1:
            self.cache.batch_repeat_interleave(batch)
        self.next = ids[:, -1:].repeat(batch, 1)

    def __call__(self) -> None:
        """One step."""
        self.model(input_ids=self.next, past_key_values=self.cache, use_cache=True)
        self.cache.crop(-1)


def bare_step(model: Any) -> Callable[[], None]:
    """The matrix products of one decode step and nothing else: no attention, norm or Python between."""
    linears = [part.weight for part in model.modules() if isinstance(part, nn.Linear)]
    inputs = {width: torch.randn(1, width) for width in {weight.shape[1] for weight in linears}}

    def run() -> None:
        for weight in linears:
            nn.functional.linear(inputs[weight.shape[1]], weight)

    return run


class Phases:
    """Prefill and decode of SmolLM2-135M, and what a decode step is without the framework."""

    def __init__(self, *, quick: bool) -> None:
        import kvlab.hf

        model: Any = kvlab.hf.load("smollm2-135m")[0]
        self.shape = read_shape(model)
        self.prefills = [16, 256] if quick else [4, 16, 64, 256, 1024]
        self.decodes = [(128, 1), (128, 8)] if quick else [(128, 1), (128, 4), (128, 16), (2048, 1)]
        self.arms: dict[str, Callable[[], object]] = {"bare": bare_step(model)}
        for new in self.prefills:
            ids = torch.randint(model.config.vocab_size, (1, new))

            def prefill(ids: Tensor = ids) -> object:
                return model(input_ids=ids, use_cache=False, logits_to_keep=1)

            self.arms[f"prefill {new}"] = prefill
        for past, batch in self.decodes:
            self.arms[f"decode {past} {batch}"] = Decoder(model, past, batch)

    def points(self, taken: Mapping[str, float], limits: Results) -> Results:
        """What the arms reached, given their seconds."""
        weights = FLOAT * (self.shape.layer_weights + self.shape.head_weights)
        return {
            "prefill": [
                point(self.shape.forward(new), taken[f"prefill {new}"], limits, tokens=new)
                for new in self.prefills
            ],
            "decode": [
                point(
                    self.shape.forward(1, past, batch),
                    taken[f"decode {past} {batch}"],
                    limits,
                    tokens=past,
                    batch=batch,
                )
                for past, batch in self.decodes
            ],
            "step": {
                "weight_bytes": weights,
                "floor": weights / limits["bytes_per_second"],
                "matrix_products": taken["bare"],
                "whole": taken["decode 128 1"],
            },
        }
