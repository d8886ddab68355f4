"""One request on its way through the engine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from kvlab.errors import StateError
from kvlab.serve.engine.request import (
    Admitted,
    Chunk,
    FinishReason,
    Phase,
    SequenceState,
    Span,
    TierTokens,
    Timings,
    Usage,
)
from kvlab.serve.engine.sampling import Sampler
from kvlab.serve.engine.text import Detokenizer, StopStrings

if TYPE_CHECKING:
    from collections.abc import Container
    from concurrent.futures import Future

    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from kvlab._core import Inquiry
    from kvlab.hf.report import HitTokens
    from kvlab.hf.stepwise import StepwiseRequest
    from kvlab.serve.engine.request import GenerationRequest, Sink, Source


class Sequence:
    """A request, what was generated for it, and while it runs its KV.

    Attributes:
        request: What was asked.
        sink: Gets its events.
        cancelled: Whether its end was asked for; set by any thread.
        steps: Its KV; None while it waits.
        phase: What it is doing.
        inquiry: What other machines have of the prompt, once that is known; None if nobody is asked.
        deduplicated: Whether it waited for a prefix that another one computed.
        generated: Ids of the answer.
    """

    def __init__(
        self,
        request: GenerationRequest,
        sink: Sink,
        tokenizer: PreTrainedTokenizerBase,
        *,
        end_tokens: Container[int],
        max_new: int,
    ) -> None:
        """Take a request.

        Args:
            request: What was asked.
            sink: Gets its events.
            tokenizer: Of the model.
            end_tokens: Ids that end an answer.
            max_new: The most tokens to generate, as far as the context allows.
        """
        self.request = request
        self.sink = sink
        self.cancelled = False
        self.steps: StepwiseRequest | None = None
        self.inquiry: Future[Inquiry] | None = None
        self.phase: Phase = "waiting"
        self.deduplicated = False
        self.generated: list[int] = []
        self._end_tokens: Container[int] = () if request.ignore_eos else end_tokens
        self._max_new = max_new
        self._sampler = Sampler(request.sampling)
        self._text = Detokenizer(tokenizer)
        self._stops = StopStrings(request.stop)
        self._unsent: list[int] = []
        self._hits = TierTokens()
        self._submitted = time.perf_counter()
        self._admitted: float | None = None
        self._first_token: float | None = None
        self._last_token = 0.0
        self._gaps: list[float] = []

    @property
    def id(self) -> str:
        """The request's."""
        return self.request.id

    @property
    def kv(self) -> StepwiseRequest:
        """Its KV, while it runs.

        Raises:
            StateError: It waits.
        """
        if self.steps is None:
            raise StateError(f"request {self.id} is not running")
        return self.steps

    @property
    def arriving(self) -> bool:
        """Whether it waits for bytes that come over the network."""
        return self.steps is not None and self.steps.arriving

    @property
    def looked_up(self) -> bool:
        """Whether it is known what other machines have of it."""
        return self.inquiry is None or self.inquiry.done()

    @property
    def ids(self) -> NDArray[np.int64]:
        """``[tokens]``: the prompt and what was generated."""
        if not self.generated:
            return self.request.prompt
        return np.concatenate([self.request.prompt, np.asarray(self.generated, dtype=np.int64)])

    @property
    def tokens_left(self) -> int:
        """How many more may be generated."""
        return self._max_new - len(self.generated)

    def admit(self, steps: StepwiseRequest) -> Admitted | None:
        """Begin to run; gives the event of the first time."""
        self.steps = steps
        self.phase = "prefill"
        if self._admitted is not None:
            return None
        self._admitted = time.perf_counter()
        self._hits = _by_tier(steps.hits)
        return Admitted(
            self.id,
            self._hits,
            len(self.request.prompt),
            self._admitted - self._submitted,
            _spans(self._hits, len(self.request.prompt)),
            self.deduplicated,
        )

    def prefilled(self) -> None:
        """Note what was truly restored, once the first chunk is computed."""
        if self.steps is not None and not self.generated:
            self._hits = _by_tier(self.steps.hits)

    def choose(self, logits: Tensor) -> float:
        """Choose the next token; gives the seconds since the submission for the first, else since the last one."""
        token = self._sampler.choose(logits)
        now = time.perf_counter()
        self.phase = "decode"
        self.generated.append(token)
        self._unsent.append(token)
        if self._first_token is None:
            since = now - self._submitted
            self._first_token = now
        else:
            since = now - self._last_token
            self._gaps.append(since)
        self._last_token = now
        return since

    def emit(self) -> tuple[Chunk | None, FinishReason | None]:
        """Give the text that the last token made certain, and why the answer ends with it, if it does."""
        token = self.generated[-1]
        ended = token in self._end_tokens
        last = ended or self.tokens_left <= 0
        text = "" if ended else self._text.push(token)
        if last:
            text += self._text.flush()
        text = self._stops.push(text, last=last)
        reason: FinishReason | None = "length" if last else None
        if ended or self._stops.stopped:
            reason = "stop"
        if not text and reason is None:
            return None, None
        chunk = Chunk(self.id, text, tuple(self._unsent))
        self._unsent.clear()
        return chunk, reason

    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(len(self.request.prompt), len(self.generated), self._hits)

    def timings(self) -> Timings:
        """Where the seconds of an answered request went.

        Raises:
            StateError: It has no token yet.
        """
        if self._admitted is None or self._first_token is None:
            raise StateError(f"request {self.id} has no answer yet")
        return Timings(
            queued_s=self._admitted - self._submitted,
            prompt_s=self._first_token - self._admitted,
            first_token_s=self._first_token - self._submitted,
            predicted_s=self._last_token - self._first_token,
            tokens=len(self.generated),
            inter_token_s=tuple(self._gaps),
        )

    def state(self) -> SequenceState:
        """What it is doing; any thread may ask."""
        steps, prompt = self.steps, len(self.request.prompt)
        began = self._admitted is not None
        return SequenceState(
            id=self.id,
            phase=self.phase,
            prompt_tokens=prompt,
            computed_tokens=0 if steps is None else min(steps.rows, prompt),
            generated_tokens=len(self.generated),
            cached=self._hits,
            spans=_spans(self._hits, prompt) if began else (),
            age_s=time.perf_counter() - self._submitted,
        )


def _by_tier(hits: HitTokens) -> TierTokens:
    return TierTokens(l1=hits.l1, l2=hits.l2, l3=hits.l3, remote=hits.l4)


def _spans(hits: TierTokens, prompt: int) -> tuple[Span, ...]:
    """A prompt by source, the fast tiers first: what they give up begins at the end of a prefix."""
    parts: list[tuple[Source, int]] = [
        ("l1", hits.l1),
        ("l2", hits.l2),
        ("l3", hits.l3),
        ("remote", hits.remote),
        ("compute", prompt - hits.total),
    ]
    spans, start = [], 0
    for source, tokens in parts:
        if tokens > 0:
            spans.append(Span(start, start + tokens, source))
            start += tokens
    return tuple(spans)
