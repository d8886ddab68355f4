"""Reports of runs: one JSON file a mode, with the requests as lines beside it and the figures as CSV."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvlab._versioned import read_versioned
from kvlab.bench.check import check_claims
from kvlab.bench.metrics import FORMULAS, TIMES, percentile_name, summarise
from kvlab.bench.outcome import SOURCES, Outcome
from kvlab.errors import TraceFormatError
from kvlab.sim.experiments.table import to_csv

__all__ = ["ESTIMATED", "MEASURED", "VERSION", "Report", "Round", "make", "paths", "read", "write"]

VERSION = 1
"""The version of the schema, in the field `kvlab_bench`."""

MEASURED, ESTIMATED = "measured", "estimated"

_SAMPLES = (
    "round", "request", "class", "session", "turn", "half", "status", "sent_ms", "ttft_ms", "tpot_ms",
    "e2el_ms", "queued_ms", "input_tokens", "output_tokens", "cached_tokens", "shared_ratio",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Round:
    """One mode, run once.

    Attributes:
        outcomes: Of every request.
        duration: Seconds.
        restart: Seconds of the restart in the middle; None if there was none.
        most_in_flight: The most requests at once.
        facts: What the caches counted.
    """

    outcomes: tuple[Outcome, ...]
    duration: float
    restart: float | None
    most_in_flight: int
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """What is in a report's file.

    Attributes:
        name: What tables and charts call it: its mode, or more where that is not enough.
        content: The JSON.
    """

    name: str
    content: Mapping[str, Any]

    @property
    def estimated(self) -> bool:
        """Whether its times are estimates."""
        return bool(self.content["kind"] == ESTIMATED)

    def samples(self) -> list[dict[str, Any]]:
        """The requests, as in the JSONL but without gaps between tokens."""
        columns = self.content["samples"]
        names = list(columns)
        return [
            dict(zip(names, values, strict=True))
            for values in zip(*(columns[name] for name in names), strict=True)
        ]


def make(
    rounds: Sequence[Round],
    *,
    mode: str,
    estimated: bool,
    head: Mapping[str, Any],
    percentiles: Sequence[float],
    goodput: Mapping[str, float],
    reference: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The JSON of one mode.

    Args:
        rounds: What was run.
        mode: The mode.
        estimated: Whether times are estimates.
        head: Further fields: workload, config, environment.
        percentiles: Of the times.
        goodput: Limits in milliseconds by name; empty for none.
        reference: Requests of the same run in a mode without a cache, to check claims by.
    """
    outcomes = [outcome for each in rounds for outcome in each.outcomes]
    duration = sum(each.duration for each in rounds)
    rows = [outcome.row() for outcome in outcomes]

    def figures(some: Iterable[Outcome], seconds: float) -> dict[str, Any]:
        return summarise(list(some), seconds, percentiles=percentiles, goodput=goodput)

    classes = dict.fromkeys(outcome.klass for outcome in outcomes)
    restarts = [each.restart for each in rounds if each.restart is not None]
    return {
        "kvlab_bench": VERSION,
        "kind": ESTIMATED if estimated else MEASURED,
        "mode": mode,
        **head,
        "rounds": len(rounds),
        **figures(outcomes, duration),
        "max_concurrent_requests": max(each.most_in_flight for each in rounds),
        "goodput_limits_ms": dict(goodput),
        "restart_seconds": [round(seconds, 4) for seconds in restarts],
        "errors": dict(
            Counter(outcome.error_kind for outcome in outcomes if outcome.status != "ok")
        ),
        "classes": {
            klass: figures((each for each in outcomes if each.klass == klass), duration)
            for klass in classes
        },
        # A half has no duration of its own where requests overlap: its rates are null.
        "halves": {
            half: figures((each for each in outcomes if each.half == half), 0.0)
            for half in ("first", "second")
        },
        "by_round": [figures(each.outcomes, each.duration) for each in rounds],
        "cache_check": check_claims(rows, reference).as_dict(),
        "facts": [each.facts for each in rounds],
        "formulas": dict(FORMULAS),
        "samples": _columns(rows),
    }


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    columns = {name: [row.get(name) for row in rows] for name in _SAMPLES}
    splits = [row.get("cached_tokens_by_source") or {} for row in rows]
    held = [row.get("tier_bytes") or {} for row in rows]
    for source in SOURCES:
        if any(source in split for split in splits):
            columns[f"cached_{source}"] = [split.get(source) for split in splits]
        if any(source in tiers for tiers in held):
            columns[f"held_{source}_bytes"] = [tiers.get(source) for tiers in held]
    return columns


def flat(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures of a report, a row for all requests, each class and each half."""
    rows = []
    parts: list[tuple[str, Mapping[str, Any]]] = [("all", content)]
    parts += [(f"class:{name}", part) for name, part in content["classes"].items()]
    parts += [(f"half:{name}", part) for name, part in content["halves"].items()]
    for name, part in parts:
        row: dict[str, Any] = {
            "kind": content["kind"],
            "backend": content["config"]["backend"],
            "workload": content["workload"]["name"],
            "mode": content["mode"],
            "part": name,
        }
        for key in content["by_round"][0]:
            value = part.get(key)
            if key == "cached_tokens_by_source":
                row.update(
                    {f"cached_tokens_{source}": (value or {}).get(source) for source in SOURCES}
                )
            else:
                row[key] = value
        rows.append(row)
    return rows


def paths(report: Path) -> tuple[Path, Path]:
    """The files beside a report: its requests (JSON lines) and its figures (CSV)."""
    stem = report.name.removesuffix(".json")
    return report.with_name(f"{stem}.requests.jsonl"), report.with_name(f"{stem}.csv")


def write(content: Mapping[str, Any], report: Path) -> None:
    """Writes a report and its CSV; the lines of its requests were written as they came.

    Raises:
        OSError: a file cannot be written.
    """
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(dumps(content), encoding="utf-8", newline="\n")
    paths(report)[1].write_text(to_csv(flat(content)), encoding="utf-8", newline="\n")


def dumps(content: Mapping[str, Any]) -> str:
    """A report's text: a field a line, columns of samples a line each."""
    lines = []
    for key, value in content.items():
        if key in ("samples", "classes", "halves") and value:
            inner = ",\n  ".join(f"{_json(name)}: {_json(part)}" for name, part in value.items())
            text = f"{{\n  {inner}\n }}"
        elif key == "by_round":
            text = "[\n  " + ",\n  ".join(map(_json, value)) + "\n ]"
        else:
            text = _json(value)
        lines.append(f" {_json(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def read(path: Path) -> Report:
    """Reads a report.

    Raises:
        TraceFormatError: it is none; names file and field.
        OSError: it cannot be read.
    """
    content = read_versioned(path, "kvlab_bench", VERSION, "kvlab bench --report", TraceFormatError)
    wanted: dict[str, type] = {
        "kind": str, "mode": str, "workload": dict, "config": dict, "environment": dict, "run": str, "rounds": int,
        "classes": dict, "halves": dict, "by_round": list, "cache_check": dict, "samples": dict,
    }  # fmt: skip
    for field_, kind in wanted.items():
        if not isinstance(content.get(field_), kind):
            raise TraceFormatError(
                f"{path}, {field_}: is {str(content.get(field_))[:60]!r}, expected {kind.__name__}"
            )
    columns = content["samples"]
    if not set(_SAMPLES) <= set(columns) or len({len(column) for column in columns.values()}) != 1:
        raise TraceFormatError(
            f"{path}, samples: are not the columns {', '.join(_SAMPLES)}, all of one length"
        )
    return Report(content["mode"], content)


def labelled(reports: Sequence[tuple[Path, Report]]) -> list[Report]:
    """Reports under names that tell them apart: modes, and file names where modes do not."""
    modes = Counter(report.name for _, report in reports)
    names = [
        report.name
        if modes[report.name] == 1
        else f"{report.name} ({path.name.removesuffix('.json')})"
        for path, report in reports
    ]
    again = Counter(names)
    seen: Counter[str] = Counter()
    out = []
    for name, (_, report) in zip(names, reports, strict=True):
        seen[name] += 1
        out.append(Report(name if again[name] == 1 else f"{name} {seen[name]}", report.content))
    return out


def headline(content: Mapping[str, Any], percentiles: Sequence[float]) -> list[tuple[str, str]]:
    """The block of figures that `vllm bench serve` prints: labels and values."""

    def show(name: str, digits: int = 2) -> str:
        value = content.get(name)
        if value is None:
            return "not known"
        return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"

    lines = [
        ("Successful requests", show("completed")),
        ("Failed requests", show("failed")),
        ("Skipped requests", show("skipped")),
        ("Benchmark duration (s)", show("duration")),
        ("Total input tokens", show("total_input_tokens")),
        ("Total generated tokens", show("total_output_tokens")),
        ("Cached input tokens", show("total_cached_tokens")),
        ("Cached / input tokens", show("cached_token_ratio", 4)),
        ("Request throughput (req/s)", show("request_throughput")),
        ("Output token throughput (tok/s)", show("output_throughput")),
        ("Total token throughput (tok/s)", show("total_token_throughput")),
    ]
    if "request_goodput" in content:
        lines.append(("Request goodput (req/s)", show("request_goodput")))
    for name in TIMES:
        figures = ("mean", "median", *(percentile_name(each) for each in percentiles if each != 50))
        lines.extend(
            (f"{figure.capitalize()} {name.upper()} (ms)", show(f"{figure}_{name}_ms"))
            for figure in figures
        )
    return lines
