"""A request whose forwards are ordered one by one, so that several can take turns on one model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from kvlab.errors import StateError
from kvlab.hf.live import DRAIN_SECONDS, LayerMissing, LiveRequest
from kvlab.hf.report import HitTokens

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedModel

    from kvlab._core import Request
    from kvlab.hf.cache import PreallocatedCache

_NO_LOGITS = torch.empty(0, dtype=torch.long)
"""The rows to compute logits of in a chunk that does not end the prompt."""


class StepwiseRequest:
    """A prompt computed in chunks behind what is cached of it, then continued token by token.

    Attributes:
        prompt_tokens: Of the prompt.
        rows: Tokens whose KV stands in the cache, prompt first.
        committed: Leading tokens that were handed over to be cached, or were cached already.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ids: NDArray[np.int64],
        source: LiveRequest | PreallocatedCache,
        *,
        chunk_tokens: int,
        grid: int = 0,
    ) -> None:
        """Begin behind the prefix; nothing is computed yet.

        Args:
            model: In eval mode.
            ids: ``[tokens]``, the whole prompt.
            source: A request looked up in the prefix cache (see `Session.steps`), or an empty cache
                to compute in without one.
            chunk_tokens: The most tokens of one forward.
            grid: The chunk grid, 0 for none.
        """
        self.prompt_tokens = len(ids)
        self._model = model
        self._ids = ids
        self._decoded: list[int] = []
        self._chunk = chunk_tokens
        self._grid = grid
        self._live: LiveRequest | None = None
        self._request: Request | None = None
        self._kv: PreallocatedCache | None = None
        self._hits = HitTokens()
        if isinstance(source, LiveRequest):
            self._live, self._request = source, source.request
            self._hits = source.hits
            source.computed_on_grid = self._hits.total if grid else None
            self._kv = source.new_cache()
        else:
            self._kv = source
        self._settled = self._live is None
        self.rows = self.committed = self.cache.get_seq_length()

    @property
    def cache(self) -> PreallocatedCache:
        """What the model computes on.

        Raises:
            StateError: The request was released.
        """
        if self._kv is None:
            raise StateError("the request is released; begin another one")
        return self._kv

    @property
    def hits(self) -> HitTokens:
        """Prompt tokens that were restored, by tier; until the first chunk is computed, those that will be."""
        return self._hits

    @property
    def arriving(self) -> bool:
        """Whether bytes of L4 are on their way, which `advance` would wait for."""
        return not self._settled and self._live is not None and self._live.arriving

    @property
    def buffer_bytes(self) -> int:
        """Bytes leased from the prefix cache; 0 without one."""
        return 0 if self._live is None else self._live.buffer_bytes

    @torch.inference_mode()
    def advance(self, most: int | None = None) -> Tensor | None:
        """Compute the next chunk of the prompt.

        If a restored layer turns out damaged in the first chunk, that chunk is computed again on what
        did arrive whole.

        Args:
            most: The most tokens of this chunk instead of ``chunk_tokens``; on a grid it is not heeded.

        Returns:
            The logits ``[vocabulary]`` of the next token once the prompt is computed, else None.
        """
        if self._settled or self._live is None:
            logits = self._prefill(most)
        else:
            try:
                logits = self._prefill(most)
                self._live.settle()
            except LayerMissing as missing:
                self._kv = None
                self._kv = self._live.shortened(missing)
                self.rows = self.committed = self._kv.get_seq_length()
                self._hits = self._live.hits
                if self._grid:
                    self._live.computed_on_grid = self.rows
                logits = self._prefill(most)
            self._settled = True
        if logits is not None and self._live is not None:
            self._live.learn()
        return logits

    def _prefill(self, most: int | None) -> Tensor | None:
        """One chunk; all chunks but the last are whole, which is what puts them on a grid."""
        start = self.rows
        chunk = self._chunk if most is None or self._grid else most
        ids = self._ids[start : start + chunk]
        last = start + len(ids) == self.prompt_tokens
        if self._live is not None:
            self._live.begin_forward(len(ids), start)
        out = self._model(
            input_ids=torch.from_numpy(ids).unsqueeze(0),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1 if last else _NO_LOGITS,
        )
        self.rows += len(ids)
        if self._live is not None:
            self._live.end_forward()
            if self._grid and not last:
                # Rows behind the grid come out of forwards of other shapes: see Session._fill_grid.
                self._live.computed_on_grid = self.rows
        if not last:
            return None
        logits: Tensor = out.logits[0, -1]
        return logits

    @torch.inference_mode()
    def decode(self, token: int) -> Tensor:
        """Compute on one more token.

        Returns:
            The logits ``[vocabulary]`` of the token after it.

        Raises:
            CapacityError: The cache is full and cannot grow; nothing was changed.
        """
        out = self._model(
            input_ids=torch.tensor([[token]]),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._decoded.append(token)
        self.rows += 1
        logits: Tensor = out.logits[0, -1]
        return logits

    def commit(self) -> str | None:
        """Hand over all rows to be cached, in L1 and below; they stay in use.

        Returns:
            Why they were not, or None.
        """
        if self._live is None or self.rows <= self.committed:
            return None
        decoded = np.asarray(self._decoded, dtype=np.int64)
        refused = self._live.try_commit(np.concatenate([self._ids, decoded])[: self.rows])
        on_grid = self._live.computed_on_grid
        self.committed = self.rows if on_grid is None else on_grid
        return refused

    def wait_committed(self, timeout: float = DRAIN_SECONDS) -> bool:
        """Wait until the last commit can be found in L1; False if the time ran out."""
        return self._request is None or self._request.wait_committed(timeout)

    def release(self) -> None:
        """Give back the cache buffer; nothing can be computed any more. The blocks stay held until `close`."""
        if not self._settled and self._live is not None:
            self._live.abandon()
            self._request = None
        self._live = None
        self._kv = None

    def close(self) -> None:
        """Give back the cache buffer and the blocks. Commits under way go on."""
        self.release()
        if self._request is not None:
            self._request.close()
            self._request = None
