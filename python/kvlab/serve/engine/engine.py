"""The engine: requests from any thread, one thread that owns the model."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from kvlab.errors import (
    CapacityError,
    EngineClosingError,
    GenerationError,
    InvalidArgumentError,
    KvlabError,
    PromptTooLongError,
    QueueFullError,
)
from kvlab.hf.attention import use_chunked_attention
from kvlab.serve.engine.kv import CachedKv, KvSource, PlainKv
from kvlab.serve.engine.request import (
    Cancelled,
    EngineCounters,
    EngineOptions,
    EngineState,
    Failed,
    Finished,
)
from kvlab.serve.engine.scheduler import next_prefill, shared_prefix, worth_waiting
from kvlab.serve.engine.sequence import Sequence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kvlab._core import Store
    from kvlab._types import RecoveryReport
    from kvlab.serve.engine.request import EngineObserver, Event, GenerationRequest, Handle, Sink

_log = logging.getLogger(__name__)
_HEADROOM = 256
"""Tokens of an answer that memory is taken for at first; most answers are shorter than what is allowed."""
_ALONE = 2
"""A chunk of the only request there is has so many times the tokens: every forward reads all weights anew."""


class Engine:
    """Answers requests with one model, a few side by side, from a prefix cache where it can.

    Prompts are computed in chunks and answers token by token, each sequence by itself (so that a
    greedy answer is that of the request alone), all in one thread: one chunk of one prompt, one token
    of each answer, and again.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        store: Store | None,
        options: EngineOptions | None = None,
    ) -> None:
        """Begin; nothing is restored until a request asks for it.

        Args:
            model: A decoder-only model on the CPU, in eval mode; nobody else may use it now. Its
                attention is switched to one that makes chunks cheap (see `kvlab.hf.attention`).
            tokenizer: Of the model.
            store: What is reused comes from here; None to reuse nothing. It stays the caller's, to be
                closed after the engine.
            options: How to work.

        Raises:
            UnsupportedModelError: The model keeps state that cannot be cut at a token.
            CapacityError: The store's L1 is taken by other layouts.
        """
        self.options = options or EngineOptions()
        self._store = store
        self._tokenizer = tokenizer
        use_chunked_attention(model)
        self._kv: KvSource = (
            PlainKv(model, self.options) if store is None else CachedKv(model, store, self.options)
        )
        self._context = self.options.context_tokens or _context_tokens(model)
        self._vocabulary = _vocabulary(model)
        self._end_tokens = _end_tokens(model, tokenizer)
        self._observers: tuple[EngineObserver, ...] = ()
        # Guards what is below; never held over a forward, a wait or a call to a sink.
        self._changed = threading.Condition()
        self._waiting: list[Sequence] = []
        self._active: list[Sequence] = []
        self._counts: Counter[str] = Counter()
        self._closing = False
        self._deadline: float | None = None
        self._turn = 0
        self._thread = threading.Thread(target=self._work, name="kvlab-engine", daemon=True)
        self._thread.start()

    @property
    def context_tokens(self) -> int | None:
        """The longest prompt and answer together; None if the model names none."""
        return self._context

    def submit(self, request: GenerationRequest, sink: Sink) -> Handle:
        """Take a request; its events go to ``sink`` from now on, from the engine's thread.

        Raises:
            QueueFullError: As many wait as may.
            EngineClosingError: The engine takes no more.
            PromptTooLongError: The prompt leaves no room for an answer.
            InvalidArgumentError: A token id that the model does not have.
        """
        prompt = len(request.prompt)
        if self._context is not None and prompt >= self._context:
            self._reject("prompt_too_long")
            raise PromptTooLongError(
                f"the prompt has {prompt} tokens, and prompt and answer together may have "
                f"{self._context}; shorten it to {self._context - 1} at most"
            )
        low, high = int(request.prompt.min()), int(request.prompt.max())
        if low < 0 or high >= self._vocabulary:
            raise InvalidArgumentError(
                f"token id {low if low < 0 else high} is not one of the model's, which are 0 to "
                f"{self._vocabulary - 1}"
            )
        room = request.max_tokens if self._context is None else self._context - prompt
        sequence = Sequence(
            request,
            sink,
            self._tokenizer,
            end_tokens=self._end_tokens,
            max_new=min(request.max_tokens, room),
        )
        refused: KvlabError | None = None
        with self._changed:
            if self._closing:
                refused = EngineClosingError("the engine is closing; it takes no more requests")
            elif self._full():
                refused = QueueFullError(
                    f"{len(self._waiting)} requests wait, and {self.options.max_queue} may; "
                    "try again later"
                )
            else:
                sequence.inquiry = self._kv.look_up(request.prompt, request.salt)
                self._waiting.append(sequence)
                self._counts["submitted"] += 1
                self._changed.notify_all()
        if refused is not None:
            self._reject("closing" if isinstance(refused, EngineClosingError) else "queue_full")
            raise refused
        if sequence.inquiry is not None:
            sequence.inquiry.add_done_callback(lambda _: self._wake())
        return _Handle(sequence, self._wake)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _full(self) -> bool:
        # What has just come stands with those that wait, even if there is a place for it.
        places = self.options.max_queue + self.options.max_active
        return len(self._waiting) + len(self._active) >= places

    def _reject(self, reason: str) -> None:
        with self._changed:
            self._counts["rejected"] += 1
        self._tell(lambda observer: observer.rejected(reason))

    def snapshot(self) -> EngineState:
        """What runs and waits at this moment; cheap, from any thread."""
        with self._changed:
            running, queued = list(self._active), list(self._waiting)
            counters, closing = EngineCounters(**self._counts), self._closing
        return EngineState(
            running=tuple(sequence.state() for sequence in running),
            queued=tuple(sequence.state() for sequence in queued),
            max_active=self.options.max_active,
            max_queue=self.options.max_queue,
            closing=closing,
            counters=counters,
        )

    def add_observer(self, observer: EngineObserver) -> None:
        """Tell ``observer`` what happens from now on."""
        with self._changed:
            self._observers = (*self._observers, observer)

    def recovered(self) -> RecoveryReport | None:
        """What opening the store found on disk; None without L3."""
        return None if self._store is None else self._store.recovery()

    def close(self, drain_s: float = 30.0) -> None:
        """Take no more requests, finish those there are, and write down what was kept.

        Args:
            drain_s: Seconds after which what still runs or waits is cancelled.

        Raises:
            StoreTimeoutError: L3 took longer than a minute to write.
            StoreClosedError: The store was closed before.
        """
        with self._changed:
            first = not self._closing
            self._closing = True
            self._deadline = time.monotonic() + drain_s
            self._changed.notify_all()
        self._thread.join()
        self._kv.close()
        if first and self._store is not None:
            self._store.flush()

    def __enter__(self) -> Self:
        """Use as a context manager to close at the end."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    # From here on: the engine's thread.

    def _work(self) -> None:
        try:
            while self._wait_for_work():
                self._drop_cancelled()
                self._admit()
                self._prefill()
                self._decode()
        except BaseException:
            _log.exception("the engine ends")
            with self._changed:
                self._closing = True
                left = [*self._active, *self._waiting]
            for sequence in left:
                error = GenerationError("the engine ended; its log says why")
                self._end(sequence, Failed(sequence.id, error))
            raise

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to do; False at the end."""
        with self._changed:
            idle = not self._waiting and not self._active
        if idle:
            self._kv.settle()  # nothing stays held while nobody asks
        with self._changed:
            while not self._active and not any(self._moves(s) for s in self._waiting):
                if self._closing and not self._waiting:
                    return False
                left = None
                if self._deadline is not None:
                    left = max(self._deadline - time.monotonic(), 0.0)
                self._changed.wait(left)
        return True

    def _moves(self, sequence: Sequence) -> bool:
        """Whether there is something to be done with one that waits."""
        return sequence.looked_up or sequence.cancelled or self._late()

    def _late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _drop_cancelled(self) -> None:
        with self._changed:
            late = self._late()
            gone = [s for s in (*self._active, *self._waiting) if late or s.cancelled]
            several = len(self._active) > 1
        for sequence in gone:
            if several and sequence.arriving:
                continue  # its buffer is being written to: the others do not wait for that
            self._end(sequence, Cancelled(sequence.id, sequence.usage()))

    def _admit(self) -> None:
        """Give free places to those that wait, the longest first; who waits for a prefix is passed over."""
        with self._changed:
            waiting = list(self._waiting)
        for sequence in waiting:
            if len(self._active) >= self.options.max_active:
                return
            if not sequence.looked_up or self._waits_for_another(sequence):
                continue
            with self._failing(sequence):
                if not self._start(sequence):
                    return

    def _waits_for_another(self, sequence: Sequence) -> bool:
        """Whether another one is computing a prefix that both have, and that is not there yet."""
        for other in self._active if self._kv.step > 0 else ():
            if other.phase != "prefill" or other.request.salt != sequence.request.salt:
                continue
            steps = other.kv
            shared = shared_prefix(sequence.ids, other.ids, self._kv.step)
            if steps.committed < shared <= steps.rows:
                self._kv.keep(steps)
            elif worth_waiting(
                shared,
                restored=steps.hits.total,
                rows=steps.rows,
                prompt=steps.prompt_tokens,
                chunk=self.options.chunk_tokens or self.options.prefill_chunk,
            ):
                sequence.phase = "shared"
                if not sequence.deduplicated:
                    sequence.deduplicated = True
                    self._count(deduplicated=1)
                return True
        sequence.phase = "waiting"
        return False

    def _start(self, sequence: Sequence) -> bool:
        """Look up a prompt's prefix and give it a place; False if there is no memory now."""
        ids = sequence.ids
        headroom = min(sequence.tokens_left, _HEADROOM)
        others = [other.kv for other in self._active]
        if others and not self._kv.fits_beside(len(ids) + headroom, others):
            return False
        try:
            inquiry = None if sequence.inquiry is None else sequence.inquiry.result()
            steps = self._kv.open(ids, sequence.request.salt, headroom, inquiry)
        except CapacityError:
            if others:
                return False
            raise
        event = sequence.admit(steps)
        with self._changed:
            self._waiting.remove(sequence)
            self._active.append(sequence)
        if event is not None:
            self._count(prompt_tokens=event.prompt_tokens, cached_tokens=event.cached.total)
            self._send(sequence, event)
            self._tell(lambda observer: observer.admitted(event, sequence.request))
        return True

    def _prefill(self) -> None:
        """Compute one chunk of one prompt; not of one that waits for the network, where others have something to do."""
        prompts = [s for s in self._active if s.phase == "prefill"]
        if len(self._active) > 1:
            there = [s for s in prompts if not s.arriving]
            if there or len(prompts) < len(self._active):
                prompts = there
        if not prompts:
            return
        left = [s.kv.prompt_tokens - s.kv.rows for s in prompts]
        sequence = prompts[next_prefill(left, self._turn)]
        self._turn += 1
        with self._failing(sequence):
            logits = sequence.kv.advance(self._chunk_tokens())
            sequence.prefilled()
            if logits is not None:
                self._token(sequence, logits)
                if sequence.steps is not None:
                    self._kv.keep(sequence.steps)

    def _chunk_tokens(self) -> int | None:
        """The most tokens of the next chunk, if not as configured: larger where nobody is there to wait for it."""
        with self._changed:
            alone = len(self._active) == 1 and not self._waiting
        return self.options.prefill_chunk * _ALONE if alone else None

    def _decode(self) -> None:
        """Compute one token of each answer."""
        for sequence in [s for s in self._active if s.phase == "decode"]:
            if sequence.cancelled:
                continue
            with self._failing(sequence):
                try:
                    logits = sequence.kv.decode(sequence.generated[-1])
                except CapacityError:
                    self._preempt(sequence)
                    continue
                self._token(sequence, logits)

    def _token(self, sequence: Sequence, logits: Tensor) -> None:
        first = not sequence.generated
        seconds = sequence.choose(logits)
        self._count(generated_tokens=1)
        chunk, reason = sequence.emit()
        if chunk is not None:
            self._send(sequence, chunk)
        if first:
            self._tell(lambda observer: observer.first_token(sequence.id, seconds))
        else:
            self._tell(lambda observer: observer.token(sequence.id, seconds))
        if reason is not None:
            self._end(sequence, Finished(sequence.id, reason, sequence.usage(), sequence.timings()))

    def _preempt(self, sequence: Sequence) -> None:
        """Let one that finds no memory to grow begin again behind what it has, which the cache keeps.

        Growing needs room for both buffers, beginning again for the larger one alone; it comes first
        when there is room beside the others.
        """
        self._kv.retire(sequence.kv)
        sequence.steps = None
        sequence.phase = "waiting"
        with self._changed:
            self._active.remove(sequence)
            self._waiting.insert(0, sequence)
        self._count(preempted=1)

    def _end(self, sequence: Sequence, event: Finished | Cancelled | Failed) -> None:
        """Give back what a request holds, then say so."""
        if sequence.steps is not None:
            self._kv.retire(sequence.steps)
            sequence.steps = None
        with self._changed:
            for place in (self._active, self._waiting):
                if sequence in place:
                    place.remove(sequence)
        match event:
            case Finished():
                self._count(finished=1)
                self._tell(lambda observer: observer.finished(event))
            case Cancelled():
                self._count(cancelled=1)
                self._tell(lambda observer: observer.cancelled(event))
            case Failed():
                self._count(failed=1)
                self._tell(lambda observer: observer.failed(event))
        self._send(sequence, event)

    @contextmanager
    def _failing(self, sequence: Sequence) -> Iterator[None]:
        """End a request with the error that its work raises; others go on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a model can raise anything
            # Nobody is to keep the traceback itself: its frames hold the request's memory.
            if isinstance(error, KvlabError):
                _log.warning("request %s failed: %s", sequence.id, error)
                failure = error.with_traceback(None)
            else:
                text = "".join(traceback.format_exception(error))
                _log.error("request %s failed: %s", sequence.id, text)
                failure = GenerationError(f"{type(error).__name__}: {error}")
            self._end(sequence, Failed(sequence.id, failure))

    def _send(self, sequence: Sequence, event: Event) -> None:
        try:
            sequence.sink(event)
        except Exception:  # noqa: BLE001 - whatever it is, nobody is there to hear the rest
            _log.exception("request %s is cancelled: its sink failed", sequence.id)
            sequence.cancelled = True

    def _tell(self, what: Callable[[EngineObserver], None]) -> None:
        for observer in self._observers:
            try:
                what(observer)
            except Exception:  # noqa: BLE001 - an answer is worth more than what is counted of it
                _log.exception("an observer failed")

    def _count(self, **more: int) -> None:
        with self._changed:
            self._counts.update(more)


class _Handle:
    """See `Handle`."""

    def __init__(self, sequence: Sequence, wake: Callable[[], None]) -> None:
        """Of a submitted request; ``wake`` tells the engine."""
        self._sequence = sequence
        self._wake = wake

    @property
    def id(self) -> str:
        """The request's."""
        return self._sequence.id

    def cancel(self) -> None:
        """See `Handle`."""
        self._sequence.cancelled = True
        self._wake()


def _context_tokens(model: PreTrainedModel) -> int | None:
    config = model.config.get_text_config(decoder=True)
    tokens: int | None = getattr(config, "max_position_embeddings", None)
    return tokens


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    ends: set[int] = set()
    for ids in (getattr(model.generation_config, "eos_token_id", None), tokenizer.eos_token_id):
        if isinstance(ids, int):
            ends.add(ids)
        elif ids is not None:
            ends.update(int(token) for token in ids)
    return frozenset(ends)
