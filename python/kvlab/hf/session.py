"""Sessions: a transformers model whose prompts are answered from the prefix cache where they can be."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from kvlab._core import KvLayout
from kvlab.errors import CapacityError, ConfigError, StoreClosedError, UnsupportedRequestError
from kvlab.hf.buffers import tensors_over
from kvlab.hf.cache import KeyValue, PreallocatedCache
from kvlab.hf.fingerprint import fingerprint
from kvlab.hf.layout import ModelLayout, read_layout
from kvlab.hf.report import HitTokens, Report
from kvlab.hf.stamp import Stamp
from kvlab.hf.support import check_model, refuse_request

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedModel

    from kvlab._core import CacheBuffer, PrefetchTicket, PrefixCache, Request, Store

_log = logging.getLogger(__name__)
_DEFAULT_NEW_TOKENS = 256
_COMMIT_SECONDS = 60.0


@dataclass(frozen=True)
class GenerateOutput:
    """What `Session.generate` gives back.

    Attributes:
        sequences: ``[1, prompt + new]`` token ids, as ``model.generate`` returns them.
        report: What was reused and what it cost.
    """

    sequences: Tensor
    report: Report


@dataclass
class Prefilled:
    """A prompt's cache, ready for the next forward.

    Attributes:
        cache: Holds all prompt tokens; pass it as ``past_key_values``.
        logits: ``[1, vocabulary]``, of the token after the prompt.
        report: What was reused and what it cost.
    """

    cache: PreallocatedCache
    logits: Tensor
    report: Report
    _live: _Live

    def commit(self, token_ids: Tensor | Sequence[int]) -> None:
        """Keep tokens that were decoded on this cache since, so that the next turn reuses them.

        Args:
            token_ids: ``[tokens]`` or ``[1, tokens]``: the prompt and what followed, as many as the cache has rows for at least.

        Raises:
            InvalidArgumentError: The ids do not begin with the prompt.
        """
        ids = _row(torch.as_tensor(token_ids))
        self._live.commit(ids[: self.cache.get_seq_length()])


@dataclass(frozen=True)
class _Identity:
    """What the cached bytes depend on, and how to notice that it changed."""

    stamp: Stamp
    namespace: bytes


class _Live:
    """One request's cache buffer and hold, shared by the cache that computes in it and the session."""

    def __init__(self, cache: PrefixCache, layout: ModelLayout, request: Request, tokens: int) -> None:
        self.request = request
        self._cache = cache
        self._layout = layout
        self._buffer: CacheBuffer = cache.lease(tokens)

    def restore(self) -> dict[str, Any]:
        return dict(self.request.restore(self._buffer))

    def cache_of(self, length: int) -> PreallocatedCache:
        return PreallocatedCache(
            tensors_over(self._buffer, self._layout),
            length,
            grow=self._grow,
            before_truncate=self._drain,
        )

    def commit(self, ids: NDArray[np.int64]) -> None:
        self.request.commit(ids, self._buffer)

    def _grow(self, tokens: int) -> list[KeyValue]:
        self._buffer = self._cache.lease(tokens + tokens // 4)
        return tensors_over(self._buffer, self._layout)

    def _drain(self) -> None:
        # Rows that are about to be overwritten may still be on their way to L1 or the disk.
        self._cache.flush(_COMMIT_SECONDS)


class Session:
    """Requests of one model over one prefix cache. Not for use from several threads at once; fork a session for each."""

    def __init__(
        self,
        model: PreTrainedModel,
        cache: PrefixCache,
        layout: ModelLayout,
        *,
        salt: str,
        chunk_tokens: int,
    ) -> None:
        """Use `attach`."""
        self.model = model
        self._cache = cache
        self._layout = layout
        self._salt = salt
        self._chunk = chunk_tokens
        self._identity: _Identity | None = None
        self._request: Request | None = None
        self._closed = False

    @property
    def cache(self) -> PrefixCache:
        """The prefix cache below, for its ``stats()``."""
        return self._cache

    @property
    def namespace(self) -> bytes:
        """32 bytes that stand for everything the cached bytes depend on, the salt included.

        Raises:
            UnsupportedModelError: The model was changed into one that cannot be served.
        """
        if self._identity is None or not self._identity.stamp.matches(self.model):
            check_model(self.model)
            stamp = Stamp.take(self.model)
            digest = hashlib.sha256(b"kvlab session v1")
            live = fingerprint(self.model, self._layout, chunk_tokens=self._chunk)
            for field in (live, self._cache.layout.describe(), self._salt.encode()):
                digest.update(len(field).to_bytes(8, "little") + field)
            self._identity = _Identity(stamp, digest.digest())
        return self._identity.namespace

    def generate(self, input_ids: Tensor, **kwargs: Any) -> GenerateOutput:
        """Generate as ``model.generate`` does, reusing what is cached of the prompt.

        Prompt and generated tokens are kept, so the next turn reuses both. A request that cannot be served from the cache goes to
        ``model.generate`` as it is; the report says why.

        Args:
            input_ids: ``[1, tokens]``, the full prompt.
            **kwargs: As for ``model.generate``.

        Returns:
            The sequences and the report.

        Raises:
            StoreClosedError: The session or its store is closed.
        """
        self._check_open()
        start = time.perf_counter()
        reason = refuse_request(input_ids, kwargs, self.model.generation_config)
        if reason is not None:
            return self._plain(input_ids, kwargs, reason, start)
        ids = _row(input_ids)
        try:
            live, kv, parts = self._open(ids, len(ids) + _new_tokens(self.model, kwargs, len(ids)))
        except CapacityError as error:
            return self._plain(input_ids, kwargs, str(error), start)
        try:
            restored = time.perf_counter()
            self._fill_grid(ids, kv)
            kwargs.setdefault("attention_mask", torch.ones_like(input_ids))
            clock = _FirstToken()
            processors = LogitsProcessorList([clock, *(kwargs.pop("logits_processor", None) or [])])
            generate: Any = self.model.generate
            out = generate(
                input_ids, past_key_values=kv, logits_processor=processors, **kwargs
            )
            sequences = out if isinstance(out, torch.Tensor) else out.sequences
            live.commit(_row(sequences)[: kv.get_seq_length()])
        except BaseException:
            live.request.close()
            raise
        self._keep(live.request)
        first = clock.seen or time.perf_counter()
        return GenerateOutput(sequences, _finish(parts, ids, start, restored, first))

    @torch.inference_mode()
    def prefill(
        self, input_ids: Tensor, *, headroom: int = _DEFAULT_NEW_TOKENS, keep: bool = True
    ) -> Prefilled:
        """Restore what is cached of a prompt, compute the rest, and keep it.

        Args:
            input_ids: ``[1, tokens]``.
            headroom: Tokens to leave room for behind the prompt; the cache grows beyond by copying.
            keep: Put the prompt into L1 and below. False leaves every tier as it was: for one-off prompts and for measuring.

        Returns:
            A cache that holds the whole prompt, the logits of the next token, and the report.

        Raises:
            UnsupportedRequestError: The prompt cannot be served (see `refuse_request`).
            CapacityError: Cache buffers in use leave too little memory.
            StoreClosedError: The session or its store is closed.
        """
        self._check_open()
        start = time.perf_counter()
        reason = refuse_request(input_ids, {}, None)
        if reason is not None:
            raise UnsupportedRequestError(reason)
        if headroom < 0:
            raise ConfigError(f"headroom must be 0 or more tokens, got {headroom}")
        ids = _row(input_ids)
        live, kv, parts = self._open(ids, len(ids) + headroom)
        try:
            restored = time.perf_counter()
            self._fill_grid(ids, kv)
            logits = self._forward(ids[kv.get_seq_length() :], kv)
            first = time.perf_counter()
            if keep:
                live.commit(ids)
        except BaseException:
            live.request.close()
            raise
        self._keep(live.request)
        return Prefilled(kv, logits, _finish(parts, ids, start, restored, first), live)

    def prefetch(self, input_ids: Tensor) -> PrefetchTicket:
        """Start pulling what L3 has of a prompt into L2, before the request comes.

        Args:
            input_ids: ``[1, tokens]`` or ``[tokens]``.

        Returns:
            A ticket with ``progress()``, ``wait(timeout)`` and ``cancel()``. What was loaded stays pinned until a request takes it,
            the ticket is cancelled, or the store's prefetch timeout ends.
        """
        self._check_open()
        return self._cache.prefetch(_row(input_ids), self.namespace)

    def fork(self) -> Session:
        """Make a second session that shares this one's blocks; the two go on without touching each other."""
        self._check_open()
        child = Session(self.model, self._cache, self._layout, salt=self._salt, chunk_tokens=self._chunk)
        child._identity = self._identity
        if self._request is not None:
            child._request = self._request.fork(_COMMIT_SECONDS)
        return child

    def flush(self, timeout: float = _COMMIT_SECONDS) -> None:
        """Wait until everything committed is in L1 and in the tiers that it is written to.

        Raises:
            StoreTimeoutError: It took longer than ``timeout`` seconds.
        """
        self._cache.flush(timeout)

    def close(self) -> None:
        """Give up the blocks that the session holds. What is cached stays."""
        self._closed = True
        self._keep(None)

    def __enter__(self) -> Self:
        """Use as a context manager to close at the end."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError("the session is closed; attach the model again")

    def _keep(self, request: Request | None) -> None:
        """Hold on to the last request's blocks, so that a fork can share them."""
        before, self._request = self._request, request
        if before is not None:
            before.close()

    def _open(
        self, ids: NDArray[np.int64], capacity: int
    ) -> tuple[_Live, PreallocatedCache, _Parts]:
        namespace = self.namespace
        begun = time.perf_counter()
        request = self._cache.begin(ids, namespace, grid=self._chunk)
        looked_up = time.perf_counter()
        try:
            live = _Live(self._cache, self._layout, request, capacity)
            leased = time.perf_counter()
            restored = live.restore()
        except BaseException:
            request.close()
            raise
        hits = HitTokens(*restored["tokens"])
        parts = _Parts(
            hits=hits,
            found=sum(request.found),
            block_tokens=self._cache.layout.block_tokens,
            grid=self._chunk,
            bytes_read=restored["l2_bytes"] + restored["l3_bytes"],
            failure=restored["failure"],
            lookup_ms=(looked_up - begun) * 1e3,
            restore_ms=(time.perf_counter() - leased) * 1e3,
        )
        return live, live.cache_of(hits.total), parts

    @torch.inference_mode()
    def _fill_grid(self, ids: NDArray[np.int64], kv: PreallocatedCache) -> None:
        """With a chunk grid, compute all whole chunks but the one that holds the last token."""
        if self._chunk == 0:
            return
        while len(ids) - kv.get_seq_length() > self._chunk:
            at = kv.get_seq_length()
            self._forward(ids[at : at + self._chunk], kv)

    def _forward(self, ids: NDArray[np.int64], kv: PreallocatedCache) -> Tensor:
        out = self.model(
            input_ids=torch.from_numpy(ids).unsqueeze(0),
            past_key_values=kv,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = out.logits
        return logits[:, -1]

    def _plain(self, input_ids: Tensor, kwargs: dict[str, Any], reason: str, start: float) -> GenerateOutput:
        _log.info("left to plain transformers: %s", reason)
        clock = _FirstToken()
        kwargs["logits_processor"] = LogitsProcessorList([clock, *(kwargs.get("logits_processor") or [])])
        generate: Any = self.model.generate
        out = generate(input_ids, **kwargs)
        sequences = out if isinstance(out, torch.Tensor) else out.sequences
        given: object = input_ids  # whatever the caller passed went to transformers as it is
        prompt = given.shape[-1] if isinstance(given, torch.Tensor) else 0
        ttft = ((clock.seen or time.perf_counter()) - start) * 1e3
        report = Report(
            prompt, computed_tokens=prompt, ttft_ms=ttft, prefill_ms=ttft, missed=reason, fallback=reason
        )
        return GenerateOutput(sequences, report)


@dataclass(frozen=True)
class _Parts:
    """What is known of a request before its forward."""

    hits: HitTokens
    found: int
    block_tokens: int
    grid: int
    bytes_read: int
    failure: str | None
    lookup_ms: float
    restore_ms: float

    def missed(self, prompt: int) -> str:
        step = max(self.grid, self.block_tokens)
        usable = (prompt - 1) // step * step
        if self.failure is not None:
            return self.failure
        if self.hits.total >= usable:
            return f"nothing: all whole steps of {step} tokens before the last token were reused"
        if self.hits.total == 0:
            return "no tier has the first block of this prompt under this model and salt"
        return f"no tier has the block after token {self.hits.total}"


def _finish(
    parts: _Parts, ids: NDArray[np.int64], start: float, restored: float, first: float
) -> Report:
    return Report(
        prompt_tokens=len(ids),
        hit_tokens=parts.hits,
        computed_tokens=len(ids) - parts.hits.total,
        blocks_reused=parts.hits.total // parts.block_tokens,
        bytes_read=parts.bytes_read,
        lookup_ms=parts.lookup_ms,
        restore_ms=parts.restore_ms,
        prefill_ms=(first - restored) * 1e3,
        ttft_ms=(first - start) * 1e3,
        missed=parts.missed(len(ids)),
    )


class _FirstToken(LogitsProcessor):
    """Notes when the first token's logits are there; changes nothing."""

    def __init__(self) -> None:
        self.seen: float | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        if self.seen is None:
            self.seen = time.perf_counter()
        return scores


def _row(ids: Tensor) -> NDArray[np.int64]:
    flat = ids[0] if ids.ndim == 2 else ids  # noqa: PLR2004
    return flat.detach().to(torch.long).contiguous().numpy()


def _new_tokens(model: PreTrainedModel, kwargs: dict[str, Any], prompt: int) -> int:
    """How many tokens generate() may add, as far as its arguments tell; the cache grows if they tell too little."""
    for source in (kwargs, vars(kwargs.get("generation_config") or object), vars(model.generation_config)):
        if source.get("max_new_tokens") is not None:
            return int(source["max_new_tokens"])
        if source.get("max_length") is not None:
            return max(int(source["max_length"]) - prompt, 1)
    return _DEFAULT_NEW_TOKENS


def attach(
    model: PreTrainedModel,
    store: Store,
    *,
    salt: str = "",
    block_tokens: int = 16,
    chunk_tokens: int = 0,
    l1: int | str | None = None,
) -> Session:
    """Serve a model's prompts from a store.

    Args:
        model: A decoder-only transformers model on the CPU, in eval mode.
        store: An open store.
        salt: Caches under different salts never share anything.
        block_tokens: Tokens in a block: a hit is rounded down to whole blocks.
        chunk_tokens: Prefill on a grid of so many tokens, a multiple of ``block_tokens`` (512 is a good one). Cold and warm answers
            are then the same bit for bit; prefill takes 7-10 % longer. 0 (default): compute the rest of a prompt in one go.
        l1: The share of the store's L1 memory for this model's layout, half of it for cache buffers. Default: all that is left.

    Returns:
        A session.

    Raises:
        UnsupportedModelError: The model keeps state that cannot be cut at a token; the message says which.
        CapacityError: The store's L1 memory is taken by other layouts.
        ConfigError: An argument that cannot be.
    """
    check_model(model)
    if chunk_tokens < 0 or chunk_tokens % block_tokens != 0:
        raise ConfigError(
            f"chunk_tokens = {chunk_tokens} is no multiple of block_tokens = {block_tokens}; use 0 or e.g. {32 * block_tokens}"
        )
    layout = read_layout(model)
    layers = [(s.k_heads, s.k_dim, s.v_heads, s.v_dim) for s in layout.layers]
    kv_layout = KvLayout(layers, element_bytes=layout.element_bytes, block_tokens=block_tokens)
    cache = store.prefix_cache(kv_layout, l1=l1)
    return Session(model, cache, layout, salt=salt, chunk_tokens=chunk_tokens)
