"""What a session gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.generation.streamers import BaseStreamer

from kvlab.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from kvlab.hf.cache import PreallocatedCache
    from kvlab.hf.live import LiveRequest
    from kvlab.hf.report import Report


@dataclass(frozen=True, eq=False)
class GenerateOutput:
    """What `Session.generate` gives back.

    Attributes:
        sequences: ``[1, prompt + new]`` token ids.
        report: What was reused and what it cost.
        output: What ``model.generate`` returned: the same tensor, or with
            ``return_dict_in_generate`` transformers' ModelOutput with scores, logits and the cache.
            That cache keeps its memory leased for as long as it is held.
    """

    sequences: Tensor
    report: Report
    output: Any


@dataclass(eq=False)
class Prefilled:
    """A prompt's cache, ready for the next forward. Its memory stays leased for as long as the cache is held.

    Attributes:
        cache: Holds all prompt tokens; pass it as ``past_key_values``.
        logits: ``[1, vocabulary]``, of the token after the prompt.
        report: What was reused and what it cost.
    """

    cache: PreallocatedCache
    logits: Tensor
    report: Report
    _prompt: NDArray[np.int64]
    _live: LiveRequest

    def commit(self, token_ids: Tensor | Sequence[int]) -> None:
        """Keep tokens that were decoded on this cache since, so that the next turn reuses them.

        Ids beyond the rows of the cache are left out. With a chunk grid nothing is kept that was
        not computed on the grid.

        Args:
            token_ids: ``[tokens]`` or ``[1, tokens]``: the prompt and what was decoded after it, in
                order.

        Raises:
            InvalidArgumentError: The ids do not begin with the prompt, or with what was committed
                before.
            StoreClosedError: The store is closed.
        """
        ids = row(torch.as_tensor(token_ids))[: self.cache.get_seq_length()]
        if not np.array_equal(ids[: len(self._prompt)], self._prompt):
            raise InvalidArgumentError(
                f"the {len(ids)} tokens to commit do not begin with the {len(self._prompt)} of the "
                "prompt; give the prompt and all that was decoded on its cache"
            )
        self._live.commit(ids)


class OncePrompted(BaseStreamer):
    """A streamer that gets the prompt, with which generate() begins, once in several attempts."""

    def __init__(self, streamer: BaseStreamer) -> None:
        """Hand on to ``streamer``."""
        self._streamer = streamer
        self._prompted = False
        self._skip = False

    def attempt(self) -> OncePrompted:
        """Begin an attempt; gives back itself."""
        self._skip = self._prompted
        return self

    def put(self, value: Tensor) -> None:
        """Hand on what is new."""
        skip, self._skip = self._skip, False
        if not skip:
            self._prompted = True
            self._streamer.put(value)  # type: ignore[no-untyped-call]

    def end(self) -> None:
        """Hand on the end."""
        self._streamer.end()  # type: ignore[no-untyped-call]


def row(ids: Tensor) -> NDArray[np.int64]:
    """Token ids ``[tokens]`` or ``[1, tokens]`` of any integer dtype as ``[tokens]`` in numpy."""
    flat = ids[0] if ids.ndim == 2 else ids
    return flat.detach().to(torch.long).contiguous().numpy()
