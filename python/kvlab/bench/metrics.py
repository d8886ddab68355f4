"""Figures of a run, under the names and in the units of `vllm bench serve`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kvlab.bench.outcome import SOURCES, Outcome, tpot
from kvlab.errors import InvalidArgumentError

__all__ = ["FORMULAS", "TIMES", "parse_goodput", "parse_percentiles", "summarise"]

TIMES = ("ttft", "tpot", "itl", "e2el")
"""The times that are summed up, each as mean, median, standard deviation and percentiles in milliseconds."""

FORMULAS: Mapping[str, str] = {
    "ttft": "first token - sent. Over HTTP: the first piece that carries text, or the end of an empty answer",
    "tpot": "(e2el - ttft) / (output tokens - 1), of answers of at least 2 tokens",
    "itl": "gaps between a request's tokens (over HTTP: between pieces with text), all requests pooled",
    "e2el": "end of the answer - sent",
    "percentiles": "linear between the two nearest ranks, as numpy.percentile; std is that of a population",
    "duration": "first request sent - last one ended, in seconds; restarts in the middle are not counted",
    "request_throughput": "completed / duration",
    "output_throughput": "output tokens / duration",
    "total_token_throughput": "(input tokens + output tokens) / duration",
    "request_goodput": (
        "completed requests that meet every limit of --goodput / duration; tpot counts as 0 for one token"
    ),
    "cached_token_ratio": (
        "cached tokens / input tokens, of requests whose usage has cached_tokens; the others are counted in "
        "cached_tokens_absent and are no zeros"
    ),
}
"""How each figure is made."""

_GOODPUT = ("ttft", "tpot", "e2el")
_PERCENTILE = re.compile(r"\d+(\.\d+)?")


def parse_percentiles(text: str) -> tuple[float, ...]:
    """Reads `50,95,99`.

    Raises:
        InvalidArgumentError: one is no number from 0 to 100.
    """
    found = []
    for part in text.split(","):
        part = part.strip()  # noqa: PLW2901 (the same text, without blanks)
        value = float(part) if _PERCENTILE.fullmatch(part) else math.nan
        if not 0 <= value <= 100:
            raise InvalidArgumentError(
                f"--percentiles {text}: {part!r} is no number from 0 to 100; write 50,95,99"
            )
        found.append(value)
    return tuple(dict.fromkeys(found))


def parse_goodput(texts: Sequence[str]) -> dict[str, float]:
    """Reads limits such as `ttft:500 tpot:50`, in milliseconds, given in one text or in several.

    Raises:
        InvalidArgumentError: one is no pair, of an unknown name, or no time above 0.
    """
    limits: dict[str, float] = {}
    for text in texts:
        for part in text.replace(",", " ").split():
            name, colon, value = part.partition(":")
            number = float(value) if _PERCENTILE.fullmatch(value) else 0.0
            if name not in _GOODPUT or not colon or number <= 0:
                raise InvalidArgumentError(
                    f"--goodput {part}: write NAME:MILLISECONDS with a name of {', '.join(_GOODPUT)}, "
                    "such as ttft:500"
                )
            limits[name] = number
    return limits


def percentile_name(percentile: float) -> str:
    """What a percentile is called: `p99`, `p99.9`."""
    return f"p{percentile:g}"


def summarise(
    outcomes: Sequence[Outcome],
    duration: float,
    *,
    percentiles: Sequence[float] = (50.0, 95.0, 99.0),
    goodput: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The figures of some requests, see `FORMULAS`.

    Args:
        outcomes: The requests.
        duration: Seconds that they took together; 0 gives no throughput.
        percentiles: Which ones, 0 to 100.
        goodput: Limits in milliseconds by name; None or empty for no goodput.

    Returns:
        Counts, rates a second, and milliseconds. None stands for what cannot be said: no request
        completed, or a server did not report it.
    """
    done = [outcome.answer for outcome in outcomes if outcome.answer is not None]
    inputs = _sum([answer.prompt_tokens for answer in done])
    outputs = _sum([answer.output_tokens for answer in done])
    both = None if inputs is None or outputs is None else inputs + outputs
    reported = [answer for answer in done if answer.cached_tokens is not None]
    cached = sum(answer.cached_tokens or 0 for answer in reported)
    of = _sum([answer.prompt_tokens for answer in reported])
    split = [answer.cached_by_source for answer in done if answer.cached_by_source is not None]
    out: dict[str, Any] = {
        "duration": round(duration, 6),
        "completed": len(done),
        "failed": sum(outcome.status == "failed" for outcome in outcomes),
        "skipped": sum(outcome.status == "skipped" for outcome in outcomes),
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": _rate(len(done), duration),
        "output_throughput": _rate(outputs, duration),
        "total_token_throughput": _rate(both, duration),
        "total_cached_tokens": cached if reported else None,
        "cached_tokens_absent": len(done) - len(reported),
        "cached_token_ratio": cached / of if of else None,
        "cached_tokens_by_source": (
            {source: sum(part.get(source, 0) for part in split) for source in SOURCES}
            if split
            else None
        ),
        "shared_ratio_mean": _mean([outcome.shared for outcome in outcomes if outcome.answer]),
    }
    if goodput:
        good = sum(_meets(outcome, goodput) for outcome in outcomes)
        out["request_goodput"] = _rate(good, duration)
        out["good_requests"] = good
    samples = {
        "ttft": [answer.ttft for answer in done],
        "tpot": [value for answer in done if (value := tpot(answer)) is not None],
        "itl": [gap for answer in done for gap in answer.itls],
        "e2el": [answer.e2el for answer in done],
    }
    for name in TIMES:
        out.update(time_figures(name, [1e3 * value for value in samples[name]], percentiles))
    return out


def time_figures(
    name: str, values: Sequence[float], percentiles: Sequence[float]
) -> dict[str, float | None]:
    """Mean, median, standard deviation and percentiles of milliseconds; None where there are no values."""
    figures = {"mean": None, "median": None, "std": None} | dict.fromkeys(
        map(percentile_name, percentiles)
    )
    if values:
        array = np.asarray(values, dtype=np.float64)
        made = (array.mean(), np.median(array), array.std(), *np.percentile(array, percentiles))
        figures = dict(zip(figures, (round(float(value), 4) for value in made), strict=True))
    return {f"{figure}_{name}_ms": value for figure, value in figures.items()}


def _meets(outcome: Outcome, limits: Mapping[str, float]) -> bool:
    answer = outcome.answer
    if answer is None:
        return False
    times = {"ttft": answer.ttft, "tpot": tpot(answer) or 0.0, "e2el": answer.e2el}
    return all(1e3 * times[name] <= limit for name, limit in limits.items())


def _sum(values: Sequence[int | None]) -> int | None:
    """Their sum; None if one is not known, or there are none."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def _rate(count: int | None, duration: float) -> float | None:
    return round(count / duration, 4) if count is not None and duration > 0 else None
