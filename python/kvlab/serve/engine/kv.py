"""Where the KV of the engine's sequences lives: cache buffers of a store's prefix cache, or plain memory."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

from kvlab.errors import StoreClosedError
from kvlab.hf.attach import attach
from kvlab.hf.cache import PreallocatedCache
from kvlab.hf.layout import read_layout
from kvlab.hf.live import DRAIN_SECONDS
from kvlab.hf.stepwise import StepwiseRequest
from kvlab.hf.support import check_model

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from kvlab._core import Store
    from kvlab.hf.cache import KeyValue
    from kvlab.hf.session import Session
    from kvlab.serve.engine.request import EngineOptions


class KvSource(Protocol):
    """Begins sequences and takes them back. For one thread.

    Attributes:
        step: What is reused is a multiple of so many tokens; 0 if nothing ever is.
    """

    step: int

    def open(self, ids: NDArray[np.int64], salt: str, headroom: int) -> StepwiseRequest:
        """Begin a sequence behind the longest prefix there is, with room for ``headroom`` more tokens.

        Raises:
            CapacityError: There is no memory for it now.
        """

    def keep(self, steps: StepwiseRequest) -> None:
        """Keep what a sequence computed so far, for others to find; it goes on."""

    def retire(self, steps: StepwiseRequest) -> None:
        """Keep what a sequence computed, and take its memory back."""

    def fits_beside(self, tokens: int, others: list[StepwiseRequest]) -> bool:
        """Whether so many tokens are likely to find memory while ``others`` have theirs."""

    def settle(self) -> None:
        """Wait until what was committed can be found."""


class CachedKv:
    """Sequences over the prefix cache of a store, with a session for each salt."""

    def __init__(self, model: PreTrainedModel, store: Store, options: EngineOptions) -> None:
        """Attach the model.

        Raises:
            UnsupportedModelError: Its state cannot be cut at a token.
            CapacityError: The store's L1 is taken by other layouts.
        """
        self.step = options.chunk_tokens or options.block_tokens
        self._options = options
        self._first = attach(
            model,
            store,
            block_tokens=options.block_tokens,
            chunk_tokens=options.chunk_tokens,
            restore=options.restore,
            codec=options.codec,
            ttl=options.ttl,
        )
        _ = self._first.namespace  # hashes the weights: now, and not while the first request waits
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._committing: list[StepwiseRequest] = []
        self._retired: list[StepwiseRequest] = []

    def open(self, ids: NDArray[np.int64], salt: str, headroom: int) -> StepwiseRequest:
        """See `KvSource`."""
        self.settle()  # the last turn may still be on its way to L1, and this may be the next one
        return self._session(salt).steps(
            ids, headroom=headroom, chunk_tokens=self._options.prefill_chunk
        )

    def keep(self, steps: StepwiseRequest) -> None:
        """See `KvSource`."""
        steps.commit()
        self._committing.append(steps)

    def retire(self, steps: StepwiseRequest) -> None:
        """See `KvSource`."""
        steps.commit()
        steps.release()
        self._retired.append(steps)

    def fits_beside(self, tokens: int, others: list[StepwiseRequest]) -> bool:
        """See `KvSource`."""
        cache = self._first.cache
        needed = tokens * cache.layout.token_bytes
        leased = sum(other.buffer_bytes for other in others)
        return leased + needed <= cache.stats()["buffers"]["budget"]

    def settle(self) -> None:
        """See `KvSource`."""
        for steps in (*self._committing, *self._retired):
            try:
                steps.wait_committed(DRAIN_SECONDS)
            except StoreClosedError:
                break  # closing has waited for all of them
        for steps in self._retired:
            steps.close()
        self._committing.clear()
        self._retired.clear()

    def _session(self, salt: str) -> Session:
        if salt == "":
            return self._first
        session = self._sessions.get(salt)
        if session is None:
            session = self._sessions[salt] = self._first.with_salt(salt)
            if len(self._sessions) > self._options.max_salts:
                self._sessions.popitem(last=False)[1].close()
        self._sessions.move_to_end(salt)
        return session


class PlainKv:
    """Sequences in plain memory, from which nothing is reused: the baseline."""

    def __init__(self, model: PreTrainedModel, options: EngineOptions) -> None:
        """Read the model's layout.

        Raises:
            UnsupportedModelError: Its state cannot be cut at a token.
        """
        check_model(model)
        self.step = 0
        self._model = model
        self._options = options
        self._layout = read_layout(model)
        self._idle: list[list[KeyValue]] = []  # touched memory: the first touch is what costs

    def open(self, ids: NDArray[np.int64], salt: str, headroom: int) -> StepwiseRequest:
        """See `KvSource`."""
        cache = PreallocatedCache(self._take(len(ids) + headroom), 0, grow=self._grow)
        options = self._options
        chunk = options.chunk_tokens or options.prefill_chunk
        return StepwiseRequest(
            self._model, ids, cache, chunk_tokens=chunk, grid=options.chunk_tokens
        )

    def keep(self, steps: StepwiseRequest) -> None:
        """See `KvSource`."""

    def retire(self, steps: StepwiseRequest) -> None:
        """See `KvSource`."""
        self._idle.append([layer.buffers for layer in steps.cache.layers])
        self._idle.sort(key=_capacity)
        del self._idle[: -self._options.max_active]
        steps.close()

    def fits_beside(self, tokens: int, others: list[StepwiseRequest]) -> bool:
        """See `KvSource`."""
        return True

    def settle(self) -> None:
        """See `KvSource`."""

    def _take(self, tokens: int) -> list[KeyValue]:
        for index, buffers in enumerate(self._idle):
            if _capacity(buffers) >= tokens:
                return self._idle.pop(index)
        layout = self._layout
        cache = PreallocatedCache.allocate(layout.layers, tokens + tokens // 4, layout.dtype)
        return [layer.buffers for layer in cache.layers]

    def _grow(self, tokens: int) -> list[KeyValue]:
        return self._take(tokens + tokens // 4)


def _capacity(buffers: list[KeyValue]) -> int:
    return int(buffers[0][0].shape[2])
