"""Whether what a cache claims agrees with how long it took: no single signal is trusted.

As cache-pressure and agent-sim do, a request is judged against the middle between what its prompt takes to compute
and what it would take with as much of it cached as is claimed; both come from requests of the same run that were cold.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

__all__ = ["CacheCheck", "Disagreement", "check_claims"]

_COLD_SHARE = 0.05
_FEWEST = 3
_PAIRS = 2000


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A request whose claim and time do not agree.

    Attributes:
        round: Its round.
        request: Its id.
        claim: `hit_but_slow` or `miss_but_fast`.
        cached_tokens: What was claimed.
        input_tokens: Tokens of the prompt.
        ttft_ms: What it took, waiting in line left out where that is known.
        hit_ms: What it would take if the claim were true.
        miss_ms: What it would take to compute all of it.
    """

    round: int
    request: str
    claim: str
    cached_tokens: int
    input_tokens: int
    ttft_ms: float
    hit_ms: float
    miss_ms: float


@dataclass(frozen=True, slots=True)
class CacheCheck:
    """What a check found.

    Attributes:
        basis: What counted as cold, or why nothing could be checked.
        cold: Cold requests that the prediction was made of.
        checked: Requests whose claim could be told from its opposite.
        agreed: Of these, those whose time agrees.
        too_close: Requests where hit and miss would take about as long.
        claims_absent: Requests whose server did not say how much was cached.
        absent_like_hits: Of these, those that took as long as a hit on what they share with earlier prompts.
        disagreements: All that were found.
    """

    basis: str
    cold: int = 0
    checked: int = 0
    agreed: int = 0
    too_close: int = 0
    claims_absent: int = 0
    absent_like_hits: int = 0
    disagreements: tuple[Disagreement, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**asdict(self), "disagreements": [asdict(each) for each in self.disagreements]}


Row = Mapping[str, Any]


def check_claims(rows: Sequence[Row], reference: Sequence[Row] = ()) -> CacheCheck:
    """Checks the claims of a run.

    Args:
        rows: Requests as in the JSONL (see `Outcome.row`).
        reference: Requests of the same run in a mode without any cache: all cold.
    """
    usable = [row for row in rows if row["status"] == "ok" and row["input_tokens"]]
    cold = [row for row in reference if row["status"] == "ok" and row["input_tokens"]]
    basis = "requests of the mode without a cache"
    if len(cold) < _FEWEST:
        cold = [row for row in usable if row["shared_ratio"] < _COLD_SHARE]
        basis = "requests that share no beginning with an earlier one"
    if len(cold) < _FEWEST:
        cold = [row for row in usable if row["cached_tokens"] == 0]
        basis = "requests that claim no hit"
    if len(cold) < _FEWEST:
        return CacheCheck(f"not checked: {len(cold)} cold requests, and {_FEWEST} are needed")
    predict, noise = _predictor(cold)
    known = {id(row) for row in cold}
    counts = dict.fromkeys(
        ("checked", "agreed", "too_close", "claims_absent", "absent_like_hits"), 0
    )
    found: list[Disagreement] = []
    for row in usable:
        tokens, claim = row["input_tokens"], row["cached_tokens"]
        took, miss = _service(row), predict(tokens)
        if claim is None:
            counts["claims_absent"] += 1
        possible = int(row["shared_ratio"] * tokens)
        cached = claim or possible
        hit = predict(tokens - cached)
        if miss - hit <= max(3 * noise, 0.2 * miss):
            counts["too_close"] += id(row) not in known
            continue
        if claim is None:
            counts["absent_like_hits"] += took < (hit + miss) / 2
            continue
        counts["checked"] += 1
        # Much of a prompt may be shared and little of it cached: a miss is doubted only if it was
        # far faster than computing can be.
        wrong = took > (hit + miss) / 2 if claim else took < miss / 2 - 3 * noise
        counts["agreed"] += not wrong
        if wrong:
            found.append(
                Disagreement(
                    row["round"],
                    row["request"],
                    "hit_but_slow" if claim else "miss_but_fast",
                    claim,
                    tokens,
                    round(took, 3),
                    round(hit, 3),
                    round(miss, 3),
                )
            )
    return CacheCheck(basis, cold=len(cold), **counts, disagreements=tuple(found))


def _service(row: Row) -> float:
    return float(row["ttft_ms"]) - float(row["queued_ms"] or 0.0)


def _predictor(cold: Sequence[Row]) -> tuple[Any, float]:
    """Milliseconds to the first token by tokens to compute (a line by Theil and Sen), and how far it is off."""
    points = sorted((float(row["input_tokens"]), _service(row)) for row in cold)
    slopes = []
    if points[-1][0] >= 1.5 * points[0][0]:
        step = max(1, len(points) * (len(points) - 1) // 2 // _PAIRS)
        pairs = list(combinations(points, 2))[::step]
        slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs if b[0] > a[0]]
    slope = max(0.0, statistics.median(slopes)) if slopes else 0.0
    if not slope:  # one length only: in proportion
        slope = statistics.median(took / tokens for tokens, took in points)
    fixed = max(0.0, statistics.median(took - slope * tokens for tokens, took in points))
    noise = statistics.median(abs(took - fixed - slope * tokens) for tokens, took in points)
    return (lambda tokens: fixed + slope * tokens), noise
