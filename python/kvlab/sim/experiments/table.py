"""Results as rows of named values: written, read back, and summed up over seeds."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvlab.errors import TraceFormatError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "METRICS",
    "SIMULATED",
    "SIZED_BY_SEED",
    "Metric",
    "Row",
    "Value",
    "columns_of",
    "is_metric",
    "is_spread",
    "label",
    "packed",
    "read_results",
    "summarise",
    "to_csv",
    "to_json",
]

Value = str | int | float | bool | None
Row = dict[str, Value]

SIMULATED = "simulated"
"""What every table says of its rows: hits and bytes are counted exactly, times come from a model."""


SIZED_BY_SEED = ("seed", "capacity_blocks", "l2_blocks", "l3_blocks")
"""Columns that differ within a mean where sizes are shares of traces that are drawn by a seed."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A column that was counted or estimated, not chosen.

    Attributes:
        label: What a table or an axis calls it.
        higher_is_better: None where neither is.
    """

    label: str
    higher_is_better: bool | None


METRICS: Mapping[str, Metric] = {
    "hit_ratio": Metric("block hit ratio", True),
    "token_hit_ratio": Metric("token hit ratio", True),
    "percent_of_oracle": Metric("% of oracle", True),
    "hit_rate": Metric("hit rate, first tier", True),
    "hits": Metric("hits", True),
    "hit_tokens": Metric("hit tokens", True),
    "oracle_hits": Metric("hits of the oracle", None),
    "recomputed_tokens": Metric("recomputed tokens", False),
    "recomputed_cost": Metric("recomputed cost", False),
    "percent_of_oracle_cost": Metric("oracle's cost, % of its own", True),
    "left_alone_blocks": Metric("found, but computed again", None),
    "misses": Metric("misses", False),
    "cold_misses": Metric("cold misses", None),
    "evictions": Metric("evictions", None),
    "dropped": Metric("dropped pages", None),
    "refused_blocks": Metric("refused blocks", None),
    "peak_blocks": Metric("most blocks held", None),
    "requests": Metric("requests", None),
    "block_refs": Metric("block references", None),
    "unique_blocks": Metric("distinct blocks", None),
    "tokens": Metric("prompt tokens", None),
    "accesses": Metric("accesses", None),
    "mean_latency_ms": Metric("mean latency, ms", False),
    "predicted_saved_percent": Metric("predicted % saved", True),
    "predicted_ttft_mean_ms": Metric("predicted TTFT, mean, ms", False),
    "predicted_ttft_p50_ms": Metric("predicted TTFT p50, ms", False),
    "predicted_ttft_p95_ms": Metric("predicted TTFT p95, ms", False),
    "predicted_ttft_p99_ms": Metric("predicted TTFT p99, ms", False),
    "predicted_ttft_p50_ms_without": Metric("without L4, p50, ms", None),
    "predicted_ttft_p95_ms_without": Metric("without L4, p95, ms", None),
    "faster_p50": Metric("p50 sooner, times", True),
    "left_alone_share": Metric("found, but computed again", None),
    "computed_share": Metric("tokens computed", False),
    "computed_share_without": Metric("tokens computed without L4", None),
    "servers_needed": Metric("servers needed", False),
    "bytes_read": Metric("bytes read", None),
    "bytes_written": Metric("bytes written", None),
    "unshared_share": Metric("not shared, queue full", False),
    "server_out": Metric("servers' links, out", None),
    "server_in": Metric("servers' links, in", None),
    "machine_in": Metric("busiest machine's link, in", None),
    "busy": Metric("machines busy", False),
    "busy_without": Metric("machines busy without L4", None),
    "bytes_moved": Metric("bytes moved", False),
    "demand_bytes": Metric("demand bytes", False),
    "prefetch_bytes": Metric("prefetch bytes", None),
    "prefetches": Metric("prefetches", None),
    "useful_prefetches": Metric("useful prefetches", None),
    "wasted_prefetches": Metric("wasted prefetches", False),
    "useful_prefetch_ratio": Metric("useful prefetch ratio", True),
    "transfer_and_hit_ms": Metric("transfers and hits, ms", False),
    "inserted_bytes": Metric("bytes inserted", None),
    "dropped_bytes": Metric("bytes dropped", None),
    "elapsed_ms": Metric("elapsed, ms", False),
    "queued_ms": Metric("queued, ms", False),
    "late_prefetches": Metric("late prefetches", False),
    "double_residencies": Metric("double residencies", None),
}
"""What is known to be a metric. Columns such as `peak_bytes.host_ram` are, too."""

_PER_TIER = ("tier_hit_rates.", "peak_bytes.", "resident_bytes.")


def is_metric(column: str) -> bool:
    """Whether a column holds what was counted, not what was chosen."""
    return column in METRICS or column.startswith(_PER_TIER)


def is_spread(column: str) -> bool:
    """Whether a column holds the standard deviation of a metric."""
    return column.endswith("_sd") and is_metric(column.removesuffix("_sd"))


def label(column: str) -> str:
    """What a table calls a column."""
    known = METRICS.get(column)
    return known.label if known else column.replace("_", " ").replace(".", ", ")


def columns_of(rows: Iterable[Mapping[str, Value]]) -> list[str]:
    """The columns of all rows, in the order of their first appearance."""
    return list(dict.fromkeys(column for row in rows for column in row))


def to_json(value: object) -> str:
    """JSON of one form only, rows of tables on a line each: the same value gives the same bytes."""
    if not isinstance(value, dict):
        return _compact(value) + "\n"
    parts = [f" {json.dumps(key)}: {_member(inner)}" for key, inner in value.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _member(value: Any) -> str:
    if _is_table(value):
        return _lines(value)
    if _is_packed(value):
        return f'{{"columns": {_compact(value["columns"])}, "rows": {_lines(value["rows"])}}}'
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).replace("\n", "\n ")


def _lines(rows: Sequence[object]) -> str:
    return "[\n  " + ",\n  ".join(map(_compact, rows)) + "\n ]"


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _is_packed(value: object) -> bool:
    return isinstance(value, dict) and value.keys() == {"columns", "rows"}


def packed(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results with each table as `{"columns": [...], "rows": [[...], ...]}`: how they stand in files.

    `read_results` gives the rows back; what a row does not have is null.
    """
    out: dict[str, Any] = {}
    for key, value in results.items():
        if _is_table(value):
            columns = columns_of(value)
            rows = [[row.get(name) for name in columns] for row in value]
            out[key] = {"columns": columns, "rows": rows}
        else:
            out[key] = value
    return out


def _unpacked(where: str, table: Any) -> Any:
    if not _is_packed(table):
        return table
    columns, rows = table["columns"], table["rows"]
    if not isinstance(columns, list) or not isinstance(rows, list):
        raise TraceFormatError(f"{where}: columns and rows are no lists")
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(columns):
            raise TraceFormatError(
                f"{where}, rows[{number}]: is no list of {len(columns)} values, one a column"
            )
    return [dict(zip(columns, row, strict=True)) for row in rows]


def to_csv(rows: Sequence[Mapping[str, Value]]) -> str:
    """CSV with a header and Unix line ends; what a row does not have is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns_of(rows), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_results(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """Reads what a command wrote or printed: the object itself, its tables as lists of rows, and its rows.

    Args:
        path: A results.json, the JSON that a command printed, or the directory of a run or of artifacts.

    Raises:
        TraceFormatError: it is no such file; names what is wrong.
        OSError: it cannot be read.
    """
    file = path / "results.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise TraceFormatError(f"{file}: is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise TraceFormatError(f"{file}: is no object, expected results of kvlab sim")
    content = {key: _unpacked(f"{file}, {key}", value) for key, value in content.items()}
    rows = content.get("rows", [content])
    if not isinstance(rows, list) or not rows:
        raise TraceFormatError(f"{file}, rows: is no list with something in it")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise TraceFormatError(f"{file}, rows[{number}]: is no object")
    scalars = [
        {key: value for key, value in row.items() if not isinstance(value, dict | list)}
        for row in rows
    ]
    if not any(is_metric(column) for column in columns_of(scalars)):
        raise TraceFormatError(f"{file}: has no metric, expected results of kvlab sim")
    return content, scalars


def summarise(rows: Sequence[Row], over: Sequence[str] = ("seed",)) -> list[Row]:
    """Mean and spread of each metric over the rows that differ in some columns only.

    Args:
        rows: Of one experiment.
        over: Which columns may differ. Of those that are numbers, but for the seed, the mean is kept.

    Returns:
        A row a group, in the order of appearance, with `n`, the mean under the metric's name and the
        standard deviation of the sample under `NAME_sd` where `n` is more than 1.
    """
    groups: dict[tuple[Value, ...], list[Row]] = {}
    chosen = [name for name in columns_of(rows) if not is_metric(name) and name not in over]
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in chosen), []).append(row)
    out: list[Row] = []
    for key, members in groups.items():
        summary: Row = {**dict(zip(chosen, key, strict=True)), "n": len(members)}
        for name in columns_of(members):
            if not is_metric(name) and (name not in over or name == "seed"):
                continue
            values = [row[name] for row in members if row.get(name) is not None]
            numbers = [value for value in values if isinstance(value, int | float)]
            if not numbers:
                continue
            summary[name] = numbers[0] if len(members) == 1 else statistics.fmean(numbers)
            if len(numbers) > 1 and is_metric(name):
                spread = statistics.stdev(numbers)
                summary[f"{name}_sd"] = spread if math.isfinite(spread) else None
        out.append(summary)
    return out
