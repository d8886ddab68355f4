"""A short reading of reports, in words made of their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kvlab.bench.charts import sources
from kvlab.bench.compare import Delta, compare

if TYPE_CHECKING:
    from kvlab.bench.report import Report

__all__ = ["reading"]


def reading(reports: Sequence[Report]) -> list[str]:
    """Sentences: what each report says next to the first one, by class, after restarts, and what is doubtful."""
    base, *others = reports
    out = [_alone(base)]
    for report in others:
        out.extend(_against(base, report))
    for report in reports:
        out.extend(_reuse(report))
        out.extend(_doubts(report))
    return out


def _alone(report: Report) -> str:
    content = report.content
    kind = "estimates" if report.estimated else "measurements"
    rounds = "one round" if content["rounds"] == 1 else f"{content['rounds']} rounds"
    return (
        f"{report.name}: {content['completed']} requests in {rounds} ({kind}), median TTFT "
        f"{_ms(content.get('median_ttft_ms'))}, 95th percentile {_ms(content.get('p95_ttft_ms'))}, "
        f"{_number(content.get('output_throughput'))} output tokens a second."
    )


def _against(base: Report, report: Report) -> list[str]:
    found = compare(base, report, metrics=("median_ttft_ms",))
    deltas = {delta.part: delta for delta in found.deltas}
    whole = deltas.get("all")
    if whole is None or not whole.before or not whole.after:
        return [f"{report.name}: no time to the first token to compare with {base.name}."]
    sentence = (
        f"{report.name}: the first token comes {_times(whole)} {base.name} "
        f"(median {_ms(whole.after)} against {_ms(whole.before)}"
    )
    sentence += f"; 95 % spread of the change {whole.low:+.0f} to {whole.high:+.0f} %, {whole.spread})." if (
        whole.low is not None
    ) else ")."  # fmt: skip
    out = [sentence]
    classes = [
        delta
        for part, delta in deltas.items()
        if part.startswith("class:") and delta.before and delta.after
    ]
    if len(classes) > 1:
        ordered = sorted(classes, key=lambda delta: (delta.after or 0) / (delta.before or 1))
        best, worst = ordered[0], ordered[-1]
        out.append(
            f"{report.name}: the most is won in {_class(best)} ({_factor(best):.1f} times), the least in "
            f"{_class(worst)} ({_factor(worst):.1f} times)."
        )
    second = deltas.get("half:second")
    if report.content["restart_seconds"] and second and second.before and second.after:
        out.append(
            f"{report.name}: after the restart the first token comes {_times(second)} {base.name} "
            f"({_ms(second.after)} against {_ms(second.before)})."
        )
    out.extend(f"{report.name} beside {base.name}: {note}." for note in found.notes)
    return out


def _reuse(report: Report) -> list[str]:
    content = report.content
    shares = sources(content)
    out = []
    if shares is not None and shares["compute"] < 1:
        parts = ", ".join(
            f"{100 * share:.1f} % from {_TIER_NAMES.get(name, name)}"
            for name, share in shares.items()
            if share and name != "compute"
        )
        out.append(
            f"{report.name}: {100 * (1 - shares['compute']):.1f} % of the prompt tokens were not computed ({parts})."
        )
    ideal = content.get("ideal_reuse")
    if ideal and shares is not None and shares["compute"] < 1:
        behind = 100 * (ideal["ratio"] - (1 - shares["compute"]))
        out.append(
            f"{report.name}: a cache without limits would have reused {100 * ideal['ratio']:.1f} %: "
            f"{abs(behind):.2f} points {'more' if behind > 0 else 'less'}."
        )
    return out


_TIER_NAMES = {
    "l1": "L1",
    "l2": "L2",
    "l3": "L3 on disk",
    "remote": "elsewhere",
    "cached": "a cache",
}


def _doubts(report: Report) -> list[str]:
    content = report.content
    check = content["cache_check"]
    out = []
    if content["failed"] or content["skipped"]:
        out.append(
            f"{report.name}: {content['failed']} requests failed and {content['skipped']} were skipped for it; "
            "they are in no time."
        )
    absent = content["cached_tokens_absent"]
    if absent:
        out.append(
            f"{report.name}: {absent} answers did not say how much was cached, which is not the same as nothing; "
            f"by their times, {check['absent_like_hits']} look like hits."
        )
    if check["disagreements"]:
        out.append(
            f"{report.name}: {len(check['disagreements'])} of {check['checked']} claims of cached tokens do not "
            "agree with the time to the first token; the report's cache_check lists them."
        )
    elif check["checked"] and not report.estimated:
        out.append(
            f"{report.name}: all {check['checked']} claims of cached tokens that can be told apart agree with the "
            f"time to the first token (cold: {check['basis']})."
        )
    return out


def _times(delta: Delta) -> str:
    factor = _factor(delta)
    return (
        f"{factor:.1f} times sooner than in"
        if factor >= 1
        else f"{1 / factor:.1f} times later than in"
    )


def _factor(delta: Delta) -> float:
    return (delta.before or 0.0) / (delta.after or 1.0)


def _class(delta: Delta) -> str:
    return delta.part.removeprefix("class:")


def _ms(value: float | None) -> str:
    return (
        "not known" if value is None else f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms"
    )


def _number(value: Any) -> str:
    return "not known" if value is None else f"{value:,.1f}"


def environment_line(environment: Mapping[str, Any]) -> str:
    """What a run ran on, in a line."""
    libraries = environment.get("libraries", {})
    versions = ", ".join(f"{name} {version}" for name, version in libraries.items() if version)
    memory = environment.get("memory_bytes")
    parts = [
        environment.get("processor") or environment.get("machine"),
        f"{environment.get('processors')} processors",
        f"{memory / 2**30:.0f} GiB" if memory else None,
        f"kvlab {environment.get('kvlab')}",
        f"Python {environment.get('python')}",
        versions,
    ]
    return ", ".join(str(part) for part in parts if part)
