"""What goes into the engine and what comes out of it: requests, events, states. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np

from kvlab.errors import ConfigError, InvalidArgumentError, KvlabError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvlab._types import RestoreMode

Source: TypeAlias = Literal["compute", "l1", "l2", "l3", "remote"]
"""Where the KV of a prompt token came from."""
FinishReason: TypeAlias = Literal["stop", "length"]
"""``stop``: an end-of-sequence token or a stop string; ``length``: max_tokens or the context's end."""
Phase: TypeAlias = Literal["waiting", "shared", "prefill", "decode"]
"""``shared``: waiting for another request that computes a prefix that both have."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 for greedy decoding.
        top_p: The smallest set of tokens with this probability is drawn from (nucleus sampling,
            Holtzman et al. 2020), above 0 and at most 1.
        seed: Of the request's own random numbers; None for one that nobody knows. The same seed
            gives the same random numbers whatever runs beside.

    Raises:
        InvalidArgumentError: a value out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0.0 <= self.temperature < float("inf"):
            raise InvalidArgumentError(
                f"temperature = {self.temperature} is not 0 (greedy) or a positive number"
            )
        if not 0.0 < self.top_p <= 1.0:
            raise InvalidArgumentError(f"top_p = {self.top_p} is not above 0 and at most 1")
        if self.seed is not None and not -(1 << 63) <= self.seed < 1 << 64:
            raise InvalidArgumentError(f"seed = {self.seed} does not fit into 64 bits")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0


@dataclass(frozen=True, slots=True, eq=False)
class GenerationRequest:
    """One prompt to be continued.

    Attributes:
        id: Names it in events and states; unique among the requests under way.
        prompt: ``[tokens]`` ids, at least one.
        max_tokens: The most tokens to generate, at least 1.
        sampling: How tokens are chosen.
        stop: Strings that end the answer; they and what follows are not emitted.
        salt: The cache salt: caches under different salts never share anything.
        ignore_eos: Go on behind an end-of-sequence token, for measuring.

    Raises:
        InvalidArgumentError: a value that cannot be.
    """

    id: str
    prompt: NDArray[np.int64]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    salt: str = ""
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        if self.prompt.ndim != 1 or self.prompt.dtype != np.int64:
            raise InvalidArgumentError(
                f"a prompt is a row of int64 token ids, got {self.prompt.dtype} of shape "
                f"{self.prompt.shape}"
            )
        if len(self.prompt) == 0:
            raise InvalidArgumentError("the prompt is empty; give at least one token")
        if self.max_tokens < 1:
            raise InvalidArgumentError(f"max_tokens = {self.max_tokens} is not at least 1")
        if "" in self.stop:
            raise InvalidArgumentError("a stop string is empty; it would end every answer at once")


@dataclass(frozen=True, slots=True)
class TierTokens:
    """Prompt tokens that were not computed, by where they came from."""

    l1: int = 0
    l2: int = 0
    l3: int = 0
    remote: int = 0

    @property
    def total(self) -> int:
        """All sources together."""
        return self.l1 + self.l2 + self.l3 + self.remote


class Span(NamedTuple):
    """The prompt tokens ``start`` to ``end - 1`` have one source."""

    start: int
    end: int
    source: Source


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request.

    Attributes:
        prompt_tokens: Of the prompt.
        completion_tokens: Generated, an end-of-sequence token and those of a stop string included.
        cached: Prompt tokens that were truly restored.
    """

    prompt_tokens: int
    completion_tokens: int
    cached: TierTokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of a request went, in seconds of wall time; others may have run in between.

    Attributes:
        queued_s: From the submission until the prefix was looked up, waiting for a prefix that
            another request computed included.
        prompt_s: From there to the first token: restore and prefill.
        first_token_s: From the submission to the first token.
        predicted_s: From the first token to the last.
        tokens: Generated tokens.
        inter_token_s: Between consecutive tokens, one fewer than there are tokens.
    """

    queued_s: float
    prompt_s: float
    first_token_s: float
    predicted_s: float
    tokens: int
    inter_token_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request has a place and its prefix was looked up; sent once.

    Attributes:
        request_id: The request's.
        cached: Prompt tokens that will be restored if nothing fails, by source.
        prompt_tokens: Of the prompt.
        queued_s: Seconds since the submission.
        spans: The whole prompt, in order, by source.
        deduplicated: Whether it waited for a prefix that another request was computing.
    """

    request_id: str
    cached: TierTokens
    prompt_tokens: int
    queued_s: float
    spans: tuple[Span, ...]
    deduplicated: bool = False


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of the answer.

    Attributes:
        request_id: The request's.
        text: What is new. Never part of a character, and nothing that may still become part of a
            stop string.
        token_ids: All ids generated since the last chunk, of text that is held back too.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete."""

    request_id: str
    reason: FinishReason
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The request was cancelled, by its handle or by the engine's end."""

    request_id: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class Failed:
    """The request cannot be answered, or not further."""

    request_id: str
    error: KvlabError


Event: TypeAlias = Admitted | Chunk | Finished | Cancelled | Failed
"""`Admitted`, then any number of `Chunk`, then exactly one of the others; one that ends before it was
admitted has that last one only."""
Sink: TypeAlias = Callable[[Event], None]
"""Gets the events of a request, in the engine's thread: it must not block. If it raises, the request is
cancelled."""


class Handle(Protocol):
    """A submitted request."""

    @property
    def id(self) -> str:
        """The request's."""

    def cancel(self) -> None:
        """Ask for its end; any thread, any number of times. It takes at most one step of the model."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How the engine works.

    Attributes:
        max_active: The most requests that are prefilled or decoded side by side.
        max_queue: The most requests that wait.
        prefill_chunk: The most prompt tokens in one forward; twice as many of the only request there
            is, if there is no grid.
        block_tokens: Tokens in a block of the cache: a hit is rounded down to whole blocks.
        chunk_tokens: The chunk grid (see `kvlab.hf.attach`), a multiple of ``block_tokens`` and at
            most ``prefill_chunk``; 0 for none.
        restore: How much of what is found is restored (see `kvlab.hf.attach`).
        codec: How L3 stores keys and values (see `kvlab.hf.attach`).
        ttl: After what time what was stored is forgotten (see `kvlab.hf.attach`); None for never.
        max_salts: Sessions of so many cache salts are kept ready; what is cached under others
            stays cached.
        context_tokens: The longest prompt and answer together; None for the model's own.

    Raises:
        ConfigError: a value that cannot be.
    """

    max_active: int = 4
    max_queue: int = 64
    prefill_chunk: int = 512
    block_tokens: int = 16
    chunk_tokens: int = 0
    restore: RestoreMode = "auto"
    codec: Literal["exact", "int8"] = "exact"
    ttl: int | str | None = None
    max_salts: int = 64
    context_tokens: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("max_active", "prefill_chunk", "block_tokens", "max_salts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} is not at least 1")
        if self.max_queue < 0:
            raise ConfigError(f"max_queue = {self.max_queue} is negative; 0 refuses what must wait")
        if not 0 <= self.chunk_tokens <= self.prefill_chunk:
            raise ConfigError(
                f"chunk_tokens = {self.chunk_tokens} is not within 0..{self.prefill_chunk}, "
                "the tokens of one forward; lower it or raise prefill_chunk"
            )
        if self.chunk_tokens % self.block_tokens != 0:
            raise ConfigError(
                f"chunk_tokens = {self.chunk_tokens} is no multiple of block_tokens = "
                f"{self.block_tokens}; use 0 or e.g. {self.block_tokens}"
            )
        if self.context_tokens is not None and self.context_tokens < 2:
            raise ConfigError(f"context_tokens = {self.context_tokens} is not at least 2")


@dataclass(frozen=True, slots=True)
class SequenceState:
    """A request under way, at one moment.

    Attributes:
        id: The request's.
        phase: What it is doing.
        prompt_tokens: Of the prompt.
        computed_tokens: Prompt tokens whose KV is there, restored ones included.
        generated_tokens: Of the answer, so far.
        cached: Prompt tokens restored, by source; zero while it waits.
        spans: The prompt by source, as in `Admitted`; empty while it waits.
        age_s: Seconds since the submission.
    """

    id: str
    phase: Phase
    prompt_tokens: int
    computed_tokens: int
    generated_tokens: int
    cached: TierTokens
    spans: tuple[Span, ...]
    age_s: float


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """Requests and tokens since the engine began.

    Attributes:
        submitted: Requests taken.
        finished: Answered.
        cancelled: Cancelled.
        failed: Failed.
        rejected: Refused at the submission.
        deduplicated: Requests that waited for a prefix that another one computed.
        preempted: Times that an answer had no memory to grow and waited for others to end.
        prompt_tokens: Of admitted requests.
        cached_tokens: Of them: restored.
        generated_tokens: Of all answers.
    """

    submitted: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    rejected: int = 0
    deduplicated: int = 0
    preempted: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EngineState:
    """The engine at one moment.

    Attributes:
        running: Requests that are prefilled or decoded, the oldest first.
        queued: Requests that wait, the oldest first.
        max_active: The most that run.
        max_queue: The most that wait.
        closing: Whether it takes no more requests.
        counters: What it has done.
    """

    running: tuple[SequenceState, ...]
    queued: tuple[SequenceState, ...]
    max_active: int
    max_queue: int
    closing: bool
    counters: EngineCounters

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self.queued)


class EngineObserver(Protocol):
    """Is told what happens, in the engine's thread (`rejected`: in the submitter's); it must not block.

    What it raises is logged and goes no further.
    """

    def admitted(self, event: Admitted, request: GenerationRequest) -> None:
        """A request has a place, and its prefix was looked up."""

    def first_token(self, request_id: str, seconds: float) -> None:
        """The first token was chosen, so many seconds after the submission."""

    def token(self, request_id: str, seconds: float) -> None:
        """A further token was chosen, so many seconds after the one before."""

    def finished(self, event: Finished) -> None:
        """A request was answered."""

    def cancelled(self, event: Cancelled) -> None:
        """A request was cancelled."""

    def failed(self, event: Failed) -> None:
        """A request failed."""

    def rejected(self, reason: str) -> None:
        """A request was not taken: ``queue_full``, ``closing`` or ``prompt_too_long``."""
