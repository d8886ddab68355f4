"""Two tables of results, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kvlab.errors import ConfigError, InvalidArgumentError
from kvlab.sim.experiments.table import METRICS, Row, Value, columns_of, is_metric, is_spread

__all__ = ["Comparison", "Delta", "compare"]

_SAID_ELSEWHERE = {"kind", "origin", "seconds", "events_per_second", "n"}


@dataclass(frozen=True, slots=True)
class Delta:
    """One figure that differs.

    Attributes:
        key: What tells its row from the others.
        metric: Its column.
        before: What it was.
        after: What it is.
        percent: The change in per cent of `before`; None if that was 0.
        worse: Whether it got worse by more than the threshold (True), or better (False), None if neither.
    """

    key: dict[str, Value]
    metric: str
    before: float
    after: float
    percent: float | None
    worse: bool | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two tables differ in.

    Attributes:
        rows: Rows that both have.
        only_before: Keys of rows that only the first has.
        only_after: Keys of rows that only the second has.
        deltas: Figures that differ.
        threshold_percent: What may get worse.
    """

    rows: int
    only_before: list[dict[str, Value]]
    only_after: list[dict[str, Value]]
    deltas: list[Delta]
    threshold_percent: float

    @property
    def regressions(self) -> int:
        """Figures that got worse by more than the threshold."""
        return sum(delta.worse is True for delta in self.deltas)

    def as_dict(self) -> dict[str, Any]:
        """The comparison, ready for JSON."""
        return {
            "rows": self.rows,
            "changed": len(self.deltas),
            "regressions": self.regressions,
            "threshold_percent": self.threshold_percent,
            "only_before": self.only_before,
            "only_after": self.only_after,
            "deltas": [asdict(delta) for delta in self.deltas],
        }


def compare(
    before: Sequence[Row],
    after: Sequence[Row],
    *,
    metrics: Sequence[str] | None = None,
    threshold: float = 1.0,
) -> Comparison:
    """Compares tables of the same kind.

    Rows are the same if all that is no metric is: policy, size, scenario, seed and so on. A figure that
    was 0 and got worse is a regression whatever the threshold.

    Args:
        before: What was.
        after: What is.
        metrics: Columns to look at; None for all that have a better and a worse.
        threshold: Per cent that a figure may get worse.

    Raises:
        ConfigError: a metric is in neither table.
        InvalidArgumentError: no row is in both, or a table has two rows of one key.
    """
    present = [name for name in columns_of([*before, *after]) if is_metric(name)]
    if metrics is None:
        looked_at = [
            name
            for name in present
            if name in METRICS and METRICS[name].higher_is_better is not None
        ]
    else:
        for name in metrics:
            if name not in present:
                raise ConfigError(f"--metrics {name}: use one of: {', '.join(present)}")
        looked_at = list(metrics)
    old, new = _keyed(before, "the first"), _keyed(after, "the second")
    shared = [key for key in old if key in new]
    if not shared:
        raise InvalidArgumentError(
            "the results have no row in common: compare runs of the same traces, policies and sizes"
        )
    deltas = []
    for key in shared:
        for name in looked_at:
            was, is_ = old[key].get(name), new[key].get(name)
            if isinstance(was, int | float) and isinstance(is_, int | float) and was != is_:
                deltas.append(_delta(dict(key), name, float(was), float(is_), threshold))
    return Comparison(
        rows=len(shared),
        only_before=[dict(key) for key in old if key not in new],
        only_after=[dict(key) for key in new if key not in old],
        deltas=deltas,
        threshold_percent=threshold,
    )


def _delta(key: dict[str, Value], name: str, was: float, is_: float, threshold: float) -> Delta:
    percent = 100.0 * (is_ - was) / abs(was) if was else None
    known = METRICS.get(name)
    worse: bool | None = None
    if known is not None and known.higher_is_better is not None:
        against = (is_ < was) == known.higher_is_better
        if not against:
            worse = False
        elif percent is None or abs(percent) > threshold:
            worse = True
    return Delta(key, name, was, is_, percent, worse)


def _keyed(rows: Sequence[Row], which: str) -> dict[tuple[tuple[str, Value], ...], Row]:
    keyed: dict[tuple[tuple[str, Value], ...], Row] = {}
    for row in rows:
        chosen = (
            (name, value)
            for name, value in row.items()
            if not (is_metric(name) or is_spread(name) or name in _SAID_ELSEWHERE or value is None)
        )
        key = tuple(sorted(chosen))
        if key in keyed:
            raise InvalidArgumentError(f"{which} results have two rows of {dict(key)}")
        keyed[key] = row
    return keyed
