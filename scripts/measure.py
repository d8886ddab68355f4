"""Measures what the course tells: every toy's JSON into docs/measurements. `make measure`.

python scripts/measure.py [NAME ...]
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from rich.progress import track

ROOT = Path(__file__).resolve().parent.parent
MEASUREMENTS = ROOT / "docs" / "measurements"


def draws(toy: Path) -> bool:
    """Whether a toy has figures to measure: whatever gives `common.conclude` its results."""
    return "conclude(" in toy.read_text() and toy.name != "common.py"


def main(names: list[str]) -> None:
    """Runs the toys one after the other: they are about time, and must not disturb each other."""
    toys = sorted(toy for toy in (ROOT / "toys").glob("*.py") if draws(toy))
    unknown = set(names) - {toy.stem for toy in toys}
    if unknown:
        known = ", ".join(toy.stem for toy in toys)
        sys.exit(f"no such toy: {', '.join(sorted(unknown))}; there are {known}")
    MEASUREMENTS.mkdir(exist_ok=True)
    chosen = [toy for toy in toys if not names or toy.stem in names]
    for toy in track(chosen, description="measuring"):
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, toy, "--json"], stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode != 0:
            sys.exit(f"{toy.name} failed with exit code {done.returncode}; what was there stays")
        results = json.loads(done.stdout)
        (MEASUREMENTS / f"{toy.stem}.json").write_text(json.dumps(results, indent=1) + "\n")
        print(f"{toy.stem}: {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
