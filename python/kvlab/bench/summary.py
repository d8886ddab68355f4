"""What strategies of caching cost: one table of the reports of a workload, and a page of such tables."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING, Any

from kvlab import _html
from kvlab._versioned import read_versioned
from kvlab.bench.outcome import SOURCES
from kvlab.bench.reading import environment_line
from kvlab.bench.strategies import STRATEGIES
from kvlab.errors import InvalidArgumentError, TraceFormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from kvlab.bench.backend import Mode

__all__ = ["COST_FORMULA", "HEADER", "cells", "page", "read", "summarise"]

VERSION = 1
COST_FORMULA = (
    "machines / tokens a second: seconds of machines; times the price of an hour / 3,600 with --machine-price. "
    "Tokens are those of prompts, cached or not, and of answers"
)
_KEPT = (
    "machines", "completed", "failed", "skipped", "duration", "total_input_tokens", "total_output_tokens",
    "output_throughput", "total_token_throughput", "median_ttft_ms", "p95_ttft_ms", "cached_token_ratio",
    "ideal_reuse", "cache_check",
)  # fmt: skip


def summarise(reports: Mapping[Mode, Mapping[str, Any]], price: float | None) -> dict[str, Any]:
    """The table of one workload.

    Args:
        reports: By strategy; `answers` in them has digests of texts by round and request.
        price: Of a machine for an hour, in money of the reader's; None for none.

    Raises:
        InvalidArgumentError: a price that is none.
    """
    if price is not None and not 0 < price < float("inf"):
        raise InvalidArgumentError(f"--machine-price {price}: give the price of an hour, above 0")
    names = list(reports)
    head = reports[names[0]]
    first = _seconds(head)
    rows: dict[str, Any] = {}
    for name, report in reports.items():
        seconds, total = _seconds(report), report["total_input_tokens"]
        split = report["cached_tokens_by_source"] or {}
        rounds = [value for each in report["by_round"] if (value := _seconds(each, report))]
        answers, equal = report.get("answers"), head.get("answers")
        rows[name] = {
            "about": STRATEGIES[name].about,
            **{field: report.get(field) for field in _KEPT},
            "hit_rates": {source: split.get(source, 0) / total for source in SOURCES} if total else None,
            "bytes_a_round": _moved(report),
            "answers_that_differ": None if answers is None or equal is None else sum(
                equal.get(key) != digest for key, digest in answers.items()
            ),
            "machine_seconds_per_1000_tokens": seconds,
            "machine_seconds_low": min(rounds, default=None),
            "machine_seconds_high": max(rounds, default=None),
            "machine_seconds_per_1000_output_tokens": _seconds(report, name="output_throughput"),
            "cost_of_first": seconds / first if seconds and first else None,
            "cost_per_million_tokens": None if price is None or seconds is None else price / 3.6 * seconds,
        }  # fmt: skip
    return {
        "kvlab_strategies": VERSION,
        "kind": head["kind"],
        "run": head["run"],
        "rounds": head["rounds"],
        "workload": head["workload"],
        "machine_price_an_hour": price,
        "cost": COST_FORMULA,
        "strategies": rows,
        "config": head["config"],
        "environment": head["environment"],
    }


def _seconds(
    figures: Mapping[str, Any],
    report: Mapping[str, Any] | None = None,
    *,
    name: str = "total_token_throughput",
) -> float | None:
    """Seconds of machines for 1,000 tokens."""
    rate, machines = figures[name], (report or figures)["machines"]
    return 1e3 * machines / rate if rate else None


def _moved(report: Mapping[str, Any]) -> dict[str, float]:
    """Bytes between machines and L4, and between memory and disk, in a mean round."""
    moved = dict.fromkeys(("to_l4", "from_l4", "to_disk", "from_disk"), 0)
    for facts in report["facts"]:
        for machine in facts["machines"]:
            store = machine.get("store", {})
            for tier, name in (("remote", "l4"), ("l3", "disk")):
                moved[f"to_{name}"] += store.get(tier, {}).get("write_bytes", 0)
                moved[f"from_{name}"] += store.get(tier, {}).get("read_bytes", 0)
    return {name: count / report["rounds"] for name, count in moved.items()}


def read(path: Path) -> dict[str, Any]:
    """Reads a table.

    Raises:
        TraceFormatError: it is none; names the file.
        OSError: it cannot be read.
    """
    return read_versioned(
        path, "kvlab_strategies", VERSION, "kvlab bench strategies --report", TraceFormatError
    )


HEADER = (
    "strategy", "machines", "tok/s: answers / all", "TTFT p50 / p95, ms", "cached", "L1 / L2 / L4, %",
    "to / from L4, MB", "cost", "of first",
)  # fmt: skip


def cells(summary: Mapping[str, Any]) -> list[list[str]]:
    """The rows of a table as text, under `HEADER`."""
    out = []
    for name, row in summary["strategies"].items():
        rates, moved = row["hit_rates"] or {}, row["bytes_a_round"]
        speeds = (row["output_throughput"], row["total_token_throughput"])
        times = (row["median_ttft_ms"], row["p95_ttft_ms"])
        shares = [None if not rates else 100 * rates[tier] for tier in ("l1", "l2", "remote")]
        out.append(
            [
                name,
                str(row["machines"]),
                f"{_text(speeds[0], ',.1f')} / {_text(speeds[1], ',.0f')}",
                " / ".join(_text(each, ",.0f") for each in times),
                _text(row["cached_token_ratio"], ".1%"),
                " / ".join(_text(each, ".1f") for each in shares),
                " / ".join(f"{moved[way] / 1e6:,.1f}" for way in ("to_l4", "from_l4")),
                _cost(row),
                _text(row["cost_of_first"], ".2f"),
            ]
        )
    return out


def cost_unit(summary: Mapping[str, Any]) -> str:
    """What the column of costs is in."""
    if summary["machine_price_an_hour"] is None:
        return "seconds of machines per 1,000 tokens"
    return f"per million tokens, at {summary['machine_price_an_hour']:g} an hour and machine"


def _cost(row: Mapping[str, Any]) -> str:
    if row["cost_per_million_tokens"] is not None:
        return f"{row['cost_per_million_tokens']:,.3g}"
    return _text(row["machine_seconds_per_1000_tokens"], ",.2f", " s")


def _text(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """What the table says, in words made of its numbers."""
    rows = summary["strategies"]
    base, *others = rows
    out = []
    for name in others:
        row = rows[name]
        if row["cost_of_first"] is None:
            continue
        change = row["cost_of_first"] - 1
        said = f"{abs(change):.0%} {'less' if change < 0 else 'more'} than"
        if not _apart(rows[base], row):
            said = "as much, as far as these rounds can tell, as"
        out.append(
            f"{name}: a token costs {said} with {base}, {_text(row['cached_token_ratio'], '.0%')} of the prompt "
            f"tokens cached, {(row['hit_rates'] or {}).get('remote', 0):.0%} from L4."
        )
    for name, row in rows.items():
        if row["answers_that_differ"]:
            out.append(
                f"{name}: {row['answers_that_differ']} of {row['completed']} answers are not those of {base}."
            )
        if row["failed"] or row["skipped"]:
            out.append(f"{name}: {row['failed']} requests failed, {row['skipped']} were skipped.")
    return out


def _apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the dearest round of either costs less than the cheapest of the other; a single round tells nothing."""
    ends = [(row["machine_seconds_low"], row["machine_seconds_high"]) for row in (one, other)]
    (low, high), (other_low, other_high) = ends
    return bool(low != high and other_low != other_high and (high < other_low or other_high < low))


def page(summaries: Iterable[Mapping[str, Any]], svg: str | None) -> str:
    """One self-contained page of the tables of some workloads."""
    found = list(summaries)
    parts = [
        "<ul>",
        *(
            f"<li>{escape(name)}: {escape(each.about)}</li>"
            for name, each in STRATEGIES.items()
        ),
        "</ul>",
    ]  # fmt: skip
    if svg is not None:
        parts.append(_html.figure("strategies", svg, TITLE, "measured", NOTE))
    for summary in found:
        name = summary["workload"]["name"]
        parts.append(
            f"<h2>{escape(name)}: {summary['workload']['requests']} requests, {summary['rounds']} rounds</h2>"
        )
        parts.append(_html.table(HEADER, cells(summary), [True, *(False for _ in HEADER[1:])]))
        parts.append(f'<p class="soft">Cost: {escape(cost_unit(summary))}.</p><ul>')
        parts.extend(f"<li>{escape(text)}</li>" for text in sentences(summary))
        shown = json.dumps({key: summary[key] for key in ("workload", "config", "run")}, indent=1)
        where = escape(environment_line(summary["environment"]))
        parts.append(
            f"</ul><details><summary>{where}</summary><pre>{escape(shown)}</pre></details>"
        )
    parts.append(f'<p class="soft">Cost is {escape(COST_FORMULA)}.</p>')
    return _html.document("Strategies of caching", "measured", parts)


TITLE = "What a token costs, when the first one comes, and where prompts came from"
NOTE = (
    "Bars of TTFT are medians, lines reach to the 95th percentile; lines on costs are the cheapest and dearest round. "
    "Grey was computed."
)


def draw(summaries: Sequence[Mapping[str, Any]]) -> str | None:
    """Cost, first token and sources of each strategy and workload, as SVG; None without matplotlib."""
    from kvlab.bench.charts import TIERS, svg_of

    def paint(figure: Any) -> bool:
        figure.set_size_inches(9.6, 2.3 * len(summaries) + 0.5)
        axes = figure.subplots(len(summaries), 3, squeeze=False)
        for line, summary in zip(axes, summaries, strict=True):
            rows = summary["strategies"]
            names, places = list(rows), range(len(rows))
            costs = [row["machine_seconds_per_1000_tokens"] or 0.0 for row in rows.values()]
            line[0].barh(places, costs, color="#4c72b0", height=0.6)
            times = [(row["median_ttft_ms"] or 0.0) / 1e3 for row in rows.values()]
            line[1].barh(places, times, color="#dd8452", height=0.6)
            for at, row in enumerate(rows.values()):
                ends = (row["machine_seconds_low"], row["machine_seconds_high"])
                line[0].plot(ends, (at, at), color="#222222", linewidth=0.9)
                high = (row["p95_ttft_ms"] or 0.0) / 1e3
                line[1].plot((times[at], high), (at, at), color="#222222", linewidth=0.9)
            left = [0.0] * len(names)
            for source in (*SOURCES, "compute"):
                widths = [
                    100 * (1 - (row["cached_token_ratio"] or 0.0) if source == "compute"
                           else (row["hit_rates"] or {}).get(source, 0.0))
                    for row in rows.values()
                ]  # fmt: skip
                if any(widths):
                    label = {"remote": "L4", "compute": "computed"}.get(source, source.upper())
                    line[2].barh(
                        places, widths, left=left, color=TIERS[source], label=label, height=0.6
                    )
                left = [before + width for before, width in zip(left, widths, strict=True)]
            for axis, text in zip(line, _AXES, strict=True):
                axis.set_yticks(places, names if axis is line[0] else [""] * len(names))
                axis.invert_yaxis()
                axis.set_xlabel(text)
            line[0].set_ylabel(summary["workload"]["name"])
            line[2].set_xlim(0, 100)
        handles: dict[str, Any] = {}
        for line in axes:
            found, labels = line[2].get_legend_handles_labels()
            handles |= dict(zip(labels, found, strict=True))
        figure.legend(
            list(handles.values()), list(handles), loc="outside upper right", ncols=5, fontsize=8, frameon=False
        )  # fmt: skip
        return True

    return svg_of(paint)


_AXES = ("machine-seconds per 1,000 tokens", "TTFT, s", "% of prompt tokens")
