"""One request under way: its hold on the prefix cache and the buffer that the model computes in."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from kvlab.errors import KvlabError, StoreClosedError
from kvlab.hf.buffers import tensors_over
from kvlab.hf.cache import KeyValue, PreallocatedCache
from kvlab.hf.report import HitTokens, Report

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kvlab._core import CacheBuffer, PrefixCache, Request
    from kvlab._types import Choice, RestoreMode
    from kvlab.hf.layout import ModelLayout

_log = logging.getLogger(__name__)
DRAIN_SECONDS = 60.0
"""The longest wait for commits and writes under way."""


class LiveRequest:
    """A prompt looked up and restored; lives as long as anybody may go on with its cache.

    Attributes:
        request: The hold on the matched blocks.
        found: Tokens that were there to be restored, by tier.
        hits: Tokens restored, by tier.
        computed_on_grid: With a chunk grid, the tokens that may be kept: what the grid covers. None
            without one.
    """

    def __init__(
        self,
        cache: PrefixCache,
        layout: ModelLayout,
        namespace: bytes,
        ids: NDArray[np.int64],
        *,
        capacity: int,
        grid: int,
        restore: RestoreMode,
        forward_key: bytes,
    ) -> None:
        """Look up, decide how much to restore, and restore it.

        Args:
            cache: Of this layout.
            layout: The model's.
            namespace: 32 bytes.
            ids: ``[tokens]``, the prompt.
            capacity: Tokens to make room for, the prompt included.
            grid: The chunk grid in tokens, 0 for none.
            restore: How much of what is found to restore.
            forward_key: 32 bytes that stand for what a forward's time depends on.

        Raises:
            CapacityError: Cache buffers in use leave too little memory.
            StoreClosedError: The store is closed.
        """
        self.computed_on_grid: int | None = None
        self._cache = cache
        self._layout = layout
        self._grid = grid
        self._forward_key = forward_key
        began = time.perf_counter()
        self.request: Request = cache.begin(ids, namespace, grid=grid)
        self.found = HitTokens(*self.request.found)
        try:
            self._choice: Choice = self.request.choose(restore, forward_key)
            self._lookup_ms = _milliseconds_since(began)
            self._buffer: CacheBuffer = cache.lease(capacity)
            leased = time.perf_counter()
            restored = self.request.restore(self._buffer)
        except BaseException:
            self.request.close()
            raise
        self._restore_ms = _milliseconds_since(leased)
        self._bytes_read: int = restored["l2_bytes"] + restored["l3_bytes"]
        self._failure: str | None = restored["failure"]
        self.hits = HitTokens(*restored["tokens"])

    def new_cache(self) -> PreallocatedCache:
        """Make the cache over the buffer, with the restored rows in it."""
        return PreallocatedCache(
            tensors_over(self._buffer, self._layout),
            self.hits.total,
            grow=self._grow,
            before_truncate=self._drain,
        )

    def computed(self, tokens: int, context: int, seconds: float) -> None:
        """Learn from a forward of ``tokens`` tokens after ``context`` others that waited for nothing."""
        self.request.computed(self._forward_key, tokens, context, seconds)

    def commit(self, ids: NDArray[np.int64]) -> None:
        """Hand over tokens whose rows stand in the cache; with a chunk grid, those that lie on it.

        Raises:
            InvalidArgumentError: The tokens are no continuation of those committed before.
            StoreClosedError: The store is closed.
        """
        kept = ids[: self.computed_on_grid]
        if len(kept) > 0:
            self.request.commit(kept, self._buffer)

    def try_commit(self, ids: NDArray[np.int64]) -> str | None:
        """Commit at the end of a request whose answer is there already: a refusal is no error, but a reason."""
        try:
            self.commit(ids)
        except KvlabError as error:
            _log.warning("%d tokens were not kept: %s", len(ids), error)
            return str(error)
        return None

    def report(
        self, prompt: int, *, start: float, restored: float, first: float, not_kept: str | None
    ) -> Report:
        """Say what the request reused and cost.

        Args:
            prompt: Tokens of the prompt.
            start: When the call came, by ``time.perf_counter``.
            restored: When the restored rows were there.
            first: When the first token's logits were there.
            not_kept: Why nothing was committed, or None.
        """
        predicted = self._choice["predicted"]
        return Report(
            prompt_tokens=prompt,
            found_tokens=self.found,
            hit_tokens=self.hits,
            computed_tokens=prompt - self.hits.total,
            blocks_reused=self.hits.total // self._cache.layout.block_tokens,
            bytes_read=self._bytes_read,
            lookup_ms=self._lookup_ms,
            restore_ms=self._restore_ms,
            prefill_ms=(first - restored) * 1e3,
            ttft_ms=(first - start) * 1e3,
            predicted_ms=predicted["ms"] if predicted is not None else None,
            recomputed=self._recomputed(),
            missed=self._missed(prompt),
            not_kept=not_kept,
        )

    def _recomputed(self) -> str | None:
        left = self.found.total - self._choice["tokens"]
        if left == 0:
            return None
        part, whole = self._choice["predicted"], self._choice["all"]
        if part is None or whole is None:
            return f"restore='never': {left} tokens were found and not restored"
        restore_ms = whole["restore_ms"] - part["restore_ms"]
        compute_ms = part["prefill_ms"] - whole["prefill_ms"]
        return (
            f"restoring the last {left} tokens from {self._choice['left']} is predicted to take "
            f"{restore_ms:.0f} ms, computing them {compute_ms:.0f} ms"
        )

    def _missed(self, prompt: int) -> str:
        step = max(self._grid, self._cache.layout.block_tokens)
        hit = self.hits.total
        if self._failure is not None:
            return f"what follows token {hit} was found but could not be read: {self._failure}"
        recomputed = self._recomputed()
        if recomputed is not None:
            return recomputed
        if prompt <= step:
            return f"the prompt has no {step} tokens before its last one, and less is not reused"
        if hit >= (prompt - 1) // step * step:
            return f"nothing: only what is left of {step} tokens, and the last token, were computed"
        if hit == 0:
            return f"no tier has the first {step} tokens of this prompt under this model and salt"
        return f"no tier has the {step} tokens that follow token {hit}"

    def _grow(self, tokens: int) -> list[KeyValue]:
        self._buffer = self._cache.lease(tokens + tokens // 4)
        return tensors_over(self._buffer, self._layout)

    def _drain(self) -> None:
        # Rows that are about to be overwritten may still be on their way to L1 or the disk.
        try:
            self._cache.flush(DRAIN_SECONDS)
        except StoreClosedError:
            return  # closing has waited for them


def _milliseconds_since(moment: float) -> float:
    return (time.perf_counter() - moment) * 1e3
