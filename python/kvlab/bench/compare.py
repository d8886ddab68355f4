"""Reports side by side: what changed, how sure that is, and what counts as a regression."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kvlab.bench.report import Report
from kvlab.errors import InvalidArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Comparison", "Delta", "Limit", "compare", "parse_limit"]

_ROUNDS = 3
_RESAMPLES = 1000
_COVERED = (2.5, 97.5)
_TIME = re.compile(r"(mean|median|std|p\d+(?:\.\d+)?)_(ttft|tpot|itl|e2el)_ms")
_HIGHER = (
    "completed", "request_throughput", "output_throughput", "total_token_throughput", "request_goodput",
    "cached_token_ratio",
)  # fmt: skip
_LOWER = ("failed", "skipped", "duration")
_COUNTED = ("completed", "failed", "skipped", "cached_token_ratio")
_IN_PARTS = ("median_ttft_ms", "cached_token_ratio")
_SHOWN = (
    "completed", "failed", "request_throughput", "output_throughput", "total_token_throughput",
    "request_goodput", "cached_token_ratio",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Delta:
    """One figure in two reports.

    Attributes:
        part: `all`, `class:NAME` or `half:NAME`.
        metric: Its name.
        before: In the baseline; None if it is not known.
        after: In the candidate; None if it is not known.
        change: `after - before`.
        percent: The change in per cent of `before`; None if that is 0 or not known.
        low: Where the change in per cent lies with a chance of 95 %, from here
        high: to here; None where there is nothing to tell it from.
        spread: How `low` and `high` were made: `rounds`, `paired bootstrap`, `bootstrap`, or empty.
        better: Whether the change is for the better; None if neither, or if that cannot be told: the spread
            includes no change, or a measured figure has none.
    """

    part: str
    metric: str
    before: float | None
    after: float | None
    change: float | None
    percent: float | None
    low: float | None
    high: float | None
    spread: str
    better: bool | None


@dataclass(frozen=True, slots=True)
class Limit:
    """What a figure may not do, such as `median_ttft_ms>+10%`.

    Attributes:
        text: As it was written.
        part: Which requests.
        metric: The figure.
        above: Whether it fails above the number or below it.
        number: The number.
        relative: Whether the number is a change, not the figure itself.
        percent: Whether the change is in per cent of the baseline.
    """

    text: str
    part: str
    metric: str
    above: bool
    number: float
    relative: bool
    percent: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """A candidate beside its baseline.

    Attributes:
        baseline: Its name.
        candidate: Its name.
        estimated: Whether a time of either is an estimate.
        deltas: Figures of all requests, then of classes and halves.
        broken: Limits that do not hold, each in a sentence.
        notes: What makes the two hard to compare.
    """

    baseline: str
    candidate: str
    estimated: bool
    deltas: tuple[Delta, ...]
    broken: tuple[str, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


_LIMIT = re.compile(
    r"(?:(?P<part>(?:class|half):[^/]+)/)?(?P<metric>[a-z][a-z0-9_.]*)\s*(?P<sign>[<>])\s*"
    r"(?P<relative>[+-])?(?P<number>\d+(?:\.\d+)?)(?P<percent>%)?"
)


def parse_limit(text: str) -> Limit:
    """Reads a limit.

    `median_ttft_ms>+10%` fails if it rose by more than 10 % of the baseline, `failed>0` if any request failed,
    `output_throughput<-5%` if it fell by more than 5 %, `class:chat/p95_ttft_ms>500` above 500 ms in a class.

    Raises:
        InvalidArgumentError: it is none.
    """
    found = _LIMIT.fullmatch(text.strip())
    if found is None or (found["percent"] and not found["relative"]):
        raise InvalidArgumentError(
            f"--fail-on {text}: write METRIC>+10%, METRIC<-5% or METRIC>500, "
            "with class:NAME/ or half:NAME/ before it for a part"
        )
    sign = -1.0 if found["relative"] == "-" else 1.0
    return Limit(
        text=text.strip(),
        part=found["part"] or "all",
        metric=found["metric"],
        above=found["sign"] == ">",
        number=sign * float(found["number"]),
        relative=bool(found["relative"]),
        percent=bool(found["percent"]),
    )


def compare(
    baseline: Report,
    candidate: Report,
    *,
    metrics: Sequence[str] = (),
    limits: Sequence[Limit] = (),
    seed: int = 0,
) -> Comparison:
    """Compares two reports.

    A spread comes from the rounds where both reports have at least 3: the interval of the difference of
    their means by Welch's t, in per cent of the baseline's mean. Otherwise, for times, from a bootstrap of 1,000
    resamples of requests: in pairs where both sent the same requests, else of each by itself.

    Args:
        baseline: What was.
        candidate: What is.
        metrics: Which figures; by default the usual ones, and few of them for classes and halves.
        limits: What may not be.
        seed: Of the bootstrap.

    Raises:
        InvalidArgumentError: a figure that neither report has, or a limit on a figure or part that one lacks.
    """
    chosen = tuple(metrics) or _usual(baseline)
    for name in chosen:
        if name not in baseline.content or name not in candidate.content:
            known = ", ".join(_numbers(baseline.content))
            raise InvalidArgumentError(
                f"--metrics {name}: is not in both reports; there are {known}"
            )
    parts = _parts(baseline.content).keys() & _parts(candidate.content).keys()
    ordered = [part for part in _parts(baseline.content) if part in parts]
    deltas = [
        _delta(baseline, candidate, part, name, seed)
        for part in ordered
        for name in chosen
        if part == "all" or metrics or name in _IN_PARTS
    ]
    return Comparison(
        baseline=baseline.name,
        candidate=candidate.name,
        estimated=baseline.estimated or candidate.estimated,
        deltas=tuple(each for each in deltas if each.before is not None or each.after is not None),
        broken=tuple(
            sentence for limit in limits if (sentence := _breaks(limit, baseline, candidate))
        ),
        notes=_notes(baseline.content, candidate.content),
    )


def _usual(report: Report) -> tuple[str, ...]:
    times = [
        name
        for name in report.content
        if _TIME.fullmatch(name) and not name.startswith(("std_", "p50_"))
    ]
    return (*(name for name in _SHOWN if name in report.content), *times)


def _numbers(content: Mapping[str, Any]) -> list[str]:
    return [
        name
        for name, value in content.items()
        if isinstance(value, int | float) and name not in ("kvlab_bench", "rounds")
    ]


def _parts(content: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {
        "all": content,
        **{f"class:{name}": part for name, part in content["classes"].items()},
        **{f"half:{name}": part for name, part in content["halves"].items()},
    }


def _delta(baseline: Report, candidate: Report, part: str, name: str, seed: int) -> Delta:
    before = _parts(baseline.content)[part].get(name)
    after = _parts(candidate.content)[part].get(name)
    if before is None or after is None:
        return Delta(part, name, before, after, None, None, None, None, "", None)
    percent = 100.0 * (after - before) / abs(before) if before else None
    low, high, spread = _spread(baseline, candidate, part, name, seed)
    better: bool | None = None
    direction = -1 if _TIME.fullmatch(name) or name in _LOWER else 1 if name in _HIGHER else 0
    exact = name in _COUNTED or (baseline.estimated and candidate.estimated)
    unsure = not exact if low is None or high is None else low <= 0 <= high
    if direction and after != before and not unsure:
        better = (after > before) == (direction > 0)
    return Delta(part, name, before, after, after - before, percent, low, high, spread, better)


def _spread(
    baseline: Report, candidate: Report, part: str, name: str, seed: int
) -> tuple[float | None, float | None, str]:
    rounds = [
        [each[name] for each in report.content["by_round"] if each.get(name) is not None]
        for report in (baseline, candidate)
    ]
    if part == "all" and min(map(len, rounds)) >= _ROUNDS:
        low, high = _welch(*rounds)
        return low, high, "rounds"
    time = _TIME.fullmatch(name)
    if time is None or time[2] == "itl":
        return None, None, ""
    statistic = _statistic(time[1])
    column = f"{time[2]}_ms"
    sides = [_values(report, part, column) for report in (baseline, candidate)]
    shared = sides[0].keys() & sides[1].keys()
    if min(map(len, sides)) < _ROUNDS:
        return None, None, ""
    paired = len(shared) == len(sides[0]) == len(sides[1])
    draw = np.random.default_rng(seed)
    keys = sorted(shared)
    old, new = (
        np.array([side[key] for key in (keys if paired else sorted(side))]) for side in sides
    )
    first = draw.integers(len(old), size=(_RESAMPLES, len(old)))
    second = first if paired else draw.integers(len(new), size=(_RESAMPLES, len(new)))
    was, is_ = statistic(old[first]), statistic(new[second])
    changes = 100.0 * (is_ - was)[was > 0] / was[was > 0]
    if not len(changes):
        return None, None, ""
    low, high = (float(edge) for edge in np.percentile(changes, _COVERED))
    return low, high, "paired bootstrap" if paired else "bootstrap"


def _statistic(name: str) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Of each row of `[resamples, requests]`."""
    plain: dict[str, Any] = {"mean": np.mean, "median": np.median, "std": np.std}
    if name in plain:
        return lambda values: np.asarray(plain[name](values, axis=1))
    percentile = float(name[1:])
    return lambda values: np.asarray(np.percentile(values, percentile, axis=1))


def _values(report: Report, part: str, column: str) -> dict[tuple[str, int], float]:
    kind, _, wanted = part.partition(":")
    return {
        (row["request"], row["round"]): row[column]
        for row in report.samples()
        if row[column] is not None and (kind == "all" or row[kind] == wanted)
    }


def _welch(old: Sequence[float], new: Sequence[float]) -> tuple[float | None, float | None]:
    """The interval of the difference of two means, in per cent of the first (Welch, 1947)."""
    mean = statistics.fmean(old)
    if not mean:
        return None, None
    variances = [statistics.variance(values) / len(values) for values in (old, new)]
    change = statistics.fmean(new) - mean
    total = sum(variances)
    if not total:
        return 100.0 * change / abs(mean), 100.0 * change / abs(mean)
    freedom = total**2 / sum(
        variance**2 / (len(values) - 1)
        for variance, values in zip(variances, (old, new), strict=True)
    )
    reach = _student(freedom) * total**0.5
    return 100.0 * (change - reach) / abs(mean), 100.0 * (change + reach) / abs(mean)


# Two-sided 95 % points of Student's t by degrees of freedom.
_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip


def _student(freedom: float) -> float:
    """For a fraction of a degree that of the whole one below it, which is wider."""
    return _STUDENT[min(max(int(freedom), 1), len(_STUDENT)) - 1]


def _breaks(limit: Limit, baseline: Report, candidate: Report) -> str | None:
    values = []
    for report in (baseline, candidate):
        parts = _parts(report.content)
        if limit.part not in parts:
            raise InvalidArgumentError(
                f"--fail-on {limit.text}: {report.name} has no {limit.part}; there are {', '.join(parts)}"
            )
        if limit.metric not in parts[limit.part]:
            known = ", ".join(_numbers(parts[limit.part]))
            raise InvalidArgumentError(
                f"--fail-on {limit.text}: {report.name} has no {limit.metric}; there are {known}"
            )
        values.append(parts[limit.part][limit.metric])
    before, after = values
    if after is None or (limit.relative and before is None):
        return f"{limit.text}: {limit.metric} of {candidate.name if after is None else baseline.name} is not known"
    if not limit.relative:
        figure = after
    elif not limit.percent:
        figure = after - before
    elif before:
        figure = 100.0 * (after - before) / abs(before)
    else:
        figure = 0.0 if after == before else float("inf") if after > before else float("-inf")
    if not (figure > limit.number if limit.above else figure < limit.number):
        return None
    said = f"{before:g} -> {after:g}" if limit.relative else f"{after:g}"
    return f"{limit.text}: {candidate.name} has {said}" + (
        f" ({figure:+.1f} %)" if limit.percent else ""
    )


def _notes(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    notes = []
    if old["workload"].get("sha256") != new["workload"].get("sha256"):
        notes.append(
            f"different workloads: {old['workload'].get('name')} and {new['workload'].get('name')}"
        )
    if old["kind"] != new["kind"]:
        notes.append(f"one is {old['kind']}, the other {new['kind']}")
    if old["run"] != new["run"] and old["kind"] == "measured":
        notes.append("not of one interleaved run: the machine may have changed between them")
    for name in ("concurrency", "rate", "dtype", "model", "threads", "delay_scale"):
        was, is_ = old["config"].get(name), new["config"].get(name)
        if was != is_:
            notes.append(f"{name} differs: {was} and {is_}")
    return tuple(notes)
