"""What a run leaves behind: config, results, plots, a report, and, apart from them, when and on what it ran.

Config and results are the same to the byte when a run is repeated; times and versions stand in
metadata.json. Nothing names the machine, its user or its paths.
"""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

from kvlab import __version__, build_info
from kvlab.errors import TraceFormatError
from kvlab.sim.experiments import html, plots, studies
from kvlab.sim.experiments.table import (
    SIMULATED,
    SIZED_BY_SEED,
    Row,
    packed,
    read_results,
    summarise,
    to_csv,
    to_json,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kvlab.sim.experiments.plots import Figure

__all__ = ["Artifacts", "draw", "environment", "read", "write"]

_LIBRARIES = ("numpy", "matplotlib", "torch", "transformers")


@dataclass(slots=True)
class Artifacts:
    """One experiment, done.

    Attributes:
        title: What it is called in the report.
        config: All that its results depend on, without paths of the machine.
        rows: One a replay.
        figures: What to draw.
        findings: Sentences for the head of the report.
        extra: Further keys of the results.
        seconds: Wall-clock time of the whole.
    """

    title: str
    config: dict[str, Any]
    rows: list[Row]
    figures: list[Figure] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def over(self) -> tuple[str, ...]:
        """The columns that rows of one group differ in: seeds, and what follows from a seed."""
        drawn = self.config.get("command") == "sweep" and len(self.config.get("seeds", [])) > 1
        requests = self.config.get("mode") != "page"
        return SIZED_BY_SEED if drawn and requests else ("seed",)

    def results(self) -> dict[str, Any]:
        """The content of results.json."""
        return {
            "kind": SIMULATED,
            "title": self.title,
            "config": self.config,
            **self.extra,
            "findings": self.findings,
            "summary": summarise(self.rows, self.over),
            "rows": self.rows,
        }


def environment() -> dict[str, Any]:
    """Versions and the kind of machine."""
    versions: dict[str, str | None] = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "kvlab": __version__,
        "build": build_info(),
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "system": platform.system(),
        "machine": platform.machine(),
        "libraries": versions,
    }


def read(path: Path) -> Artifacts:
    """What `write` wrote, with its figures made anew.

    Args:
        path: The directory, or its results.json.

    Raises:
        TraceFormatError: there are no results of an experiment.
        OSError: they cannot be read.
    """
    content, rows = read_results(path)
    config = content.get("config")
    if not isinstance(config, dict):
        raise TraceFormatError(f"{path}, config: is no object")
    known = {"kind", "title", "config", "findings", "summary", "rows"}
    return Artifacts(
        title=str(content.get("title", "")),
        config=config,
        rows=rows,
        figures=studies.figures_of(config, rows),
        findings=[str(finding) for finding in content.get("findings", [])],
        extra={key: value for key, value in content.items() if key not in known},
    )


def draw(artifacts: Artifacts, directory: Path) -> list[str]:
    """Draws the plots and the report anew; results and metadata stay as they are.

    Returns:
        The names of the files.

    Raises:
        OSError: the directory cannot be written to.
    """
    drawn = plots.draw_all(artifacts.figures)
    files = {f"plots/{figure.name}.svg": svg for figure, svg in drawn}
    files["report.html"] = html.page(artifacts, summarise(artifacts.rows, artifacts.over), drawn)
    _save(files, directory)
    return list(files)


def _save(files: Mapping[str, str], directory: Path) -> None:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")


def write(artifacts: Artifacts, directory: Path) -> list[str]:
    """Writes config.json, results.json, results.csv, summary.csv, metadata.json, plots/*.svg and report.html.

    Args:
        artifacts: What to write.
        directory: Made if it is not there; files of an earlier run in it are replaced.

    Returns:
        The names of the files, plots last. Without matplotlib there are no plots.

    Raises:
        OSError: the directory cannot be written to.
    """
    results = artifacts.results()
    summary = results["summary"]
    labelled: list[Row] = [{"origin": SIMULATED, **row} for row in artifacts.rows]
    files = {
        "config.json": to_json(artifacts.config),
        "results.json": to_json(packed(results)),
        "results.csv": to_csv(labelled),
        "summary.csv": to_csv([{"origin": SIMULATED, **row} for row in summary]),
        "metadata.json": to_json(
            {
                "environment": environment(),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": round(artifacts.seconds, 3),
            }
        ),
    }
    _save(files, directory)
    return [*files, *draw(artifacts, directory)]
