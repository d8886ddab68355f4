"""Documents' KV in a new order, and which tokens are computed again; blend.py tells why, and what it gains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from partial_prefill import KV, log_probabilities, run_layer
from rope import rotate

if TYPE_CHECKING:
    import random

    from torch import Tensor

DOCUMENTS, DOCUMENT_TOKENS, QUESTION_TOKENS = 4, 192, 48
CONTEXT = DOCUMENTS * DOCUMENT_TOKENS
EVERYTHING = torch.arange(CONTEXT + QUESTION_TOKENS)
QUESTION = EVERYTHING[CONTEXT:]


class Arm(NamedTuple):
    """What is there, and which tokens are computed from the first layer on.

    CacheBlend: after layer `last_whole`, only those `chosen` ones whose K and V differ most there.
    """

    kv: KV
    at: Tensor
    last_whole: int = -1
    chosen: int = 0


def answer(model: Any, ids: Tensor, arm: Arm, kv: KV) -> Tensor:
    """Computes what the arm wants, over `kv`; the question's log-probabilities `[tokens, vocabulary]`."""
    at = arm.at
    hidden = model.model.embed_tokens(ids[at])
    for index in range(len(model.model.layers)):
        hidden = run_layer(model, index, hidden, at, kv)
        if index == arm.last_whole:
            # Arms work on a copy: the arm has what was cached.
            keys, values = (
                fresh[index] - old[index] for fresh, old in zip(kv, arm.kv, strict=True)
            )
            changed = (keys**2 + values**2).sum((0, 2))[:CONTEXT]
            at = torch.cat([changed.topk(arm.chosen).indices, QUESTION])
            hidden = hidden[at]
    return log_probabilities(model, hidden[-QUESTION_TOKENS:])


def put_together(cached: list[tuple[Tensor, Tensor]], frequencies: Tensor, shift: int) -> KV:
    """The documents' KV in this order, keys turned by `shift` a document, with room for the question."""
    keys = [rotate(k, place * shift, frequencies) for place, (k, _) in enumerate(cached)]
    room = torch.zeros(*keys[0].shape[:2], QUESTION_TOKENS, keys[0].shape[3])
    return KV(torch.cat([*keys, room], 2), torch.cat([*(v for _, v in cached), room], 2))


def firsts(count: int) -> Tensor:
    """Positions of the first `count` tokens of each document but the one in front, then of the question."""
    starts = range(DOCUMENT_TOKENS, CONTEXT, DOCUMENT_TOKENS)
    return torch.cat([*(torch.arange(start, start + count) for start in starts), QUESTION])


def arms(cached: KV, turned: KV, truth: KV, rng: random.Random) -> dict[str, Arm]:
    """What is compared."""
    share = round(0.15 * CONTEXT)
    # A document in front lacks nothing: chance, too, is spared from drawing it.
    drawn = torch.tensor(sorted(rng.sample(range(DOCUMENT_TOKENS, CONTEXT), share)))
    return {
        "as cached": Arm(cached, QUESTION),
        "re-rotated": Arm(turned, QUESTION),
        "first 4": Arm(turned, firsts(4)),
        "first 16": Arm(turned, firsts(16)),
        "first 32": Arm(turned, firsts(32)),
        "15 % at random": Arm(turned, torch.cat([drawn, QUESTION])),
        "15 % by layer 1": Arm(turned, EVERYTHING, 1, share),
        "15 % by layer 3": Arm(turned, EVERYTHING, 3, share),
        "full prefill": Arm(turned, EVERYTHING),
        "truth's own KV": Arm(truth, QUESTION),
    }
