"""What every toy does alike: its command line, its JSON and its picture. The ideas are in the others."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = dict[str, Any]

_LOOK: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kvlab",
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def need(*modules: str) -> None:
    """Ends the program with a message that names the remedy if one of these modules is missing."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"this toy needs {', '.join(missing)}: pip install 'kvlab[hf,plot]'")


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """The options all toys have; a toy may add its own before it parses them."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="fewer and smaller cases, whose times prove nothing"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to draw: .svg or .png")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def conclude(
    options: argparse.Namespace,
    results: Results,
    tell: Callable[[Results], None],
    draw: Callable[[Results], Figure],
) -> None:
    """Prints the results, as text or JSON, and draws them: into --out, or a file named like the toy."""
    out: Path = options.out or Path(Path(sys.argv[0]).stem + ".svg")
    if options.json:
        print(json.dumps({**results, "environment": environment()}, indent=2))
        if options.out is None:
            return
    else:
        tell(results)
    if importlib.util.find_spec("matplotlib") is None:
        print("no picture: pip install 'kvlab[plot]'", file=sys.stderr)
        return
    save(draw(results), out)
    print(f"picture: {out}", file=sys.stderr if options.json else sys.stdout)


def panels(count: int = 1, width: float = 4.6, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """An empty figure with panels side by side, each so many inches wide and high."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_LOOK):
        figure = Figure(figsize=(width * count, height), layout="constrained")
        return figure, [figure.add_subplot(1, count, place + 1) for place in range(count)]


def save(figure: Figure, out: Path) -> None:
    """Writes the figure; the same numbers give the same bytes."""
    import matplotlib as mpl

    vector = out.suffix == ".svg"
    with mpl.rc_context(_LOOK):
        figure.savefig(out, metadata={"Date": None, "Creator": None} if vector else None)


def environment() -> Results:
    """On what the figures were measured: they hold for this machine."""
    names = ("torch", "transformers")
    found = {name: version(name) for name in names if importlib.util.find_spec(name)}
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **found,
    }


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
