"""Where the KV of the engine's sequences lives: cache buffers of a store's prefix cache, or plain memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from kvlab.errors import StoreClosedError
from kvlab.hf.attach import attach
from kvlab.hf.cache import PreallocatedCache
from kvlab.hf.layout import read_layout
from kvlab.hf.live import DRAIN_SECONDS
from kvlab.hf.stepwise import StepwiseRequest
from kvlab.hf.support import check_model

if TYPE_CHECKING:
    from concurrent.futures import Future

    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from kvlab._core import Inquiry, Store
    from kvlab.hf.cache import KeyValue
    from kvlab.hf.session import Session
    from kvlab.serve.engine.request import EngineOptions


class KvSource(Protocol):
    """Begins sequences and takes them back. For one thread.

    Attributes:
        step: What is reused is a multiple of so many tokens; 0 if nothing ever is.
    """

    step: int

    def look_up(self, ids: NDArray[np.int64], salt: str) -> Future[Inquiry] | None:
        """Begin to ask what other machines have of a prompt; None if there is nobody to ask. For any thread."""

    def open(
        self, ids: NDArray[np.int64], salt: str, headroom: int, inquiry: Inquiry | None
    ) -> StepwiseRequest:
        """Begin a sequence behind the longest prefix there is, with room for ``headroom`` more tokens.

        Args:
            ids: ``[tokens]``, the prompt.
            salt: The cache salt.
            headroom: Tokens to leave room for behind it.
            inquiry: What `look_up` found.

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

    def close(self) -> None:
        """End what goes on beside the engine; nothing is looked up any more."""


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
        self._naming = threading.Lock()
        # To ask L4 takes as long as its time-out where a server hangs, so it is done beside the engine.
        self._asking: ThreadPoolExecutor | None = None
        if store.stats()["remote"] is not None:
            self._asking = ThreadPoolExecutor(options.max_active, thread_name_prefix="kvlab-ask")
        self._committing: list[StepwiseRequest] = []
        self._retired: list[StepwiseRequest] = []

    def look_up(self, ids: NDArray[np.int64], salt: str) -> Future[Inquiry] | None:
        """See `KvSource`."""
        return None if self._asking is None else self._asking.submit(self._inquire, ids, salt)

    def _inquire(self, ids: NDArray[np.int64], salt: str) -> Inquiry:
        namespace = self._session(salt).namespace
        return self._first.cache.inquire(ids, namespace, grid=self._options.chunk_tokens)

    def open(
        self, ids: NDArray[np.int64], salt: str, headroom: int, inquiry: Inquiry | None
    ) -> StepwiseRequest:
        """See `KvSource`."""
        self.settle()  # the last turn may still be on its way to L1, and this may be the next one
        return self._session(salt).steps(
            ids, headroom=headroom, chunk_tokens=self._options.prefill_chunk, inquiry=inquiry
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

    def close(self) -> None:
        """See `KvSource`."""
        if self._asking is not None:
            self._asking.shutdown(cancel_futures=True)

    def _session(self, salt: str) -> Session:
        if salt == "":
            return self._first
        with self._naming:
            session = self._sessions.get(salt)
            if session is None:
                session = self._sessions[salt] = self._first.with_salt(salt)
                if len(self._sessions) > self._options.max_salts:
                    self._sessions.popitem(last=False)
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

    def look_up(self, ids: NDArray[np.int64], salt: str) -> Future[Inquiry] | None:
        """See `KvSource`."""
        return None

    def open(
        self, ids: NDArray[np.int64], salt: str, headroom: int, inquiry: Inquiry | None
    ) -> StepwiseRequest:
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

    def close(self) -> None:
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
