"""What the benches share: summaries of samples, the machine's load, and how results are printed."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

import kvlab

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH_WITHOUT_TERMINAL = 140


@dataclass(frozen=True)
class Result:
    """One measured figure: its samples summed up, and what it is to be compared with."""

    name: str
    unit: str
    median: float
    min: float
    p90: float
    max: float
    samples: int
    round_medians: tuple[float, ...]
    target: float | None = None
    known: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the target; None without one."""
        return None if self.target is None else self.median <= self.target


@dataclass
class Report:
    """The results of one script, and the machine they come from."""

    title: str
    settings: dict[str, object]
    results: list[Result] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    load_before: tuple[float, float, float] = field(default_factory=os.getloadavg)

    def add(
        self,
        name: str,
        rounds: Sequence[Sequence[float]],
        *,
        unit: str = "us",
        target: float | None = None,
        known: str = "",
    ) -> Result:
        """Sums up the samples of all rounds; the caller has dropped those of the warm-up."""
        ordered = sorted(sample for samples in rounds for sample in samples)
        result = Result(
            name=name,
            unit=unit,
            median=statistics.median(ordered),
            min=ordered[0],
            p90=ordered[min(len(ordered) - 1, len(ordered) * 9 // 10)],
            max=ordered[-1],
            samples=len(ordered),
            round_medians=tuple(statistics.median(samples) for samples in rounds),
            target=target,
            known=known,
        )
        self.results.append(result)
        return result

    def as_json(self) -> str:
        """One object: `title`, `environment`, `settings`, `results`, `remarks`."""
        results = [{**asdict(result), "met": result.met} for result in self.results]
        return json.dumps(
            {
                "title": self.title,
                "environment": self.environment(),
                "settings": self.settings,
                "results": results,
                "remarks": self.remarks,
            },
            indent=2,
        )

    def environment(self) -> dict[str, object]:
        """The machine and the build."""
        return {
            "kvlab": kvlab.build_info(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "load_before": self.load_before,
            "load_after": os.getloadavg(),
        }

    def print(self, *, as_json: bool) -> None:
        """To standard output: JSON, or a table for people."""
        if as_json:
            sys.stdout.write(self.as_json() + "\n")
            return
        terminal = sys.stdout.isatty()
        console = Console(width=None if terminal else WIDTH_WITHOUT_TERMINAL, highlight=False)
        table = Table(title=self.title, title_justify="left")
        table.add_column("what")
        for column in ("median", "of rounds", "min", "p90", "max", "unit", "target"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("known elsewhere *" if any(each.known for each in self.results) else "")
        for result in self.results:
            numbers = (result.median, result.min, result.p90, result.max)
            verdict = "-"
            if result.target is not None:
                verdict = f"<= {result.target:g} {'met' if result.met else 'MISSED'}"
            cells = [f"{number:,.2f}" for number in numbers]
            low, high = min(result.round_medians), max(result.round_medians)
            cells.insert(1, f"{low:,.2f}-{high:,.2f}" if len(result.round_medians) > 1 else "-")
            table.add_row(result.name, *cells, result.unit, verdict, result.known)
        console.print(table)
        before, after = self.load_before[0], os.getloadavg()[0]
        console.print(f"{os.cpu_count()} CPUs, load {before:.1f} before and {after:.1f} after.")
        for remark in self.remarks:
            console.print(remark)
