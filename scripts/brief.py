"""Make the tables of docs/platform-brief.md anew from reports/: `python scripts/brief.py`.

With --check nothing is written; the exit code is 1 if the page has other tables.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from kvlab.bench.report import ESTIMATED, MEASURED, Report, read

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "platform-brief.md"
REPORTS = ROOT / "reports"
MODES = ("generate", "baseline", "prefix_reuse", "cpu_offload", "nvme")
NONE_YET = "There are none in [reports/](../reports) now."


@dataclass
class Experiment:
    """The reports of one configuration.

    Attributes:
        name: Of its file in experiments/.
        reports: By mode.
        samples: The requests that were answered, by mode.
    """

    name: str
    reports: dict[str, Report] = field(default_factory=dict)
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def ttft(self, mode: str, **which: str) -> float | None:
        """The median time to the first token in ms of a class, of a half, or of all."""
        rows = [row for row in self.samples.get(mode, ()) if which.items() <= row.items()]
        times: list[float] = [row["ttft_ms"] for row in rows]
        return median(times) if times else None

    def cached(self, mode: str, **which: str) -> float | None:
        """The part of the prompt tokens that came from the cache; None where nobody says."""
        rows = [row for row in self.samples.get(mode, ()) if which.items() <= row.items()]
        if not rows or any(row["cached_tokens"] is None for row in rows):
            return None
        cached: int = sum(row["cached_tokens"] for row in rows)
        prompts: int = sum(row["input_tokens"] for row in rows)
        return cached / prompts

    def classes(self) -> list[dict[str, str]]:
        """What rows of its table are about: each class, and behind several of them all."""
        names = sorted({row["class"] for rows in self.samples.values() for row in rows})
        return [{"class": name} for name in names] + ([{}] if len(names) > 1 else [])

    def link(self) -> str:
        """Its name, which leads to its options if they are kept."""
        file = ROOT / "experiments" / f"{self.name}.toml"
        return f"[{self.name}](../experiments/{file.name})" if file.exists() else self.name


def experiments(kind: str, folder: Path = REPORTS) -> list[Experiment]:
    """The experiments of a kind, by name."""
    found: dict[str, Experiment] = {}
    for path in sorted(folder.glob("*.json")):
        if "kvlab_bench" not in json.loads(path.read_text(encoding="utf-8")):
            continue
        report = read(path)
        if report.content["kind"] != kind:
            continue
        mode = report.content["mode"]
        name = path.stem.removesuffix(f"-{mode}")
        made = found.setdefault(name, Experiment(name))
        made.reports[mode] = report
        rows = report.samples()
        made.samples[mode] = [row for row in rows if row["ttft_ms"] is not None]
    return list(found.values())


def table(kind: str, folder: Path = REPORTS) -> str:
    """A row for each class of each experiment; times with how many times less than the first column's they are."""
    found = experiments(kind, folder)
    modes = [mode for mode in MODES if any(made.samples.get(mode) for made in found)]
    rows = [line for made in found for line in _rows(made, modes)]
    if not rows:
        return NONE_YET
    head = ["experiment", "class", "requests", *(f"`{mode}`" for mode in modes)]
    head += ["`nvme`, second half", "from cache, `nvme`"]
    line = "| --- | --- |" + " ---: |" * (len(head) - 2)
    return "\n".join(["| " + " | ".join(head) + " |", line, *rows])


def _rows(made: Experiment, modes: list[str]) -> list[str]:
    rows: list[str] = []
    first = next((mode for mode in modes if made.samples.get(mode)), None)
    if first is None:
        return rows
    for which in made.classes():
        requests = sum(1 for row in made.samples[first] if which.items() <= row.items())
        reference = made.ttft(first, **which)
        cells = [made.link(), which.get("class", "*all*"), str(requests)]
        cells += [_time(made.ttft(mode, **which), reference) for mode in modes]
        behind = {**which, "half": "second"}
        cells.append(_time(made.ttft("nvme", **behind), made.ttft(first, **behind)))
        part = made.cached("nvme", **which)
        cells.append("" if part is None else f"{part:.1%}".replace("%", " %"))
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _time(ms: float | None, reference: float | None) -> str:
    if ms is None:
        return ""
    said = f"{ms:,.0f}"
    return said if reference is None or ms == reference else f"{said} ({reference / ms:.3g} x)"


def renewed(text: str, folder: Path = REPORTS) -> str:
    """The page with the tables of the reports.

    Raises:
        ValueError: a mark of the page is missing.
    """
    for kind in (MEASURED, ESTIMATED):
        begin, end = f"<!-- {kind}: begin -->\n", f"<!-- {kind}: end -->"
        head, found, rest = text.partition(begin)
        _, ended, tail = rest.partition(end)
        if not found or not ended:
            raise ValueError(f"{PAGE.name} has no '{begin.strip()}' with '{end}' behind it")
        text = head + begin + table(kind, folder) + "\n" + end + tail
    return text


def main() -> int:
    """Writes the page, or says whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    before = PAGE.read_text(encoding="utf-8")
    after = renewed(before)
    name = PAGE.relative_to(ROOT)
    if before == after:
        print(f"{name}: as it was")
        return 0
    if check:
        print(f"{name}: not what reports/ say; run python scripts/brief.py")
        return 1
    PAGE.write_text(after, encoding="utf-8")
    print(f"{name}: changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
