"""Sessions: a transformers model whose prompts are answered from the prefix cache where they can be."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from kvlab.errors import (
    ConfigError,
    ForkedProcessError,
    KvlabError,
    StoreClosedError,
    UnsupportedRequestError,
)
from kvlab.hf.explain import Explanation, explain
from kvlab.hf.fingerprint import fingerprint, forward_key
from kvlab.hf.live import DRAIN_SECONDS, LiveRequest
from kvlab.hf.output import GenerateOutput, OncePrompted, Prefilled, row
from kvlab.hf.report import Report
from kvlab.hf.stamp import Stamp
from kvlab.hf.stepwise import StepwiseRequest
from kvlab.hf.support import check_model, refuse_request, setting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kvlab._core import Inquiry, KvCodec, PrefetchTicket, PrefixCache, Request
    from kvlab._types import RestoreMode
    from kvlab.hf.cache import PreallocatedCache
    from kvlab.hf.layout import ModelLayout
    from kvlab.near_misses import NearMiss, PromptIndex

_log = logging.getLogger(__name__)
_DEFAULT_NEW_TOKENS = 256


@dataclass(frozen=True)
class _Identity:
    """What the cached bytes depend on, and how to notice that it changed."""

    stamp: Stamp
    fingerprint: bytes
    namespace: bytes
    forward_key: bytes


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """What a session was asked for: the arguments of `attach`, checked.

    Attributes:
        salt: The cache salt.
        chunk_tokens: The chunk grid, in tokens; 0 for none.
        restore: How much of what is found is restored.
        codec: How L3 stores keys and values; None for as they are.
        ttl: Seconds that what is stored lives; None for no limit.
        quota: Bytes of L3 for all sessions of the salt; None for the store's.
        persist: Whether prompts may be written to disk.
    """

    salt: str = ""
    chunk_tokens: int = 0
    restore: RestoreMode = "auto"
    codec: KvCodec | None = None
    ttl: int | None = None
    quota: int | None = None
    persist: bool = True


class Session:
    """Requests of one model over one prefix cache.

    Not for use from several threads at once: fork a session for each.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: PrefixCache,
        layout: ModelLayout,
        options: SessionOptions,
        prompts: PromptIndex | None = None,
    ) -> None:
        """Use `attach`."""
        self.model = model
        self._cache = cache
        self._layout = layout
        self._options = options
        self._prompts = prompts
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
        return self._identify().namespace

    def _identify(self) -> _Identity:
        if self._identity is None or not self._identity.stamp.matches(self.model):
            check_model(self.model)
            stamp = Stamp.take(self.model)
            grid = self._options.chunk_tokens
            live = fingerprint(self.model, self._layout, chunk_tokens=grid)
            self._identity = self._named(stamp, live, forward_key(self.model, self._layout))
        return self._identity

    def _named(self, stamp: Stamp, live: bytes, forward: bytes) -> _Identity:
        """The identity of a model whose fingerprint is known; says what is asked of the tiers under its name."""
        asked = self._options
        digest = hashlib.sha256(b"kvlab session v1")
        for field in (live, self._cache.layout.describe(), asked.salt.encode()):
            digest.update(len(field).to_bytes(8, "little") + field)
        if asked.codec is not None:
            digest.update(b"codec int8")
        namespace = digest.digest()
        self._cache.set_terms(
            namespace,
            salt=asked.salt,
            ttl=asked.ttl,
            quota=asked.quota,
            persist=asked.persist,
            codec=asked.codec,
        )
        return _Identity(stamp, live, namespace, forward)

    def generate(self, input_ids: Tensor | None = None, **kwargs: Any) -> GenerateOutput:
        """Generate as ``model.generate`` does, reusing what is cached of the prompt.

        Prompt and generated tokens are kept, so the next turn reuses both; the last generated token
        was never computed on, and is not. A request that cannot be served from the cache goes to
        ``model.generate`` as it is; the report says why.

        Args:
            input_ids: ``[1, tokens]``, the full prompt, of any integer dtype.
            **kwargs: As for ``model.generate``. If restored bytes turn out damaged while the model
                computes on them, the prompt is computed again before any token is chosen: what
                is given here (streamers, processors, criteria) sees each token once, and torch's
                random numbers are drawn once.

        Returns:
            The sequences, the report, and what ``model.generate`` returned.

        Raises:
            StoreClosedError: The session or its store is closed.
            ForkedProcessError: The store was opened by a parent process.
        """
        self._check_open()
        start = time.perf_counter()
        reason = refuse_request(input_ids, kwargs, self.model.generation_config)
        if input_ids is None or reason is not None:
            return self._plain(input_ids, kwargs, str(reason), start)
        ids = row(input_ids)
        try:
            live = self._open(ids, len(ids) + _new_tokens(self.model, kwargs, len(ids)))
        except (StoreClosedError, ForkedProcessError):
            raise
        except KvlabError as error:
            return self._plain(input_ids, kwargs, str(error), start)

        def first_logits() -> None:
            live.end_forward()
            live.settle()

        clock = _FirstToken(first_logits)
        kwargs["logits_processor"] = clock.before(kwargs.get("logits_processor"))
        if kwargs.get("attention_mask") is None:
            kwargs["attention_mask"] = torch.ones_like(input_ids, dtype=torch.long)
        streamer = kwargs.get("streamer")
        stream = None if streamer is None else OncePrompted(streamer)

        def compute(kv: PreallocatedCache) -> Any:
            self._fill_grid(live, ids, kv)
            if stream is not None:
                kwargs["streamer"] = stream.attempt()
            context = kv.get_seq_length()
            live.begin_forward(len(ids) - context, context)
            return _generate(self.model, input_ids, kwargs | {"past_key_values": kv})

        kv, out = live.run(compute)
        sequences = _sequences(out)
        not_kept = live.try_commit(row(sequences)[: kv.get_seq_length()])
        self._request = live.request
        first = clock.seen or time.perf_counter()
        report = live.report(len(ids), start=start, first=first, not_kept=not_kept)
        return GenerateOutput(sequences, report, out)

    @torch.inference_mode()
    def prefill(
        self, input_ids: Tensor, *, headroom: int = _DEFAULT_NEW_TOKENS, keep: bool = True
    ) -> Prefilled:
        """Restore what is cached of a prompt, compute the rest, and keep it.

        Args:
            input_ids: ``[1, tokens]``, of any integer dtype.
            headroom: Tokens to leave room for behind the prompt; the cache grows beyond by copying.
            keep: Put the prompt into L1 and below. False leaves every tier as it was: for one-off
                prompts and for measuring.

        Returns:
            A cache that holds the whole prompt, the logits of the next token, and the report.

        Raises:
            UnsupportedRequestError: The prompt cannot be served (see `refuse_request`).
            UnsupportedModelError: The model was changed into one that cannot be served.
            ConfigError: The headroom is negative.
            CapacityError: Cache buffers in use leave too little memory.
            StoreClosedError: The session or its store is closed.
            ForkedProcessError: The store was opened by a parent process.
        """
        self._check_open()
        start = time.perf_counter()
        reason = refuse_request(input_ids, {}, None)
        if reason is not None:
            raise UnsupportedRequestError(reason)
        if headroom < 0:
            raise ConfigError(f"headroom must be 0 or more tokens, got {headroom}")
        ids = row(input_ids)
        live = self._open(ids, len(ids) + headroom, keep=keep)

        def compute(kv: PreallocatedCache) -> Tensor:
            self._fill_grid(live, ids, kv)
            return self._forward(live, ids[kv.get_seq_length() :], kv)

        kv, logits = live.run(compute)
        first = time.perf_counter()
        not_kept = live.try_commit(ids) if keep else "the request asked not to keep it"
        if keep:
            self._request = live.request
        report = live.report(len(ids), start=start, first=first, not_kept=not_kept)
        return Prefilled(kv, logits, report, ids.copy(), live)

    def steps(
        self,
        ids: NDArray[np.int64],
        *,
        headroom: int,
        chunk_tokens: int = 512,
        inquiry: Inquiry | None = None,
    ) -> StepwiseRequest:
        """Begin a request whose forwards the caller orders one by one, beside those of other requests.

        The requests under way of one session may be stepped in any order, by one thread.

        Args:
            ids: ``[tokens]``, the whole prompt.
            headroom: Tokens to leave room for behind it; the cache grows beyond by copying.
            chunk_tokens: The most tokens of one forward; with a chunk grid, that is taken.
            inquiry: What L4 said of the prompt (see `PrefixCache.inquire`); without it, it is asked now.

        Raises:
            UnsupportedModelError: The model was changed into one that cannot be served.
            CapacityError: Cache buffers in use leave too little memory.
            InvalidArgumentError: An empty prompt, or a token id that cannot be.
            StoreClosedError: The session or its store is closed.
            ForkedProcessError: The store was opened by a parent process.
        """
        self._check_open()
        live = self._open(ids, len(ids) + headroom, inquiry=inquiry)
        grid = self._options.chunk_tokens
        return StepwiseRequest(self.model, ids, live, chunk_tokens=grid or chunk_tokens, grid=grid)

    def prefetch(self, input_ids: Tensor, *, stop: str | None = None) -> PrefetchTicket:
        """Start pulling what L3 has of a prompt into L2, before the request comes.

        Args:
            input_ids: ``[1, tokens]`` or ``[tokens]``.
            stop: What a request does that meets the prefetch before it is done:
                ``"best_effort"``, ``"timeout"`` or ``"wait_complete"``, as in SGLang's HiCache;
                by default the store's ``prefetch_policy``.

        Returns:
            A ticket with ``progress()``, ``wait(timeout)`` and ``cancel()``. What was loaded stays
            pinned until a request takes it, the ticket is cancelled, or the store's prefetch
            timeout ends.

        Raises:
            ConfigError: an unknown ``stop``.
        """
        self._check_open()
        return self._cache.prefetch(row(input_ids), self.namespace, stop=stop)

    def explain(
        self,
        input_ids: Tensor,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        against: Tensor | None = None,
    ) -> Explanation:
        """Say what is cached of a prompt and where it leaves what is cached; uses nothing.

        A session that was attached with ``prompts`` also says which of them nearly hit.

        Args:
            input_ids: ``[1, tokens]`` or ``[tokens]``.
            tokenizer: For the text of where they part.
            against: A prompt that was expected to begin alike; tells that place to the token.

        Raises:
            InvalidArgumentError: The prompt is empty.
            StoreClosedError: The session or its store is closed.
        """
        self._check_open()
        identity = self._identify()
        return explain(
            self._cache,
            identity.namespace,
            row(input_ids),
            forward_key=identity.forward_key,
            grid=self._options.chunk_tokens,
            tokenizer=tokenizer,
            against=None if against is None else row(against),
            prompts=self._prompts,
        )

    def near_misses(
        self,
        input_ids: Tensor,
        *,
        limit: int = 3,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> list[NearMiss]:
        """Find prompts of this session that share much with a prompt and part from it.

        Args:
            input_ids: ``[1, tokens]`` or ``[tokens]``.
            limit: The most that are given back.
            tokenizer: For the text of where they part.

        Returns:
            Those that lose the most first; see `kvlab.near_misses.PromptIndex.near_misses`.

        Raises:
            ConfigError: The model was attached without ``prompts``.
            InvalidArgumentError: The prompt is empty.
        """
        if self._prompts is None:
            message = "no prompts are remembered; attach the model with prompts=PromptIndex()"
            raise ConfigError(message)
        return self._prompts.near_misses(row(input_ids), limit=limit, tokenizer=tokenizer)

    def fork(self) -> Session:
        """Make a second session that shares this one's blocks; the two go on without touching each other."""
        self._check_open()
        child = Session(self.model, self._cache, self._layout, self._options, self._prompts)
        child._identity = self._identity
        if self._request is not None:
            child._request = self._request.fork(DRAIN_SECONDS)
        return child

    def with_salt(self, salt: str) -> Session:
        """Make a session of the same model and cache under another salt; the model is not read again for it."""
        self._check_open()
        # Who is of another salt may not learn what was asked under this one.
        prompts = None if self._prompts is None else self._prompts.emptied()
        options = replace(self._options, salt=salt)
        other = Session(self.model, self._cache, self._layout, options, prompts)
        identity = self._identify()
        other._identity = other._named(identity.stamp, identity.fingerprint, identity.forward_key)
        return other

    def flush(self, timeout: float = DRAIN_SECONDS) -> None:
        """Wait until everything committed is in L1 and in the tiers that it is written to.

        Raises:
            StoreTimeoutError: It took longer than ``timeout`` seconds.
        """
        self._cache.flush(timeout)

    def close(self) -> None:
        """Give up the blocks that the session holds. What is cached stays."""
        self._closed = True
        self._request = None

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

    def _open(
        self,
        ids: NDArray[np.int64],
        capacity: int,
        *,
        keep: bool = True,
        inquiry: Inquiry | None = None,
    ) -> LiveRequest:
        if self._request is not None:
            # The last turn is on its way to L1: milliseconds, and this one most likely goes on from it.
            self._request.wait_committed(DRAIN_SECONDS)
        identity = self._identify()
        live = LiveRequest(
            self._cache,
            self._layout,
            identity.namespace,
            ids,
            capacity=capacity,
            grid=self._options.chunk_tokens,
            keep=keep,
            restore=self._options.restore,
            forward_key=identity.forward_key,
            inquiry=inquiry,
        )
        if keep and self._prompts is not None:
            self._prompts.add(ids)
        return live

    @torch.inference_mode()
    def _fill_grid(self, live: LiveRequest, ids: NDArray[np.int64], kv: PreallocatedCache) -> None:
        """With a chunk grid, compute all whole chunks but the one that holds the last token."""
        chunk = self._options.chunk_tokens
        if chunk == 0:
            return
        while len(ids) - kv.get_seq_length() > chunk:
            at = kv.get_seq_length()
            self._forward(live, ids[at : at + chunk], kv)
        # Rows behind the grid come out of forwards of other shapes, so their rounding differs from what a cold
        # prefill of a longer prompt would give: they are not kept.
        live.computed_on_grid = kv.get_seq_length()

    def _forward(self, live: LiveRequest, ids: NDArray[np.int64], kv: PreallocatedCache) -> Tensor:
        live.begin_forward(len(ids), kv.get_seq_length())
        out = self.model(
            input_ids=torch.from_numpy(ids).unsqueeze(0),
            past_key_values=kv,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = out.logits
        live.end_forward()
        return logits[:, -1]

    def _plain(
        self, input_ids: Tensor | None, kwargs: dict[str, Any], reason: str, start: float
    ) -> GenerateOutput:
        _log.info("left to plain transformers: %s", reason)
        clock = _FirstToken()
        kwargs["logits_processor"] = clock.before(kwargs.get("logits_processor"))
        out = _generate(self.model, input_ids, kwargs)
        prompt = input_ids.shape[-1] if isinstance(input_ids, torch.Tensor) else 0
        ttft = ((clock.seen or time.perf_counter()) - start) * 1e3
        report = Report(
            prompt,
            computed_tokens=prompt,
            ttft_ms=ttft,
            prefill_ms=ttft,
            missed=reason,
            fallback=reason,
            not_kept=reason,
        )
        return GenerateOutput(_sequences(out), report, out)


class _FirstToken(LogitsProcessor):
    """Notes when the first token's logits are there; changes nothing."""

    def __init__(self, check: Callable[[], None] | None = None) -> None:
        """Call ``check`` before the first token is chosen; what it raises ends the generation."""
        self.seen: float | None = None
        self._check = check

    def before(self, others: list[LogitsProcessor] | None) -> LogitsProcessorList:
        """Make a list of this one and the caller's, whose own list stays as it is."""
        return LogitsProcessorList([self, *(others or [])])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.seen is None:
            if self._check is not None:
                self._check()
            self.seen = time.perf_counter()
        return scores


def _generate(model: Any, input_ids: Tensor | None, kwargs: Mapping[str, Any]) -> Any:
    return model.generate(input_ids, **kwargs)


def _sequences(out: Any) -> Tensor:
    sequences: Tensor = out if isinstance(out, torch.Tensor) else out.sequences
    return sequences


def _new_tokens(model: PreTrainedModel, kwargs: Mapping[str, Any], prompt: int) -> int:
    """How many tokens generate() may add at most, as far as its arguments tell; beyond, the cache grows."""
    new = setting("max_new_tokens", kwargs, model.generation_config)
    if new is not None:
        return int(new)
    length = setting("max_length", kwargs, model.generation_config)
    if length is None:
        return _DEFAULT_NEW_TOKENS
    # Where max_length is transformers' own default it counts new tokens.
    return max(int(length) - prompt, min(int(length), _DEFAULT_NEW_TOKENS))
