"""What became of one request of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from kvlab.sim.experiments.table import Value

__all__ = ["SOURCES", "Answer", "Outcome", "Status"]

SOURCES = ("l1", "l2", "l3", "remote")
"""Where cached prompt tokens come from."""

Status = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a backend gave for a request. Times are seconds, from the moment the request was sent.

    Attributes:
        text: The answer.
        ttft: Until the first token.
        e2el: Until the answer was complete.
        itls: Gaps between tokens, or between the pieces that a server sent.
        prompt_tokens: Tokens of the prompt; None if the server did not say.
        output_tokens: Tokens of the answer; None if the server did not say.
        cached_tokens: Prompt tokens that came from a cache; None if the server did not say, which is not 0.
        cached_by_source: The same by `SOURCES`; None if the server did not say.
        finish_reason: Why it ended.
        queued: Of `ttft`, what the request waited in line; None where that is not known.
        tier_bytes: KV bytes that each tier held when the answer was complete; None where that is not known.
    """

    text: str
    ttft: float
    e2el: float
    itls: tuple[float, ...] = ()
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cached_by_source: Mapping[str, int] | None = None
    finish_reason: str = ""
    queued: float | None = None
    tier_bytes: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One request of a run.

    Attributes:
        request: Its id in the workload.
        klass: Its class.
        session: Its session.
        turn: Its turn.
        half: "first" or "second": whether it was sent before or behind the middle of the run, where
            a mode restarts.
        status: "skipped" is one that could not be sent because what it goes on from failed.
        sent: Seconds from the start of the round until it was sent; None if it was not.
        answer: What came back, if it is "ok".
        error_kind: What failed, in a word; empty if nothing did.
        error: The same in a sentence.
        shared: The part of the prompt, 0 to 1, that earlier requests of the round had sent already: what a cache
            without limits could have held. By characters, in pieces of 64.
        round: Which round of the run.
    """

    request: str
    klass: str
    session: str
    turn: int
    half: Literal["first", "second"]
    status: Status
    sent: float | None = None
    answer: Answer | None = None
    error_kind: str = ""
    error: str = ""
    shared: float = 0.0
    round: int = field(default=0)

    def row(self) -> dict[str, Value | list[float] | dict[str, int]]:
        """One line of the JSONL: milliseconds and tokens; what is not known is null."""
        out: dict[str, Value | list[float] | dict[str, int]] = {
            "round": self.round,
            "request": self.request,
            "class": self.klass,
            "session": self.session,
            "turn": self.turn,
            "half": self.half,
            "status": self.status,
            "sent_ms": _ms(self.sent),
            "shared_ratio": round(self.shared, 4),
        }
        answer = self.answer
        if answer is None:
            return {**out, "error_kind": self.error_kind, "error": self.error}
        by_source = answer.cached_by_source
        return {
            **out,
            "ttft_ms": _ms(answer.ttft),
            "tpot_ms": _ms(tpot(answer)),
            "e2el_ms": _ms(answer.e2el),
            "queued_ms": _ms(answer.queued),
            "input_tokens": answer.prompt_tokens,
            "output_tokens": answer.output_tokens,
            "cached_tokens": answer.cached_tokens,
            "cached_tokens_by_source": None if by_source is None else dict(by_source),
            "finish_reason": answer.finish_reason,
            "tier_bytes": None if answer.tier_bytes is None else dict(answer.tier_bytes),
            "itls_ms": [round(itl * 1e3, 3) for itl in answer.itls],
        }


def tpot(answer: Answer) -> float | None:
    """Seconds per token of the answer behind the first; None for an answer of one token."""
    if answer.output_tokens is None or answer.output_tokens < 2:
        return None
    return (answer.e2el - answer.ttft) / (answer.output_tokens - 1)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 4)
