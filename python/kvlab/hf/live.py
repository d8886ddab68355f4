"""One request under way: its hold on the prefix cache and the buffer that the model computes in."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from kvlab.errors import KvlabError, StoreClosedError
from kvlab.hf.buffers import tensors_over
from kvlab.hf.cache import KeyValue, PreallocatedCache
from kvlab.hf.report import HitTokens, Report

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from kvlab._core import CacheBuffer, Inquiry, PrefixCache, Request, Restore
    from kvlab._types import Choice, Restored, RestoreMode
    from kvlab.hf.layout import ModelLayout

_log = logging.getLogger(__name__)
DRAIN_SECONDS = 60.0
"""The longest wait for commits and writes under way."""
_SPARE_TOKENS = 256


T = TypeVar("T")


class LayerMissing(Exception):  # noqa: N818 - not an error of the caller's, who never sees it
    """A layer of the prefix will not arrive whole: the forward that needs it ends here."""


@dataclass(frozen=True, slots=True)
class _Forward:
    """A forward of this request; seconds of computing and of waiting for layers."""

    tokens: int
    context: int
    computed: float
    waited: float


class LiveRequest:
    """A prompt looked up, its prefix on its way; lives as long as anybody may go on with its cache.

    Attributes:
        request: The hold on the matched blocks.
        found: Tokens that were there to be restored, by tier.
        hits: Tokens restored, by tier; until the restore is settled, those that it will bring if
            nothing fails.
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
        keep: bool = True,
        restore: RestoreMode,
        forward_key: bytes,
        inquiry: Inquiry | None = None,
    ) -> None:
        """Look up, decide how much to restore, and begin to.

        Args:
            cache: Of this layout.
            layout: The model's.
            namespace: 32 bytes.
            ids: ``[tokens]``, the prompt.
            capacity: Tokens to make room for, the prompt included.
            grid: The chunk grid in tokens, 0 for none.
            keep: Whether its tokens are to be committed. Without, no resident sequence loses rows
                to it.
            restore: How much of what is found to restore.
            forward_key: 32 bytes that stand for what a forward's time depends on.
            inquiry: What L4 said of the prompt; without it, it is asked now.

        Raises:
            CapacityError: Cache buffers in use leave too little memory.
            StoreClosedError: The store is closed.
        """
        self.computed_on_grid: int | None = None
        self._cache = cache
        self._layout = layout
        self._grid = grid
        self._forward_key = forward_key
        self._forwards: list[_Forward] = []
        self._under_way = (0, 0, 0.0, 0.0)
        self._missing_layers = set(range(len(layout.layers)))
        self._aborted = 0
        self._waited = 0.0
        self._restored: Restored | None = None
        self._left_alone = False
        began = time.perf_counter()
        self.request: Request = cache.begin(ids, namespace, grid=grid, inquiry=inquiry)
        self.found = HitTokens(*self.request.found)
        try:
            self._restore: Restore | None = None
            self._choice: Choice | None = None
            taken = None
            if restore != "never":
                taken = self.request.take_resident(capacity, cut=keep)
            self._resident = taken is not None
            if taken is not None:
                self._buffer: CacheBuffer = taken[0]
                self.hits = HitTokens(l1=taken[1])
                self._lookup_ms = _milliseconds_since(began)
            else:
                self._choice = self.request.choose(restore, forward_key)
                self._lookup_ms = _milliseconds_since(began)
                # With spare room the next turn still fits, and can go on in place.
                spare = max(capacity // 2, _SPARE_TOKENS)
                self._buffer = cache.lease(capacity, spare=spare)
                self._restore = self.request.start_restore(self._buffer)
                self.hits = HitTokens(*self._restore.tokens)
        except BaseException:
            self.request.close()
            raise
        self._computing = time.perf_counter()

    def run(self, compute: Callable[[PreallocatedCache], T]) -> tuple[PreallocatedCache, T]:
        """Compute on the prefix, layer by layer as it arrives.

        If a layer turns out damaged, ``compute`` is aborted before it had logits and called again
        on what did arrive, with torch's random numbers as they were.

        Args:
            compute: Gets a cache with the prefix in it. What it raises leaves the request closed.

        Returns:
            The cache that it succeeded on, and what it returned.
        """
        try:
            random = torch.get_rng_state()
            try:
                kv = self.new_cache()
                result = compute(kv)
                self.settle()
            except LayerMissing as missing:
                torch.set_rng_state(random)
                kv = self.shortened(missing)
                result = compute(kv)
        except BaseException:
            self.abandon()
            raise
        self.learn()
        return kv, result

    def shortened(self, missing: LayerMissing) -> PreallocatedCache:
        """Give a cache with what did arrive whole, once a forward was aborted for what did not."""
        _log.warning("computing again with a shorter prefix: %s", missing)
        self._aborted += 1
        self._forwards.clear()
        self._finish()
        return self.new_cache()

    def abandon(self) -> None:
        """Give up the restore and the blocks."""
        self._restore = None  # waits for reads under way: the buffer is written to no more
        self.request.close()

    def begin_forward(self, tokens: int, context: int) -> None:
        """Begin to time a forward of ``tokens`` tokens after ``context`` others."""
        self._under_way = (tokens, context, time.perf_counter(), self._waited)

    def end_forward(self) -> None:
        """Its logits are there."""
        tokens, context, began, waited_before = self._under_way
        waited = self._waited - waited_before
        computed = max(time.perf_counter() - began - waited, 0.0)
        self._forwards.append(_Forward(tokens, context, computed, waited))

    def learn(self) -> None:
        """Tell the store what the forwards and the restore took, once the prompt is computed."""
        restored = self._restored or _NOTHING
        for forward in self._forwards:
            self.request.computed(
                self._forward_key, forward.tokens, forward.context, forward.computed
            )
        if self._forwards and _bytes_read(restored) > 0 and not self._left_alone:
            # Copying L1's part is done where it is waited for: it overlaps with nothing.
            first = self._forwards[0]
            waited = max(first.waited - restored["l1_ms"] / 1e3, 0.0)
            self.request.overlapped(restored["below_ms"] / 1e3, first.computed, waited)

    @property
    def arriving(self) -> bool:
        """Whether bytes of L4 are on their way: who computes on them now may wait as long as its time-out."""
        under_way = self._restore is not None and self.hits.l4 > 0 and self._restore.under_way
        # What arrives while nobody computes on it says nothing of how reads and forwards overlap.
        self._left_alone |= under_way
        return under_way

    def settle(self) -> None:
        """Wait for the whole restore.

        Raises:
            LayerMissing: It brought less than what is being computed on.
        """
        expected = self.hits.total
        self._finish()
        if self.hits.total < expected:
            raise LayerMissing(f"{self.hits.total} of {expected} tokens arrived whole")

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the cache buffer."""
        return self._buffer.nbytes

    def _finish(self) -> None:
        if self._restore is not None:
            self._restored = self._restore.finish()
            self._restore = None
            self.hits = HitTokens(*self._restored["tokens"])

    def _await_layer(self, index: int) -> bool:
        """Wait for a layer; True once all have been waited for."""
        if self._restore is not None:
            began = time.perf_counter()
            there = self._restore.wait_layer(index)
            self._waited += time.perf_counter() - began
            if not there:
                raise LayerMissing(f"layer {index} did not arrive")
        self._missing_layers.discard(index)
        return not self._missing_layers

    def new_cache(self) -> PreallocatedCache:
        """Give a cache over the buffer with the prefix in it, or on its way into it."""
        return PreallocatedCache(
            tensors_over(self._buffer, self._layout),
            self.hits.total,
            grow=self._grow,
            before_layer=None if self._restore is None else self._await_layer,
            before_truncate=self._drain,
        )

    def commit(self, ids: NDArray[np.int64]) -> None:
        """Hand over tokens whose rows stand in the cache; with a chunk grid, those that lie on it.

        Raises:
            InvalidArgumentError: The tokens are no continuation of those committed before.
            StoreClosedError: The store is closed.
        """
        kept = ids[: self.computed_on_grid]
        if len(kept) > 0:
            self.request.commit(kept, self._buffer, resident=True)

    def try_commit(self, ids: NDArray[np.int64]) -> str | None:
        """Commit at the end of a request whose answer is there already: a refusal is no error, but a reason."""
        try:
            self.commit(ids)
        except KvlabError as error:
            _log.warning("%d tokens were not kept: %s", len(ids), error)
            return str(error)
        return None

    def report(self, prompt: int, *, start: float, first: float, not_kept: str | None) -> Report:
        """Say what the request reused and cost, once it has run.

        Args:
            prompt: Tokens of the prompt.
            start: When the call came, by ``time.perf_counter``.
            first: When the first token's logits were there.
            not_kept: Why nothing was committed, or None.
        """
        restored = self._restored or _NOTHING
        predicted = self._choice["predicted"] if self._choice is not None else None
        return Report(
            prompt_tokens=prompt,
            found_tokens=self.found,
            hit_tokens=self.hits,
            computed_tokens=prompt - self.hits.total,
            blocks_reused=self.hits.total // self._cache.layout.block_tokens,
            bytes_read=_bytes_read(restored),
            lookup_ms=self._lookup_ms,
            restore_ms=restored["ms"],
            restore_wait_ms=self._waited * 1e3,
            prefill_ms=(first - self._computing) * 1e3,
            ttft_ms=(first - start) * 1e3,
            predicted_ms=predicted["ms"] if predicted is not None else None,
            recomputed=self._recomputed(),
            missed=self._missed(prompt, restored["failure"]),
            not_kept=not_kept,
            resident=self._resident,
            aborted_forwards=self._aborted,
        )

    def _recomputed(self) -> str | None:
        if self._choice is None:
            return None
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

    def _missed(self, prompt: int, failure: str | None) -> str:
        step = max(self._grid, self._cache.layout.block_tokens)
        hit = self.hits.total
        if failure is not None:
            return f"what follows token {hit} was found but could not be read: {failure}"
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
        self.settle()  # what is on its way goes to the buffer that is left behind
        self._buffer = self._cache.lease(tokens + tokens // 4)
        return tensors_over(self._buffer, self._layout)

    def _drain(self) -> None:
        # Rows that are about to be overwritten may still be on their way to L1 or the disk.
        self._buffer.forget()
        try:
            self._cache.flush(DRAIN_SECONDS)
        except StoreClosedError:
            return  # closing has waited for them


# What a request that goes on in place restores.
_NOTHING: Restored = {
    "tokens": (0, 0, 0, 0),
    "l2_bytes": 0,
    "l3_bytes": 0,
    "l4_bytes": 0,
    "l1_ms": 0.0,
    "below_ms": 0.0,
    "ms": 0.0,
    "failure": None,
}


def _bytes_read(restored: Restored) -> int:
    return restored["l2_bytes"] + restored["l3_bytes"] + restored["l4_bytes"]


def _milliseconds_since(moment: float) -> float:
    return (time.perf_counter() - moment) * 1e3
