"""Reports as text, in the blocks of `vllm bench serve`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from kvlab.bench.report import ESTIMATED, Report, headline

__all__ = ["show"]

_WIDTH = 34


def show(reports: Sequence[Report], percentiles: Sequence[float]) -> None:
    """Prints the figures of a run side by side, then by class, and what should be known of them."""
    content = reports[0].content
    kind = content["kind"]
    said = "estimated by a cost model; nothing was measured" if kind == ESTIMATED else kind
    click.echo(f"{content['workload']['name']}, {content['config']['backend']} ({said})")
    columns = [dict(headline(report.content, percentiles)) for report in reports]
    widths = [
        max(len(report.name), *(len(text) for text in column.values()))
        for report, column in zip(reports, columns, strict=True)
    ]
    _line("", [report.name for report in reports], widths)
    for label in columns[0]:
        _line(label, [column[label] for column in columns], widths)
    for report in reports:
        _sources(report)
    _classes(reports)
    for report in reports:
        _check(report)
    _first_mode_ratios(reports)


def _line(label: str, values: Sequence[str], widths: Sequence[int]) -> None:
    cells = "  ".join(value.rjust(width) for value, width in zip(values, widths, strict=True))
    click.echo(f"  {label:<{_WIDTH}}{cells}".rstrip())


def _sources(report: Report) -> None:
    split = report.content["cached_tokens_by_source"]
    absent = report.content["cached_tokens_absent"]
    if split and any(split.values()):
        parts = ", ".join(f"{source} {count:,}" for source, count in split.items() if count)
        click.echo(f"{report.name}: cached tokens by source: {parts}")
    if absent:
        click.echo(
            f"{report.name}: {absent} answers did not say how much of their prompt was cached"
        )
    for kind, count in report.content["errors"].items():
        click.echo(f"{report.name}: {count} requests {kind}")
    found = report.content.get("ideal_reuse")
    if found:
        ratio = report.content["cached_token_ratio"] or 0.0
        click.echo(
            f"{report.name}: reused {100 * ratio:.2f} % of the prompt tokens; a cache without limits "
            f"would have reused {100 * found['ratio']:.2f} %"
        )


def _classes(reports: Sequence[Report]) -> None:
    names = list(reports[0].content["classes"])
    if len(names) < 2:
        return
    for name in names:
        parts = []
        for report in reports:
            part = report.content["classes"].get(name, {})
            ratio = part.get("cached_token_ratio")
            cached = "" if ratio is None else f", {100 * ratio:.0f} % cached"
            parts.append(f"{report.name} {_ms(part.get('median_ttft_ms'))}{cached}")
        click.echo(f"median TTFT of {name}: {'; '.join(parts)}")


def _check(report: Report) -> None:
    found = report.content["cache_check"]
    wrong = found["disagreements"]
    if wrong:
        click.echo(
            f"{report.name}: {len(wrong)} of {found['checked']} claims of cached tokens do not agree with "
            "the time to the first token:"
        )
        for each in wrong[:5]:
            click.echo(
                f"  {each['request']} (round {each['round']}): {each['claim'].replace('_', ' ')}: "
                f"{each['cached_tokens']} of {each['input_tokens']} tokens, took {each['ttft_ms']:.0f} ms; "
                f"a hit {each['hit_ms']:.0f}, a miss {each['miss_ms']:.0f}"
            )
    elif found["checked"] and not report.estimated:
        click.echo(
            f"{report.name}: all {found['checked']} claims of cached tokens that can be told apart agree "
            "with the time to the first token"
        )


def _first_mode_ratios(reports: Sequence[Report]) -> None:
    """How many times sooner the first token comes than in the first mode."""
    if len(reports) < 2:
        return
    base = reports[0]
    for report in reports[1:]:
        parts = []
        for label, old, new in (
            ("all", base.content, report.content),
            *(
                (f"{half} half", base.content["halves"][half], report.content["halves"][half])
                for half in ("first", "second")
            ),
        ):
            ratio = _ratio(old, new)
            if ratio is not None:
                parts.append(f"{label} {ratio:.2f} x")
        if parts:
            click.echo(f"median TTFT of {base.name} / {report.name}: {', '.join(parts)}")


def _ratio(old: Mapping[str, Any], new: Mapping[str, Any]) -> float | None:
    before, after = old.get("median_ttft_ms"), new.get("median_ttft_ms")
    return before / after if before is not None and after else None


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f} ms"
